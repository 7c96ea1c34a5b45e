"""The memory bank: the keys and values that each stream has read last, in chunks.

B streams, N banks, T tokens, H heads of the store, H* searches per query (H, or 1), D head_dim, E
dimensions of a search key, S slots (one chunk each), c chunk_size in tokens, R chunks retrieved per
query, K = R * c tokens retrieved per query.
"""

from dataclasses import fields
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longmem_fairseq.memory.bank_layout import (
    SIZES_OF_FILE,
    BankLayout,
    check_fingerprint,
    check_options,
)
from longmem_fairseq.memory.chunk_ring import ChunkRing
from longmem_fairseq.memory.faiss_index import DamagedIndexError
from longmem_fairseq.memory.memory_file import write_memory_file
from longmem_fairseq.memory.pending_tokens import PendingTokens, Tokens, tokens_of_rows
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.memory.shard_files import read_memory, remove_other_parts
from longmem_fairseq.memory.token_log import UNKNOWN, Source, TokenLog, literal_slots, look_up
from longmem_fairseq.utils.replaced_file import Version


class MemoryBank:
    """Remembers the last tokens of each stream, of which queries retrieve chunks.

    Written tokens wait in ``pending`` until their chunk is full. Then it goes into ``ring``, in the
    place of the oldest one, where queries find it. ``logs`` say which tokens they are.

    With search ``hidden``, a slot has the search keys of some tokens, and the keys, values and ids of
    those that came next. So a token is stored when its predecessor in the same document is known, the
    first of a document never is, and reading never crosses from one document into another.

    Args:
        sizes: of :class:`BankLayout`, by position or name
        index, index_parameters, storage, directory: see :class:`ChunkRing`
        device: of the model
        tensors: buffers of a file, see :meth:`state_dict`, which the first write copies
        ring: holds the chunks; :class:`ShardedBank` gives another

    Raises:
        ArgumentError: a size or a name does not fit, or there is no room
    """

    def __init__(
        self,
        *sizes,
        index: str = "torch",
        index_parameters: str = "",
        storage: str = "device",
        directory: Optional[str] = None,
        device: Optional[torch.device] = None,
        tensors: Optional[Dict[str, Tensor]] = None,
        ring: Callable[..., ChunkRing] = ChunkRing,
        **named_sizes,
    ):
        self.layout = layout = BankLayout(*sizes, **named_sizes)
        self.device = torch.device(device or "cpu")
        places = dict(storage=storage, directory=directory, device=device)
        self.placement = dict(index=index, index_parameters=index_parameters, **places)
        self.ring = ring(layout, tensors=tensors, **self.placement)
        self.pending = PendingTokens(layout, self.device)
        self.num_written = [0] * layout.num_banks  # chunks since the last reset, evicted ones too
        room = layout.memory_size + layout.chunk_size  # for the tokens that wait, too
        self.logs = [TokenLog(room) for _ in range(layout.num_banks)]

    @property
    def num_pending(self) -> List[int]:
        """Tokens of every bank that wait for their chunk to be full."""
        return self.pending.num_tokens

    @property
    def num_chunks(self) -> List[int]:
        """Stored chunks of every bank."""
        return [min(written, self.layout.num_slots) for written in self.num_written]

    @property
    def num_tokens(self) -> List[int]:
        """Tokens of every bank that a query can find (those of an incomplete chunk can not)."""
        return [chunks * self.layout.chunk_size for chunks in self.num_chunks]

    @property
    def sources(self) -> List[List[Source]]:
        """The documents that the tokens of every bank came from."""
        return [log.sources for log in self.logs]

    def held(self, bank: int) -> range:
        """The tokens that are stored or wait, numbered from the bank's last reset."""
        return self.layout.held(self.num_written[bank], self.num_pending[bank])

    def documents(self, bank: int) -> Dict[Optional[str], int]:
        """Held tokens of every document, the oldest first; None if unknown."""
        return self.logs[bank].documents(self.held(bank))

    def first_token(self, bank: int, slot: int) -> int:
        """The number, from the last reset, of a chunk's first token; ValueError for an empty slot."""
        if not 0 <= slot < self.num_chunks[bank]:
            raise ValueError(f"slot {slot} of a bank that holds {self.num_chunks[bank]} chunks")
        number = self.layout.chunk_in(torch.tensor(slot), self.num_written[bank])
        return int(number) * self.layout.chunk_size

    def locate(self, bank: int, slot: int) -> Optional[Source]:
        """Where :meth:`first_token` of a slot came from; None if that is unknown."""
        source = self.logs[bank].sources_from(self.first_token(bank, slot))[0]
        return None if source.name is None else source

    def reset(self, rows: Optional[Tensor] = None) -> None:
        """Forgets the streams marked in *rows* (bool, for the first of B streams; default: all).

        With scope ``batch`` the rows share one bank, which is forgotten once every row is marked.
        """
        marked = [True] * self.layout.num_streams if rows is None else rows.tolist()
        for row, forget in enumerate(marked):
            self.pending.in_document[row] &= not forget
        if self.layout.scope == "batch":
            marked = [len(marked) > 0 and all(marked)]
        for bank, forget in enumerate(marked):
            if forget:
                self.num_written[bank] = self.pending.num_tokens[bank] = 0
                self.logs[bank].sources = []
                self.ring.reset(bank)

    def begin_document(self, row: int, name: Optional[str], offset: int = 0) -> None:
        """Stream *row* is given document *name* from token *offset* on with its next write."""
        bank, first = self.layout.bank_of(row), int(self.layout.reads_successors)
        self.logs[bank].sources.append(Source(self.held(bank).stop, name, offset + first))
        self.pending.in_document[row] = False

    @torch.no_grad()
    def write(
        self,
        keys: Tensor,
        values: Tensor,
        valid: Optional[Tensor] = None,
        token_ids: Optional[Tensor] = None,
        search_keys: Optional[Tensor] = None,
    ) -> None:
        """Appends T tokens to each of the first b <= B streams.

        Args:
            keys, values: b x H x T x D
            valid: b x T, False for tokens that are not stored, as padding (default: all are)
            token_ids: b x T (default: unknown)
            search_keys: b x T x E, for search ``hidden``: of each token, by which its successor is
                found; zeros where it shall not be

        Raises:
            ValueError: the shapes do not fit; or, an ArgumentError, the bank is full and its index
                cannot forget (then nothing at all is written)
        """
        self.layout.check_segment(keys, values, valid, token_ids, search_keys)
        rows = tokens_of_rows(keys, values, valid, token_ids, search_keys)
        stored = [self.pending.num_stored(row, len(new.ids)) for row, new in enumerate(rows)]
        self.make_room(stored if self.layout.scope == "stream" else [sum(stored)])
        for row, new in enumerate(rows):
            if self.layout.reads_successors:
                new = self.pending.follow(row, new)
            self.append(self.layout.bank_of(row), new)

    def make_room(self, num_tokens: List[int]) -> None:
        """Before so many tokens are appended to the first banks: raises ArgumentError where an
        index, or storage outside of a mapped file, has no room; the bank is left as it was."""
        for bank, new in enumerate(num_tokens):
            new_chunks = (self.num_pending[bank] + new) // self.layout.chunk_size
            self.ring.check_room(self.num_chunks[bank] + new_chunks)
        self.ring.leave_file(self.num_written)

    def append(self, bank: int, tokens: Tokens) -> None:
        """Appends tokens to a bank, after :meth:`make_room`."""
        self.logs[bank].write(self.held(bank).stop, tokens.ids)
        chunks = self.pending.fill(bank, tokens)
        if chunks is not None:
            self.ring.append(bank, self.num_written[bank], *chunks)
            self.num_written[bank] += chunks[0].size(1)

    @torch.no_grad()
    def retrieve(
        self,
        queries: Tensor,
        banks: Optional[Sequence[int]] = None,
        contexts: Optional[Tensor] = None,
    ) -> Optional[Retrieved]:
        """For every query the K tokens of the R chunks with the largest inner product.

        Args:
            queries: b x H* x T x D (or E), unscaled
            banks: the bank that each of the b rows searches (default: that of the first b streams)
            contexts: for search ``hidden``: b x T x M, see :func:`look_up`; with them, some of the R
                chunks are those of :func:`literal_slots`

        Returns:
            None when no bank that is searched has a complete chunk

        Raises:
            ValueError: the shape does not fit
        """
        layout, any_number = self.layout, banks is not None
        layout.check_rows("queries", queries, layout.search_heads, layout.key_dim, any_number)
        if banks is None:
            banks = [layout.bank_of(row) for row in range(queries.size(0))]
        if not any(self.num_written[bank] for bank in banks):
            return None
        logs, written = [self.logs[bank] for bank in banks], [self.num_written[b] for b in banks]
        literal = None if contexts is None else literal_slots(layout, logs, written, contexts)
        retrieved = self.ring.search(queries.float(), banks, self.num_written, literal)
        if not layout.reads_successors:
            return retrieved
        # one copy from the device: each waits for all that it has to do
        slots, held = retrieved.chunks[:, 0].cpu(), [self.held(bank) for bank in banks]
        looked_up = look_up(logs, layout.tokens_in(slots, written), held, contexts)
        ids, matches = (None if tensor is None else tensor.to(self.device) for tensor in looked_up)
        return retrieved._replace(token_ids=ids, matches=matches)

    def header(self) -> Dict[str, Any]:
        """Sizes, fill and sources, for JSON."""
        return {
            **self.layout.header(),
            "num_written": self.num_written,
            "num_pending": self.num_pending,
            "sources": self.sources,
            "in_document": self.pending.in_document,
        }

    def state_dict(self) -> Dict[str, Tensor]:
        """Views of everything that is held; with :meth:`header` all that it takes to go on."""
        ids = [log.read(self.held(bank)) for bank, log in enumerate(self.logs)]
        token_ids = pad_sequence(ids, batch_first=True, padding_value=UNKNOWN)
        ring = self.ring.state_dict(self.num_written)
        return {**ring, **self.pending.state_dict(), "token_ids": token_ids}

    def load_state_dict(self, header: Dict[str, Any], state: Dict[str, Tensor]) -> None:
        """Takes over :meth:`header` and :meth:`state_dict` of a bank of the same sizes.

        Raises:
            ValueError: of other sizes or another backbone; this bank is left as it was
        """
        self.layout.check_same(header, ("num_streams", *SIZES_OF_FILE))
        check_fingerprint("the memory", header["fingerprint"], self.layout.fingerprint)
        self.ring.load_state_dict(state, header["num_written"])
        for name, tensor in self.pending.state_dict().items():
            tensor.copy_(state[name])
        self.num_written = list(header["num_written"])
        self.pending.num_tokens = list(header["num_pending"])
        self.pending.in_document = list(header["in_document"])
        for bank, log in enumerate(self.logs):
            log.sources = [Source(*source) for source in header["sources"][bank]]
            held = self.held(bank)
            log.write(held.start, state["token_ids"][bank, : len(held)])

    def save(self, path: str, replaces: Optional[Version] = None) -> Version:
        """Writes a file, at once or not at all, see :func:`write_memory_file`; then removes the files
        that shards have saved under the same *path*.

        Raises:
            OSError: the file cannot be written, or one of those not removed
        """
        version = write_memory_file(path, self.header(), self.state_dict(), replaces)
        remove_other_parts(path)
        return version

    @classmethod
    def load(
        cls, path: str, fingerprint: str = "", memory_map: bool = False, **options
    ) -> "MemoryBank":
        """The bank of a file, or of the files that the shards of one wrote.

        Args:
            fingerprint: of the backbone that will read it; "" for any
            memory_map: leave keys and values in the file, until the first write copies them; their
                checksums are not compared (files of shards are read at once)
            options: further arguments of :class:`MemoryBank`, such as index or storage; those that the
                file has too, except k, must be the same

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is damaged, foreign, or of another backbone or other sizes
        """
        header, tensors = read_memory(path, verify=not memory_map)
        return cls.restored(path, header, tensors, fingerprint, memory_map, **options)

    @classmethod
    def restored(
        cls, path: str, header: Dict, tensors: Dict, fingerprint: str, in_place: bool, **options
    ) -> "MemoryBank":
        """The bank of a file that was read; see :meth:`load`."""
        check_options(path, header, {**options, "fingerprint": fingerprint})
        sizes = {field.name: header[field.name] for field in fields(BankLayout)}
        bank = cls(**{**sizes, **options}, tensors=tensors if in_place else None)
        try:
            bank.load_state_dict(header, tensors)
        except DamagedIndexError as error:
            raise ValueError(f"{path}: {error}") from error
        return bank
