"""The memory bank: a ring of chunks, the keys and values of what a stream has read last.

B streams, N banks, T tokens, H heads of the store, H* searches per query (H, or 1), D head_dim, E
dimensions of a search key, S slots (one chunk each), c chunk_size in tokens, R chunks retrieved per
query, K = R * c tokens retrieved per query.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory import bank_state
from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.chunk_store import DTYPES, STORAGES, ChunkStore, Placement
from longmem_fairseq.memory.factory_index import make_index
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.memory.search import chosen_products
from longmem_fairseq.memory.token_log import UNKNOWN, Source, TokenLog


class MemoryBank:
    """A ring buffer of chunks for each stream.

    Tokens are grouped in chunks of *chunk_size*, each with a search key. The oldest chunks go first. A
    last chunk that is not full yet waits outside the ring until its tokens arrive.

    With search ``hidden``, a slot has the search keys of some tokens, and the keys, values and ids of
    those that came next. So a token is stored when its predecessor in the same document is known, the
    first of a document never is, and what is read never crosses from one document into another.

    Args:
        sizes: of :class:`BankLayout`, by position or name; attributes of the bank, too
        index, index_parameters: how it is searched, see :func:`make_index`
        storage: where keys and values live, see :class:`Placement`; the search keys are beside them
            on disk, else where they are searched
        directory: of the files of storage ``disk``
        device: of the model
        tensors: buffers to read in place, by the names of :meth:`state_dict`, instead of new ones; they
            may have room for no more than what is stored. They are never written: whatever writes
            moves the bank into buffers of its own first

    Raises:
        ValueError: a size or a name does not fit
    """

    shard, num_shards = 0, 1  # which part of the bank is here, of how many: see ShardedBank

    def __init__(
        self,
        *sizes,
        index: str = "torch",
        index_parameters: str = "",
        storage: str = "device",
        directory: Optional[str] = None,
        device: Optional[torch.device] = None,
        tensors: Optional[Dict[str, Tensor]] = None,
        **named_sizes,
    ):
        if storage not in STORAGES:
            raise ValueError(f"--memory-storage ({storage}) must be one of {', '.join(STORAGES)}")
        self.layout = layout = BankLayout(*sizes, **named_sizes)
        vars(self).update(layout.header())
        self.placement = {
            "index": index,
            "index_parameters": index_parameters,
            "storage": storage,
            "directory": directory,
            "device": device,
        }
        self.in_place = tensors is not None  # for instance in a file
        self.device = torch.device(device or "cpu")
        self.num_slots, num_banks = layout.num_slots, layout.num_banks
        num_own_slots = self.num_slots // self.num_shards
        place = Placement(storage, self.device, directory, tensors)
        self.store = ChunkStore(
            (num_banks, layout.num_heads, num_own_slots),
            layout.chunk_size,
            layout.head_dim,
            layout.dtype,
            place,
        )
        if index not in ("torch", "flat"):
            place = place._replace(device=None)  # faiss's own indices are on the CPU
        elif storage == "host" or self.device.type != "cpu":
            place = place._replace(storage="device")
        shape = (num_banks, layout.search_heads, num_own_slots, layout.key_dim)
        self.chunk_keys = place.buffer("chunk_keys", shape, torch.float32)
        self.chunk_keys = self.chunk_keys.to(place.device or "cpu")  # from a file's mapping
        self.index = make_index(self.chunk_keys, num_own_slots, index, index_parameters)
        waiting = torch.float32 if layout.dtype == "int8" else DTYPES[layout.dtype]
        shape = (num_banks, layout.num_heads, layout.chunk_size, layout.head_dim)
        self.pending_keys = torch.zeros(shape, dtype=waiting, device=self.device)
        self.pending_values = torch.zeros_like(self.pending_keys)
        # of search `hidden`: the search keys of what waits, and of the last token of every stream
        shape = (num_banks, layout.chunk_size, layout.search_dim)
        self.pending_search = torch.zeros(shape, device=self.device)
        self.last_search = torch.zeros(layout.num_streams, layout.search_dim, device=self.device)
        self.in_document = [False] * layout.num_streams  # whether last_search has a successor
        self.num_written = [0] * num_banks  # chunks since the last reset, evicted ones too
        self.num_pending = [0] * num_banks  # tokens of the chunk that is not full yet
        # room for the tokens that wait, too
        room = layout.memory_size + layout.chunk_size
        self.logs = [TokenLog(room) for _ in range(num_banks)]

    @property
    def options(self) -> Dict[str, Any]:
        """Arguments of another bank like this one, but for the number of streams and the shape."""
        sizes = self.layout.header()
        for name in ("num_streams", "num_heads", "head_dim"):
            del sizes[name]
        return {**sizes, **self.placement}

    @property
    def num_chunks(self) -> List[int]:
        """Stored chunks of every bank."""
        return [min(written, self.num_slots) for written in self.num_written]

    @property
    def num_own_chunks(self) -> List[int]:
        """Those of them that are here: every ``num_shards``-th."""
        return [len(range(self.shard, chunks, self.num_shards)) for chunks in self.num_chunks]

    @property
    def num_tokens(self) -> List[int]:
        """Tokens of every bank that a query can find (those of an incomplete chunk can not)."""
        return [chunks * self.layout.chunk_size for chunks in self.num_chunks]

    @property
    def num_bytes(self) -> int:
        """Size of the buffers when full, without 4 bytes a token for its id, and without what an
        approximate index adds."""
        buffers = (self.chunk_keys, *self.store.buffers().values())
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    @property
    def sources(self) -> List[List[Source]]:
        """The documents that the tokens of every bank came from."""
        return [log.sources for log in self.logs]

    def documents(self, bank: int) -> Dict[Optional[str], int]:
        """Tokens of every document that is held, the oldest first; None: nobody said which."""
        tokens: Dict[Optional[str], int] = {}
        for source, part in self.logs[bank].parts(self.held(bank)):
            tokens[source.name] = tokens.get(source.name, 0) + len(part)
        return tokens

    def bank_of(self, row: int) -> int:
        """The bank that a stream writes to."""
        return row if self.layout.scope == "stream" else 0

    def reset(self, rows: Optional[Tensor] = None) -> None:
        """Forgets the streams marked in *rows* (bool, for the first of B streams; default: all).

        With scope ``batch`` the rows share one bank, which is forgotten once every row is marked.
        """
        marked = [True] * self.layout.num_streams if rows is None else rows.tolist()
        for row, forget in enumerate(marked):
            self.in_document[row] &= not forget
        if self.layout.scope == "batch":
            marked = [len(marked) > 0 and all(marked)]
        for bank, forget in enumerate(marked):
            if forget:
                self.num_written[bank] = self.num_pending[bank] = 0
                self.logs[bank].sources = []
                self.index.reset(bank)

    def begin_document(self, row: int, name: Optional[str], offset: int = 0) -> None:
        """What is written to stream *row* from now on is document *name* from token *offset* on."""
        bank, first = self.bank_of(row), int(self.layout.reads_successors)
        self.logs[bank].sources.append(Source(self.held(bank).stop, name, offset + first))
        self.in_document[row] = False

    def held(self, bank: int) -> range:
        """The numbers, counted from the last reset, of the tokens that are stored or wait."""
        written, size = self.num_written[bank], self.layout.chunk_size
        oldest = (written - self.num_chunks[bank]) * size
        return range(oldest, written * size + self.num_pending[bank])

    def locate(self, bank: int, slot: int) -> Optional[Source]:
        """Where the first token of a stored chunk came from, None if nobody said.

        Returns:
            its number in the bank, its document, and its offset there
        """
        source = self.logs[bank].sources_from(self.first_token(bank, slot))[0]
        return None if source.name is None else source

    def first_token(self, bank: int, slot: int) -> int:
        """The number, counted from the last reset, of the first token of a stored chunk."""
        if not 0 <= slot < self.num_chunks[bank]:
            raise ValueError(f"slot {slot} of a bank that holds {self.num_chunks[bank]} chunks")
        return int(self._first_tokens(bank, torch.tensor(slot)))

    def _first_tokens(self, bank: int, slots: Tensor) -> Tensor:
        newest = self.num_written[bank] - 1
        return (newest - (newest - slots) % self.num_slots) * self.layout.chunk_size

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
            valid: b x T, False for padding, which is not stored (default: all are)
            token_ids: b x T, what the tokens are (default: unknown)
            search_keys: b x T x E, for search ``hidden``: what a token is found by, whose successor is
                then read; zeros for one that shall not be found

        Raises:
            ValueError: the shapes do not fit; or the bank is full, and its index cannot forget (then
                nothing at all is written)
        """
        streams, tokens = keys.size(0), keys.size(2)
        self._check_rows("keys", keys, self.layout.num_heads, self.layout.head_dim)
        if search_keys is None:
            search_keys = keys.new_empty(streams, tokens, 0)
        for name, tensor, expected in (
            ("values", values, keys.shape),
            ("valid", valid, (streams, tokens)),
            ("token_ids", token_ids, (streams, tokens)),
            ("search_keys", search_keys, (streams, tokens, self.layout.search_dim)),
        ):
            if tensor is not None and tensor.shape != expected:
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} do not go with keys of {tuple(keys.shape)}"
                )
        if valid is None:
            valid = torch.ones(streams, tokens, dtype=torch.bool)
        if token_ids is None:
            token_ids = torch.full((streams, tokens), UNKNOWN)
        # at once: every copy from a GPU waits for all that it has to do
        valid, token_ids = valid.cpu(), token_ids.cpu()
        counts = valid.sum(dim=1).tolist()
        stored = [
            count - (count > 0 and self._waits_for_successor(i)) for i, count in enumerate(counts)
        ]
        self._make_room(stored if self.layout.scope == "stream" else [sum(stored)])
        for row, count in enumerate(counts):
            places = slice(None)
            if count < tokens:
                places = valid[row].nonzero().flatten().to(keys.device)
            entry = (keys[row][:, places], values[row][:, places], search_keys[row][places])
            ids = token_ids[row][valid[row]]
            if self.layout.reads_successors:
                *entry, ids = self._after_predecessors(row, *entry, ids)
            self._append(self.bank_of(row), *entry, ids)

    def _after_predecessors(
        self, row: int, keys: Tensor, values: Tensor, search: Tensor, ids: Tensor
    ) -> Tuple[Tensor, ...]:
        """Keys and values H x T x D and T ids of the tokens whose predecessor is known, with *its*
        search key, T x E."""
        if len(ids) == 0:
            return keys, values, search, ids
        found_by = torch.cat([self.last_search[row].unsqueeze(0), search[:-1].to(self.last_search)])
        self.last_search[row] = search[-1]
        first = int(self._waits_for_successor(row))
        self.in_document[row] = True
        return keys[:, first:], values[:, first:], found_by[first:], ids[first:]

    def _waits_for_successor(self, row: int) -> bool:
        """Whether the next token of a stream is only to be found by, being the first of a document."""
        return self.layout.reads_successors and not self.in_document[row]

    def _make_room(self, tokens: List[int]) -> None:
        """Before so many *tokens* of the first banks: raises ValueError if its index has no room.

        Moves a mapped bank into buffers of its own.
        """
        for bank, new in enumerate(() if self.index.can_remove else tokens):
            size = self.layout.chunk_size
            if self.num_chunks[bank] + (self.num_pending[bank] + new) // size > self.num_slots:
                raise ValueError(
                    f"this --memory-index cannot forget chunks, and the bank of {self.memory_size:,} "
                    "tokens is full: raise --memory-size, or choose an index that can (torch, IVF...)"
                )
        self._leave_file()

    def _leave_file(self) -> None:
        """Moves a mapped bank into buffers of its own, of full size.

        Raises:
            ValueError: there is no room for them; this bank is left as it was
        """
        if not self.in_place:
            return
        with torch.inference_mode(False):  # they are written later, too
            own = self.select(range(self.layout.num_banks))
        self.store, self.chunk_keys, self.index = own.store, own.chunk_keys, own.index
        self.in_place = False

    def _append(
        self, bank: int, keys: Tensor, values: Tensor, search_keys: Tensor, token_ids: Tensor
    ) -> None:
        """Appends H x T x D keys and values, of any type and device, T x E search keys and T ids."""
        self.logs[bank].write(self.held(bank).stop, token_ids)
        left = self.num_pending[bank]
        waiting = (self.pending_keys[bank], self.pending_values[bank], self.pending_search[bank])
        keys, values, search_keys = (
            torch.cat([kept[..., :left, :], new.to(kept)], dim=-2)
            for kept, new in zip(waiting, (keys, values, search_keys), strict=True)
        )
        size = self.layout.chunk_size
        num_chunks, left = divmod(keys.size(1), size)
        if num_chunks > 0:
            whole = num_chunks * size
            chunks = (t[:, :whole].unflatten(1, (num_chunks, size)) for t in (keys, values))
            self._append_chunks(bank, *chunks, search_keys[:whole].unflatten(0, (-1, size)))
        self.num_pending[bank] = left
        for kept, new in zip(waiting, (keys, values, search_keys), strict=True):
            kept[..., :left, :] = new[..., new.size(-2) - left :, :]

    def _append_chunks(self, bank: int, keys: Tensor, values: Tensor, search: Tensor) -> None:
        """Appends whole chunks, H x chunks x c x D, and chunks x c x E, to one bank."""
        num_chunks, stored_before = keys.size(1), self.num_own_chunks[bank]
        # more chunks than slots: the first of them would be overwritten in the same call
        kept = min(num_chunks, self.num_slots)
        first = self.num_written[bank] + num_chunks - kept
        self.num_written[bank] += num_chunks
        skipped = (self.shard - first) % self.num_shards  # of other shards, before our first
        own = slice(num_chunks - kept + skipped, None, self.num_shards)
        keys, values, search = keys[:, own], values[:, own], search[own]
        if keys.size(1) == 0:
            return
        device = self.chunk_keys.device
        numbers = torch.arange(first + skipped, first + kept, self.num_shards, device=device)
        slots = numbers // self.num_shards % self.chunk_keys.size(2)
        by_token = search.unsqueeze(0) if self.layout.reads_successors else keys
        self.chunk_keys[bank][:, slots] = by_token.float().mean(dim=2).to(device)
        self.index.write(bank, slots, stored_before, self.num_own_chunks[bank])
        rows = self._first_rows(bank, device) + slots  # H x own
        self.store.write(rows.flatten(), keys.flatten(0, 1), values.flatten(0, 1))

    def _first_rows(self, bank: int, device: Optional[torch.device] = None) -> Tensor:
        """The row of the store where each head of a bank begins, H x 1."""
        heads = torch.arange(self.layout.num_heads, device=device).view(-1, 1)
        return (bank * self.layout.num_heads + heads) * self.chunk_keys.size(2)

    @torch.no_grad()
    def retrieve(
        self, queries: Tensor, banks: Optional[Sequence[int]] = None
    ) -> Optional[Retrieved]:
        """For every query the K tokens of the R chunks with the largest inner product.

        Args:
            queries: b x H* x T x D (or E), unscaled
            banks: the bank that each of the b rows asks (default: the first b streams' own)

        Returns:
            None when no bank that is asked has a complete chunk.
        """
        layout = self.layout
        any_number = banks is not None
        self._check_rows("queries", queries, layout.search_heads, layout.key_dim, any_number)
        if banks is None:
            banks = [self.bank_of(row) for row in range(queries.size(0))]
        if not any(self.num_chunks[bank] for bank in banks):
            return None
        chunks = self._search(queries.float(), banks)
        scores = None
        if layout.reads_successors:
            scores = self._scores(queries, chunks, banks).squeeze(1)
        return self._found(chunks, scores, banks)

    def _search(self, queries: Tensor, banks: Sequence[int]) -> Tensor:
        """The slots of the best chunks that are here, b x H* x T x R; -1 where there were fewer."""
        shape = (*queries.shape[:3], self.layout.k // self.layout.chunk_size)
        chunks = torch.empty(shape, dtype=torch.long, device=queries.device)
        for bank in sorted(set(banks)):  # one search for all rows that ask the same bank
            rows = [row for row, asked in enumerate(banks) if asked == bank]
            asked = torch.cat([queries[row] for row in rows], dim=1)  # H* x rows * T x E
            found = self.index.search(bank, asked, self.num_own_chunks[bank], shape[-1])
            for row, own in zip(rows, found.chunk(len(rows), dim=1), strict=True):
                chunks[row] = own
        return chunks

    def _scores(self, queries: Tensor, chunks: Tensor, banks: Sequence[int]) -> Tensor:
        """Inner products with chunks that are here, b x H* x T x R; -inf where there is none."""
        heads, slots = self.chunk_keys.shape[1:3]
        first = torch.tensor([[bank * heads + head for head in range(heads)] for bank in banks])
        first = first.to(chunks.device) * slots  # b x H*
        rows = chunks.clamp(min=0) + first.view(*first.shape, 1, 1)
        return chosen_products(queries, self.chunk_keys, rows).masked_fill(chunks < 0, -torch.inf)

    def _found(self, chunks: Tensor, scores: Optional[Tensor], banks: Sequence[int]) -> Retrieved:
        """What the chosen slots hold; scores b x T x R where all heads were searched at once."""
        first = torch.stack([self._first_rows(bank, chunks.device) for bank in banks])  # b x H x 1
        rows = chunks.clamp(min=0) + first.unsqueeze(-1)  # b x H x T x R
        if scores is None:
            return Retrieved(chunks, rows, self.store)
        return Retrieved(chunks, rows, self.store, scores, self._token_ids(chunks[:, 0], banks))

    def _token_ids(self, slots: Tensor, banks: Sequence[int]) -> Tensor:
        """Ids of the tokens in b x T x R slots of the whole bank, b x T x K; -1 where unknown."""
        slots, within = slots.cpu(), torch.arange(self.layout.chunk_size)
        rows = []
        for row, bank in zip(slots, banks, strict=True):
            numbers = self._first_tokens(bank, row.clamp(min=0)).unsqueeze(-1) + within
            log = self.logs[bank].ids
            rows.append(log[numbers % len(log)].masked_fill(row.unsqueeze(-1) < 0, UNKNOWN))
        return torch.stack(rows).flatten(2).long().to(self.device)

    def _check_rows(
        self, name: str, tensor: Tensor, heads: int, dim: int, any_number: bool = False
    ) -> None:
        too_many = tensor.size(0) > self.layout.num_streams and not any_number
        if too_many or (tensor.size(1), tensor.size(3)) != (heads, dim):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} do not fit a bank of (streams, heads, "
                f"head_dim) {(self.layout.num_streams, heads, dim)}"
            )

    def select(self, banks: Sequence[int]) -> "MemoryBank":
        """A new bank with a stream for each of *banks*, which starts as a copy of it.

        With the same options, but for scope ``stream``.
        """
        options = {**self.options, "scope": "stream"}
        selected = type(self)(len(banks), self.layout.num_heads, self.layout.head_dim, **options)
        for stream, bank in enumerate(banks):
            selected.copy_stream(stream, self, bank)
        return selected

    copy_stream = bank_state.copy_stream
    extend = bank_state.extend
    forget = bank_state.forget
    header = bank_state.header
    state_dict = bank_state.state_dict
    load_state_dict = bank_state.load_state_dict
    save = bank_state.save
    load = classmethod(bank_state.load)
