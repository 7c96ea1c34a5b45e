"""A ring of chunks: keys and values of what a stream has read last.

B streams, N banks, T tokens, H heads, D head_dim, S slots (one chunk each), c chunk_size in tokens,
R chunks retrieved per query, K = R * c tokens retrieved per query.
"""

from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor

from longmem_fairseq.memory.chunk_store import DTYPES, STORAGES, ChunkStore, Placement
from longmem_fairseq.memory.factory_index import make_index
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.memory.token_log import UNKNOWN, Source, TokenLog


class ChunkRing:
    """A ring buffer of chunks for each stream and head.

    Tokens are grouped in chunks of *chunk_size*; the search key of a chunk is the mean of its token
    keys (section 3.2, "token-to-chunk retrieval", of arXiv 2306.07174). The oldest chunks go first.
    A last chunk that is not full yet waits outside the ring until its tokens arrive.

    Args:
        num_streams: B
        num_heads: H
        head_dim: D
        memory_size: stored tokens per stream (or in all, with scope ``batch``), a multiple of
            *chunk_size*
        chunk_size: tokens per chunk
        k: tokens retrieved per query and head, a multiple of *chunk_size*
        scope: ``stream``: every stream has its own bank; ``batch``: all streams share one, as in the
            released LongMem code
        index, index_parameters: how it is searched, see :func:`make_index`
        dtype: of the stored keys and values, a key of ``chunk_store.DTYPES``; the search keys are
            float32
        storage: where keys and values live, see :class:`Placement`; the search keys are beside them
            on disk, else where they are searched
        directory: of the files of storage ``disk``
        device: of the model
        fingerprint: of the backbone whose keys and values these are, hexadecimal, and its layer
        tensors: buffers to read in place, by the names of :meth:`state_dict`, instead of new ones; they
            may have room for no more than what is stored

    Raises:
        ValueError: a size or a name does not fit
    """

    shard, num_shards = 0, 1  # which part of the bank is here, of how many: see ShardedBank

    def __init__(
        self,
        num_streams: int,
        num_heads: int,
        head_dim: int,
        memory_size: int,
        chunk_size: int = 4,
        k: int = 64,
        scope: str = "stream",
        index: str = "torch",
        index_parameters: str = "",
        dtype: str = "float32",
        storage: str = "device",
        directory: Optional[str] = None,
        device: Optional[torch.device] = None,
        fingerprint: str = "",
        tensors: Optional[Dict[str, Tensor]] = None,
    ):
        check_sizes(memory_size, chunk_size, k)
        for option, value, known in (
            ("--memory-scope", scope, ("stream", "batch")),
            ("--memory-dtype", dtype, DTYPES),
            ("--memory-storage", storage, STORAGES),
        ):
            if value not in known:
                raise ValueError(f"{option} ({value}) must be one of {', '.join(known)}")
        self.num_streams, self.scope = num_streams, scope
        self.num_heads, self.head_dim = num_heads, head_dim
        self.memory_size, self.chunk_size, self.k = memory_size, chunk_size, k
        self.dtype, self.fingerprint = dtype, fingerprint
        self.options = {
            "memory_size": memory_size,
            "chunk_size": chunk_size,
            "k": k,
            "index": index,
            "index_parameters": index_parameters,
            "dtype": dtype,
            "storage": storage,
            "directory": directory,
            "device": device,
            "fingerprint": fingerprint,
        }
        self.in_place = tensors is not None  # for instance in a file
        self.device = torch.device(device or "cpu")
        self.num_slots = memory_size // chunk_size
        num_banks = num_streams if scope == "stream" else 1
        num_own_slots = self.num_slots // self.num_shards
        slots = (num_banks, num_heads, num_own_slots)
        placement = Placement(storage, self.device, directory, tensors)
        self.store = ChunkStore(slots, chunk_size, head_dim, dtype, placement)
        if index not in ("torch", "flat"):
            placement = placement._replace(device=None)  # faiss's own indices are on the CPU
        elif storage == "host" or self.device.type != "cpu":
            placement = placement._replace(storage="device")
        self.chunk_keys = placement.buffer("chunk_keys", (*slots, head_dim), torch.float32)
        self.chunk_keys = self.chunk_keys.to(placement.device or "cpu")  # from a file's mapping
        self.index = make_index(self.chunk_keys, num_own_slots, index, index_parameters)
        pending = (num_banks, num_heads, chunk_size, head_dim)
        pending_dtype = torch.float32 if dtype == "int8" else DTYPES[dtype]
        self.pending_keys = torch.zeros(pending, dtype=pending_dtype, device=self.device)
        self.pending_values = torch.zeros_like(self.pending_keys)
        self.num_written = [0] * num_banks  # chunks since the last reset, evicted ones too
        self.num_pending = [0] * num_banks  # tokens of the chunk that is not full yet
        # room for the tokens that wait, too
        self.logs = [TokenLog(memory_size + chunk_size) for _ in range(num_banks)]

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
        return [chunks * self.chunk_size for chunks in self.num_chunks]

    @property
    def num_bytes(self) -> int:
        """Size of the buffers when full, without 4 bytes a token for its id, and without what an
        approximate index adds."""
        buffers = (self.chunk_keys, *self.store.buffers().values())
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def reset(self, rows: Optional[Tensor] = None) -> None:
        """Forgets the streams marked in *rows* (bool, for the first of B streams; default: all).

        With scope ``batch`` the rows share one bank, which is forgotten once every row is marked.
        """
        marked = [True] * self.num_streams if rows is None else rows.tolist()
        if self.scope == "batch":
            marked = [len(marked) > 0 and all(marked)]
        for bank, forget in enumerate(marked):
            if forget:
                self.num_written[bank] = self.num_pending[bank] = 0
                self.logs[bank].sources = []
                self.index.reset(bank)

    @property
    def sources(self) -> List[List[Source]]:
        """The documents that the tokens of every bank came from."""
        return [log.sources for log in self.logs]

    def begin_document(self, row: int, name: Optional[str], offset: int = 0) -> None:
        """What is written to stream *row* from now on is document *name* from token *offset* on."""
        bank = row if self.scope == "stream" else 0
        self.logs[bank].sources.append(Source(self.held(bank).stop, name, offset))

    def held(self, bank: int) -> range:
        """The numbers, counted from the last reset, of the tokens that are stored or wait."""
        written, size = self.num_written[bank], self.chunk_size
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
        written = self.num_written[bank]
        if not 0 <= slot < self.num_chunks[bank]:
            raise ValueError(f"slot {slot} of a bank that holds {self.num_chunks[bank]} chunks")
        chunk = written - 1 - (written - 1 - slot) % self.num_slots
        return chunk * self.chunk_size

    @torch.no_grad()
    def write(
        self,
        keys: Tensor,
        values: Tensor,
        valid: Optional[Tensor] = None,
        token_ids: Optional[Tensor] = None,
    ) -> None:
        """Appends T tokens to each of the first b <= B streams.

        Args:
            keys, values: b x H x T x D
            valid: b x T, False for padding, which is not stored (default: all are)
            token_ids: b x T, what the tokens are, for who reads the log (default: unknown)

        Raises:
            ValueError: the shapes do not fit; or the bank is full, and its index cannot forget (then
                nothing at all is written)
        """
        self._check_rows("keys", keys)
        shape = (keys.size(0), keys.size(2))
        for name, tensor, expected in (
            ("values", values, keys.shape),
            ("valid", valid, shape),
            ("token_ids", token_ids, shape),
        ):
            if tensor is not None and tensor.shape != expected:
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} do not go with keys of {tuple(keys.shape)}"
                )
        if valid is not None:
            valid = valid.cpu()  # at once: every copy from a GPU waits for all that it has to do
        tokens = [keys.size(2)] * keys.size(0) if valid is None else valid.sum(dim=1).tolist()
        self._make_room(tokens if self.scope == "stream" else [sum(tokens)])
        if token_ids is None:
            token_ids = torch.full((keys.size(0), keys.size(2)), UNKNOWN)
        token_ids = token_ids.cpu()
        for row, stored in enumerate(tokens):
            bank = row if self.scope == "stream" else 0
            row_keys, row_values, row_ids = keys[row], values[row], token_ids[row]
            if stored < keys.size(2):
                places = valid[row].nonzero().flatten()
                row_ids, places = row_ids[places], places.to(keys.device)
                row_keys, row_values = row_keys[:, places], row_values[:, places]
            self._append(bank, row_keys, row_values, row_ids)

    def _make_room(self, tokens: List[int]) -> None:
        """Before so many *tokens* of the first banks: raises ValueError if its index has no room."""
        if self.index.can_remove:
            return
        for bank, new in enumerate(tokens):
            num_chunks = self.num_chunks[bank] + (self.num_pending[bank] + new) // self.chunk_size
            if num_chunks > self.num_slots:
                raise ValueError(
                    f"this --memory-index cannot forget chunks, and the bank of {self.memory_size:,} "
                    "tokens is full: raise --memory-size, or choose an index that can (torch, IVF...)"
                )

    def _append(self, bank: int, keys: Tensor, values: Tensor, token_ids: Tensor) -> None:
        """Appends H x T x D keys and values, of any type and device, to one bank; T ids."""
        self.logs[bank].write(self.held(bank).stop, token_ids)
        pending = self.num_pending[bank]
        waiting_keys = self.pending_keys[bank, :, :pending]
        waiting_values = self.pending_values[bank, :, :pending]
        keys = torch.cat([waiting_keys, keys.to(waiting_keys)], dim=1)
        values = torch.cat([waiting_values, values.to(waiting_values)], dim=1)
        num_chunks, left = divmod(keys.size(1), self.chunk_size)
        if num_chunks > 0:
            whole = num_chunks * self.chunk_size
            chunks = (tensor[:, :whole].unflatten(1, (num_chunks, -1)) for tensor in (keys, values))
            self._append_chunks(bank, *chunks)
        self.num_pending[bank] = left
        if left > 0:
            self.pending_keys[bank, :, :left] = keys[:, -left:]
            self.pending_values[bank, :, :left] = values[:, -left:]

    def _append_chunks(self, bank: int, keys: Tensor, values: Tensor) -> None:
        """Appends whole chunks, H x chunks x c x D, to one bank."""
        num_chunks, stored_before = keys.size(1), self.num_own_chunks[bank]
        # more chunks than slots: the first of them would be overwritten in the same call
        kept = min(num_chunks, self.num_slots)
        first = self.num_written[bank] + num_chunks - kept
        self.num_written[bank] += num_chunks
        skipped = (self.shard - first) % self.num_shards  # of other shards, before our first
        own = slice(num_chunks - kept + skipped, None, self.num_shards)
        keys, values = keys[:, own], values[:, own]
        if keys.size(1) == 0:
            return
        device = self.chunk_keys.device
        numbers = torch.arange(first + skipped, first + kept, self.num_shards, device=device)
        slots = numbers // self.num_shards % self.chunk_keys.size(2)
        means = keys.float().mean(dim=2)  # H x own x D
        self.chunk_keys[bank][:, slots] = means.to(device)
        self.index.write(bank, slots, stored_before, self.num_own_chunks[bank])
        rows = self._first_rows(bank, device) + slots  # H x own
        self.store.write(rows.flatten(), keys.flatten(0, 1), values.flatten(0, 1))

    def _first_rows(self, bank: int, device: Optional[torch.device] = None) -> Tensor:
        """The row of the store where each head of a bank begins, H x 1."""
        heads = torch.arange(self.num_heads, device=device).view(-1, 1)
        return (bank * self.num_heads + heads) * self.chunk_keys.size(2)

    @torch.no_grad()
    def retrieve(
        self, queries: Tensor, banks: Optional[Sequence[int]] = None
    ) -> Optional[Retrieved]:
        """For every query the K tokens of the R chunks with the largest inner product.

        Args:
            queries: b x H x T x D, unscaled
            banks: the bank that each of the b rows asks (default: the first b streams' own)

        Returns:
            None when no bank that is asked has a complete chunk.
        """
        self._check_rows("queries", queries, any_number=banks is not None)
        streams, heads, tokens, head_dim = queries.shape
        if banks is None:
            banks = range(streams) if self.scope == "stream" else [0] * streams
        if not any(self.num_chunks[bank] for bank in banks):
            return None
        num_stored, num_retrieved = self.num_own_chunks, self.k // self.chunk_size
        queries = queries.float()
        shape = (streams, heads, tokens, num_retrieved)
        chunks = torch.empty(shape, dtype=torch.long, device=queries.device)
        for bank in sorted(set(banks)):  # one search for all rows that ask the same bank
            rows = [row for row, asked in enumerate(banks) if asked == bank]
            asked = torch.cat([queries[row] for row in rows], dim=1)  # H x rows * T x D
            found = self.index.search(bank, asked, num_stored[bank], num_retrieved)
            for row, own in zip(rows, found.chunk(len(rows), dim=1), strict=True):
                chunks[row] = own
        first = torch.stack([self._first_rows(bank, chunks.device) for bank in banks])  # B x H x 1
        rows = chunks.clamp(min=0) + first.unsqueeze(-1)  # B x H x T x R
        return Retrieved(chunks, rows, self.store)

    def _check_rows(self, name: str, tensor: Tensor, any_number: bool = False) -> None:
        streams, heads, _, head_dim = tensor.shape
        too_many = streams > self.num_streams and not any_number
        if too_many or (heads, head_dim) != (self.num_heads, self.head_dim):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} do not fit a bank of (streams, heads, "
                f"head_dim) {(self.num_streams, self.num_heads, self.head_dim)}"
            )


def check_sizes(memory_size: int, chunk_size: int, k: int) -> None:
    """Raises ValueError naming the option, for sizes no bank can have."""
    for option, value in (("--memory-size", memory_size), ("--chunk-size", chunk_size), ("--k", k)):
        if value < 1:
            raise ValueError(f"{option} ({value}) must be at least 1")
    for option, value in (("--memory-size", memory_size), ("--k", k)):
        if value % chunk_size != 0:
            raise ValueError(
                f"{option} ({value}) must be a multiple of --chunk-size ({chunk_size})"
            )
    if k > memory_size:
        raise ValueError(f"--k ({k}) must not exceed --memory-size ({memory_size})")
