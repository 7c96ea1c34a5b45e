"""The memory bank: keys and values of everything a stream has read.

B streams, N banks, T tokens, H heads, D head_dim, S slots (one chunk each), c chunk_size in tokens,
R chunks retrieved per query, K = R * c tokens retrieved per query, n rows of one gather.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.chunk_store import DTYPES, STORAGES, ChunkStore, Placement
from longmem_fairseq.memory.factory_index import make_index
from longmem_fairseq.memory.memory_file import read_memory_file, write_memory_file


class Source(NamedTuple):
    """From token *first* of a bank on (counted from its last reset), what was written is document
    *name* (None: nobody said which) from its token *offset* on."""

    first: int
    name: Optional[str]
    offset: int


class Retrieved(NamedTuple):
    """What every query found: chunks that are still in the bank.

    chunks: B x H x T x R slot numbers, -1 where there was none
    rows: B x H x T x R rows of *store*, any where there was none
    store: where the keys and values are, until the bank is written again
    """

    chunks: Tensor
    rows: Tensor
    store: ChunkStore

    @property
    def valid(self) -> Tensor:
        """B x H x T x K, False where the bank held fewer than K tokens."""
        return self.chunks.ge(0).repeat_interleave(self.store.chunk_size, dim=-1)

    def tokens(self) -> Tuple[Tensor, Tensor]:
        """Keys and values, B x H x T x K x D, all at once."""
        num_tokens = self.rows.size(-1) * self.store.chunk_size
        shape = (*self.rows.shape[:-1], num_tokens, self.store.head_dim)
        keys, values = self.store.gather(self.rows.flatten())
        return keys.view(shape), values.view(shape)


class MemoryBank:
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
        fingerprint: of the backbone whose keys and values these are, hexadecimal
        tensors: buffers to use in place instead of new ones, by the names of :meth:`state_dict`

    Raises:
        ValueError: a size or a name does not fit
    """

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
        self.device = torch.device(device or "cpu")
        self.num_slots = memory_size // chunk_size
        num_banks = num_streams if scope == "stream" else 1
        slots = (num_banks, num_heads, self.num_slots)
        placement = Placement(storage, self.device, directory, tensors)
        self.store = ChunkStore(slots, chunk_size, head_dim, dtype, placement)
        if index not in ("torch", "flat"):
            placement = placement._replace(device=None)  # faiss's own indices are on the CPU
        elif storage == "host" or self.device.type != "cpu":
            placement = placement._replace(storage="device")
        self.chunk_keys = placement.buffer("chunk_keys", (*slots, head_dim), torch.float32)
        self.chunk_keys = self.chunk_keys.to(placement.device or "cpu")  # from a file's mapping
        self.index = make_index(self.chunk_keys, index, index_parameters)
        pending = (num_banks, num_heads, chunk_size, head_dim)
        pending_dtype = torch.float32 if dtype == "int8" else DTYPES[dtype]
        self.pending_keys = torch.zeros(pending, dtype=pending_dtype, device=self.device)
        self.pending_values = torch.zeros_like(self.pending_keys)
        self.num_written = [0] * num_banks  # chunks since the last reset, evicted ones too
        self.num_pending = [0] * num_banks  # tokens of the chunk that is not full yet
        self.sources: List[List[Source]] = [[] for _ in range(num_banks)]

    @property
    def num_chunks(self) -> List[int]:
        """Stored chunks of every bank."""
        return [min(written, self.num_slots) for written in self.num_written]

    @property
    def num_tokens(self) -> List[int]:
        """Tokens of every bank that a query can find (those of an incomplete chunk can not)."""
        return [chunks * self.chunk_size for chunks in self.num_chunks]

    @property
    def num_bytes(self) -> int:
        """Size of the buffers when full, without what an approximate index adds."""
        buffers = (self.chunk_keys, *self.store.buffers().values())
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def reset(self, rows: Optional[Tensor] = None) -> None:
        """Forgets the streams marked in *rows* (bool, for the first of B streams; default: all).

        With scope ``batch`` the rows share one bank, which is forgotten once every row is marked.
        """
        if rows is None:
            rows = torch.ones(self.num_streams, dtype=torch.bool)
        if self.scope == "batch":
            rows = (rows.all() & (len(rows) > 0)).view(1)
        for bank in rows.nonzero().flatten().tolist():
            self.num_written[bank] = self.num_pending[bank] = 0
            self.sources[bank] = []
            self.index.reset(bank)

    def begin_document(self, row: int, name: str, offset: int = 0) -> None:
        """What is written to stream *row* from now on is document *name* from token *offset* on."""
        bank = row if self.scope == "stream" else 0
        first = self.num_written[bank] * self.chunk_size + self.num_pending[bank]
        self.sources[bank].append(Source(first, name, offset))

    def locate(self, bank: int, slot: int) -> Optional[Source]:
        """Where the first token of a stored chunk came from, None if nobody said.

        Returns:
            its number in the bank, its document, and its offset there
        """
        written = self.num_written[bank]
        if not 0 <= slot < self.num_chunks[bank]:
            raise ValueError(f"slot {slot} of a bank that holds {self.num_chunks[bank]} chunks")
        chunk = written - 1 - (written - 1 - slot) % self.num_slots
        source = self._sources_from(bank, chunk * self.chunk_size)[0]
        return None if source.name is None else source

    def _sources_from(self, bank: int, token: int) -> List[Source]:
        """The sources of the tokens from *token* on, the first of which begins there."""
        current, later = Source(token, None, 0), []
        for source in self.sources[bank]:
            if source.first <= token:
                current = Source(token, source.name, source.offset + token - source.first)
            else:
                later.append(source)
        return [current, *later]

    @torch.no_grad()
    def write(self, keys: Tensor, values: Tensor, valid: Optional[Tensor] = None) -> None:
        """Appends T tokens to each of the first b <= B streams.

        Args:
            keys, values: b x H x T x D
            valid: b x T, False for padding, which is not stored (default: all are)

        Raises:
            ValueError: the shapes do not fit; or the bank is full, and its index cannot forget (then
                nothing at all is written)
        """
        self._check_rows("keys", keys)
        self._check_rows("values", values)
        tokens = [keys.size(2)] * keys.size(0) if valid is None else valid.sum(dim=1).tolist()
        self._check_room(tokens if self.scope == "stream" else [sum(tokens)])
        for row, stored in enumerate(tokens):
            bank = row if self.scope == "stream" else 0
            row_keys, row_values = keys[row], values[row]
            if stored < keys.size(2):
                row_keys, row_values = row_keys[:, valid[row]], row_values[:, valid[row]]
            self._append(bank, row_keys, row_values)

    def _check_room(self, tokens: List[int]) -> None:
        """Raises ValueError if the index cannot make room for so many *tokens* of the first banks."""
        if self.index.can_remove:
            return
        for bank, new in enumerate(tokens):
            num_chunks = self.num_chunks[bank] + (self.num_pending[bank] + new) // self.chunk_size
            if num_chunks > self.num_slots:
                raise ValueError(
                    f"this --memory-index cannot forget chunks, and the bank of {self.memory_size:,} "
                    "tokens is full: raise --memory-size, or choose an index that can (torch, IVF...)"
                )

    def _append(self, bank: int, keys: Tensor, values: Tensor) -> None:
        """Appends H x T x D keys and values, of any type and device, to one bank."""
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
        num_chunks, stored_before = keys.size(1), self.num_chunks[bank]
        # more chunks than slots: the first of them would be overwritten in the same call
        kept = min(num_chunks, self.num_slots)
        first = self.num_written[bank] + num_chunks - kept
        slots = torch.arange(first, first + kept, device=self.chunk_keys.device) % self.num_slots
        means = keys[:, -kept:].float().mean(dim=2)  # H x kept x D
        self.chunk_keys[bank][:, slots] = means.to(self.chunk_keys.device)
        self.num_written[bank] += num_chunks
        self.index.write(bank, slots, stored_before, self.num_chunks[bank])
        rows = self._first_rows(bank).to(slots.device) + slots  # H x kept
        self.store.write(
            rows.flatten(), keys[:, -kept:].flatten(0, 1), values[:, -kept:].flatten(0, 1)
        )

    def _first_rows(self, bank: int) -> Tensor:
        """The row of the store where each head of a bank begins, H x 1."""
        heads = torch.arange(self.num_heads).view(-1, 1)
        return (bank * self.num_heads + heads) * self.num_slots

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
        num_stored = self.num_chunks
        if not any(num_stored[bank] for bank in banks):
            return None
        queries, num_retrieved = queries.float(), self.k // self.chunk_size
        shape = (streams, heads, tokens, num_retrieved)
        chunks = torch.empty(shape, dtype=torch.long, device=queries.device)
        for bank in sorted(set(banks)):  # one search for all rows that ask the same bank
            rows = [row for row, asked in enumerate(banks) if asked == bank]
            asked = queries[rows].transpose(0, 1).flatten(1, 2)  # H x rows * T x D
            found = self.index.search(bank, asked, num_stored[bank], num_retrieved)
            chunks[rows] = found.view(heads, len(rows), tokens, -1).transpose(0, 1)
        first = torch.stack([self._first_rows(bank) for bank in banks])  # B x H x 1
        rows = chunks.clamp(min=0) + first.unsqueeze(-1).to(chunks.device)  # B x H x T x R
        return Retrieved(chunks, rows, self.store)

    def select(self, banks: Sequence[int]) -> "MemoryBank":
        """A new bank with a stream for each of *banks*, which starts as a copy of it.

        With the same options, but for scope ``stream``.
        """
        selected = MemoryBank(len(banks), self.num_heads, self.head_dim, **self.options)
        buffers = {**selected.store.buffers(), "chunk_keys": selected.chunk_keys}
        pending = ("pending_keys", "pending_values")
        for stream, bank in enumerate(banks):
            stored = self.num_chunks[bank]
            for name, buffer in {**self.store.buffers(), "chunk_keys": self.chunk_keys}.items():
                buffers[name][stream, :, :stored] = buffer[bank, :, :stored]
            for name in pending:
                getattr(selected, name)[stream] = getattr(self, name)[bank]
            selected.num_written[stream] = self.num_written[bank]
            selected.num_pending[stream] = self.num_pending[bank]
            selected.sources[stream] = list(self.sources[bank])
            selected.index.copy_bank(stream, self.index, bank)
        return selected

    def extend(self, other: "MemoryBank") -> None:
        """Appends everything that *other* holds to this bank, oldest first.

        An incomplete chunk of this bank is completed by the first tokens of *other*, so that none is
        lost or padded; the chunks of *other* are then cut at other tokens than they were.

        Raises:
            ValueError: the banks differ in something that their keys depend on, are the same, or this
                one's index cannot make room; this bank is left as it was
        """
        if other is self:
            raise ValueError("a memory cannot be extended by itself")
        self._check_same(other.header(), ("num_streams", "num_heads", "head_dim", "scope"))
        check_fingerprint("a memory", other.fingerprint, self.fingerprint)
        held = [sum(tokens) for tokens in zip(other.num_tokens, other.num_pending, strict=True)]
        self._check_room(held)
        for bank, written in enumerate(other.num_written):
            if held[bank] == 0:
                continue
            stored = other.num_chunks[bank]
            first = self.num_written[bank] * self.chunk_size + self.num_pending[bank]
            evicted = (written - stored) * other.chunk_size
            for source in other._sources_from(bank, evicted):
                self.sources[bank].append(source._replace(first=source.first - evicted + first))
            for start in range(written - stored, written, 4096):  # chunks, bounded in memory
                chunks = torch.arange(start, min(start + 4096, written))
                rows = other._first_rows(bank) + chunks % other.num_slots  # H x n
                shape = (self.num_heads, -1, self.head_dim)
                self._append(bank, *(t.view(shape) for t in other.store.gather(rows.flatten())))
            pending = slice(other.num_pending[bank])
            self._append(
                bank, other.pending_keys[bank, :, pending], other.pending_values[bank, :, pending]
            )

    def save(self, path: str) -> None:
        """Writes the bank to a file, at once or not at all; see :mod:`memory_file`.

        Raises:
            OSError: the file cannot be written
        """
        write_memory_file(path, self.header(), self.state_dict())

    @classmethod
    def load(
        cls, path: str, fingerprint: str = "", memory_map: bool = False, **options
    ) -> "MemoryBank":
        """The bank of a file.

        Args:
            fingerprint: of the backbone that will read it; "" for any
            memory_map: leave keys and values in the file, from which only what is searched or
                retrieved is read. Their checksums are not compared, the bank is as large as what is
                stored, and what is written to it stays in main memory. (A bank of fewer than k
                tokens is read.)
            options: further arguments of :class:`MemoryBank`, such as index or storage; those that
                the file has too, except k, must be the same

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is damaged, foreign, or of another backbone or other sizes
        """
        header, tensors = read_memory_file(path, verify=not memory_map)
        names = ("num_heads", "head_dim", "memory_size", "chunk_size", "scope", "dtype")
        for name in names:
            if options.get(name, header[name]) != header[name]:
                raise ValueError(
                    f"{path} holds a memory with {name.replace('_', ' ')} {header[name]}, not "
                    f"{options[name]}: give the options that it was saved with"
                )
        check_fingerprint(path, header["fingerprint"], fingerprint)
        sizes = {name: header[name] for name in ("num_streams", *names, "k", "fingerprint")}
        stored = tensors["keys"].size(2) * header["chunk_size"]
        if memory_map and stored >= options.get("k", header["k"]):
            header["memory_size"] = options["memory_size"] = stored
            options["tensors"] = tensors
        bank = cls(**{**sizes, **options})
        try:
            bank.load_state_dict(header, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return bank

    def state_dict(self) -> Dict[str, Tensor]:
        """Views of everything that is stored; with :meth:`header` all that it takes to go on."""
        stored = max(self.num_chunks)
        state = {"chunk_keys": self.chunk_keys[:, :, :stored]}
        for name, buffer in self.store.buffers().items():
            state[name] = buffer[:, :, :stored]
        state["pending_keys"], state["pending_values"] = self.pending_keys, self.pending_values
        state.update({f"index.{name}": t for name, t in self.index.state_dict().items()})
        return state

    def header(self) -> Dict:
        """Sizes, fill and sources, for JSON."""
        names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "k", "scope")
        names += ("dtype", "fingerprint", "num_written", "num_pending", "sources")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, header: Dict, state: Dict[str, Tensor]) -> None:
        """Takes over :meth:`header` and :meth:`state_dict` of a bank of the same sizes.

        Raises:
            ValueError: of other sizes or another backbone; this bank is left as it was
        """
        names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "scope")
        self._check_same(header, (*names, "dtype"))
        check_fingerprint("the memory", header["fingerprint"], self.fingerprint)
        own = {"chunk_keys": self.chunk_keys, **self.store.buffers()}
        for name, buffer in own.items():
            if buffer is not state[name]:
                buffer[:, :, : state[name].size(2)] = state[name]
        self.pending_keys.copy_(state["pending_keys"])
        self.pending_values.copy_(state["pending_values"])
        self.num_written = list(header["num_written"])
        self.num_pending = list(header["num_pending"])
        self.sources = [[Source(*source) for source in bank] for bank in header["sources"]]
        index = {n.removeprefix("index."): t for n, t in state.items() if n.startswith("index.")}
        self.index.load_state_dict(index, self.num_chunks)

    def _check_same(self, header: Dict, names: Sequence[str]) -> None:
        for name in names:
            if header[name] != getattr(self, name):
                raise ValueError(
                    f"a memory with {name.replace('_', ' ')} {header[name]} does not fit one with "
                    f"{getattr(self, name)}"
                )

    def _check_rows(self, name: str, tensor: Tensor, any_number: bool = False) -> None:
        streams, heads, _, head_dim = tensor.shape
        too_many = streams > self.num_streams and not any_number
        if too_many or (heads, head_dim) != (self.num_heads, self.head_dim):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} do not fit a bank of (streams, heads, "
                f"head_dim) {(self.num_streams, self.num_heads, self.head_dim)}"
            )


def check_fingerprint(memory: str, found: str, expected: str) -> None:
    """Raises ValueError where *memory* is of the backbone *found*, not *expected*; "" is any."""
    if found and expected and found != expected:
        raise ValueError(
            f"{memory} holds keys of the backbone {found[:16]}, not of {expected[:16]}: encode the "
            "documents again with this backbone"
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
