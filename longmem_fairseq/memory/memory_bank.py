"""The memory bank: keys and values of everything a stream has read.

B streams, T tokens, H heads, D head_dim, S slots (one chunk each), c chunk_size in tokens,
R chunks retrieved per query, K = R * c tokens retrieved per query.
"""

from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from longmem_fairseq.memory.search import SEARCHES


class Retrieved(NamedTuple):
    """What a query found.

    keys, values: B x H x T x K x D
    valid: B x H x T x K, False where the bank held fewer than K tokens
    chunks: B x H x T x R slot numbers, -1 where there was none
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    chunks: Tensor


class MemoryBank:
    """A ring buffer of chunks for each stream and head, searched exactly.

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
        index: ``flat`` (faiss) or ``torch``
        dtype, device: of the stored keys and values; the search keys are float32

    Raises:
        ValueError: a size does not fit
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
        index: str = "flat",
        dtype: torch.dtype = torch.float32,
        device: Optional[torch.device] = None,
    ):
        check_sizes(memory_size, chunk_size, k)
        if scope not in ("stream", "batch"):
            raise ValueError(f"--memory-scope ({scope}) must be stream or batch")
        if index not in SEARCHES:
            raise ValueError(f"--memory-index ({index}) must be one of {', '.join(SEARCHES)}")
        self.num_streams, self.scope = num_streams, scope
        self.num_heads, self.head_dim = num_heads, head_dim
        self.memory_size, self.chunk_size, self.k = memory_size, chunk_size, k
        self.search = SEARCHES[index]
        self.num_slots = memory_size // chunk_size
        num_banks = num_streams if scope == "stream" else 1
        slots = (num_banks, num_heads, self.num_slots)
        # zeros, not empty: a masked slot takes part in the products with weight 0, and 0 * NaN is NaN
        self.chunk_keys = torch.zeros(*slots, head_dim, device=device)
        self.keys = torch.zeros(*slots, chunk_size, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.pending_keys = torch.zeros(
            num_banks, num_heads, chunk_size, head_dim, dtype=dtype, device=device
        )
        self.pending_values = torch.zeros_like(self.pending_keys)
        self.num_written = [0] * num_banks  # chunks since the last reset, evicted ones too
        self.num_pending = [0] * num_banks  # tokens of the chunk that is not full yet

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
        """Size of the buffers when full."""
        buffers = (self.chunk_keys, self.keys, self.values)
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def reset(self, rows: Optional[Tensor] = None) -> None:
        """Forgets the streams marked in *rows* (B, bool; default: all).

        With scope ``batch`` the rows share one bank, which is forgotten once every row is marked.
        """
        if rows is None:
            rows = torch.ones(self.num_streams, dtype=torch.bool)
        if self.scope == "batch":
            rows = rows.all().view(1)
        for bank in rows.nonzero().flatten().tolist():
            self.num_written[bank] = self.num_pending[bank] = 0

    @torch.no_grad()
    def write(self, keys: Tensor, values: Tensor, valid: Optional[Tensor] = None) -> None:
        """Appends T tokens to every stream.

        Args:
            keys, values: B x H x T x D
            valid: B x T, False for padding, which is not stored (default: all are)
        """
        self._check_rows("keys", keys)
        for row in range(self.num_streams):
            bank = row if self.scope == "stream" else 0
            row_keys, row_values = keys[row], values[row]
            if valid is not None and not valid[row].all():
                row_keys, row_values = row_keys[:, valid[row]], row_values[:, valid[row]]
            self._append(bank, row_keys, row_values)

    def _append(self, bank: int, keys: Tensor, values: Tensor) -> None:
        """Appends H x T x D keys and values to one bank."""
        pending = self.num_pending[bank]
        keys = torch.cat([self.pending_keys[bank, :, :pending], keys.to(self.keys.dtype)], dim=1)
        values = torch.cat([self.pending_values[bank, :, :pending], values.to(keys.dtype)], dim=1)
        num_chunks, left = divmod(keys.size(1), self.chunk_size)
        if num_chunks > 0:
            shape = (self.num_heads, num_chunks, self.chunk_size, self.head_dim)
            whole = num_chunks * self.chunk_size
            # more chunks than slots: the first of them would be overwritten in the same call
            kept = min(num_chunks, self.num_slots)
            chunks = keys[:, :whole].reshape(shape)[:, -kept:]  # H x kept x c x D
            first = self.num_written[bank] + num_chunks - kept
            slots = torch.arange(first, first + kept, device=keys.device) % self.num_slots
            self.keys[bank][:, slots] = chunks
            self.values[bank][:, slots] = values[:, :whole].reshape(shape)[:, -kept:]
            self.chunk_keys[bank][:, slots] = chunks.float().mean(dim=2)
        self.num_written[bank] += num_chunks
        self.num_pending[bank] = left
        if left > 0:
            self.pending_keys[bank, :, :left] = keys[:, -left:]
            self.pending_values[bank, :, :left] = values[:, -left:]

    @torch.no_grad()
    def retrieve(self, queries: Tensor) -> Optional[Retrieved]:
        """For every query the K tokens of the R chunks with the largest inner product.

        Args:
            queries: B x H x T x D, unscaled

        Returns:
            None when no stream has a complete chunk.
        """
        self._check_rows("queries", queries)
        if not any(self.num_written):
            return None
        chunks = self._search(queries.float())  # B x H x T x R
        streams, heads, tokens, num_found = chunks.shape
        # one row of c * D numbers for every slot, one gather for all streams and heads
        offsets = torch.arange(self.num_heads, device=chunks.device) * self.num_slots
        offsets = offsets.view(1, -1, 1, 1)
        if self.scope == "stream":
            banks = torch.arange(streams, device=chunks.device).view(-1, 1, 1, 1)
            offsets = offsets + banks * (self.num_heads * self.num_slots)
        rows = (chunks.clamp(min=0) + offsets).flatten()
        width = self.chunk_size * self.head_dim
        shape = (streams, heads, tokens, num_found * self.chunk_size, self.head_dim)
        keys = self.keys.view(-1, width).index_select(0, rows).view(shape)  # B x H x T x K x D
        values = self.values.view(-1, width).index_select(0, rows).view(shape)  # B x H x T x K x D
        valid = chunks.ge(0).repeat_interleave(self.chunk_size, dim=-1)  # B x H x T x K
        return Retrieved(keys, values, valid, chunks)

    def _search(self, queries: Tensor) -> Tensor:
        """Slot numbers B x H x T x R of the best chunks, -1 where a bank holds fewer."""
        streams, heads, tokens, _ = queries.shape
        num_retrieved = self.k // self.chunk_size
        found = torch.full(
            (streams, heads, tokens, num_retrieved), -1, dtype=torch.long, device=queries.device
        )
        if self.scope == "batch":
            # the rows ask the same bank: one search for all of them
            queries = queries.transpose(0, 1).reshape(1, heads, streams * tokens, self.head_dim)
            found = found.view(1, heads, streams * tokens, num_retrieved)
        for bank, stored in enumerate(self.num_chunks):
            for head in range(heads if stored else 0):
                found[bank, head] = self.search(
                    queries[bank, head].contiguous(),
                    self.chunk_keys[bank, head, :stored],
                    num_retrieved,
                )
        if self.scope == "batch":
            found = found.view(heads, streams, tokens, num_retrieved).transpose(0, 1)
        return found

    def state_dict(self) -> Dict:
        """Everything that :meth:`load_state_dict` needs to go on as if nothing had happened."""
        stored = max(self.num_chunks)
        return {
            "sizes": self._sizes(),
            "num_written": list(self.num_written),
            "num_pending": list(self.num_pending),
            "chunk_keys": self.chunk_keys[:, :, :stored].clone(),
            "keys": self.keys[:, :, :stored].clone(),
            "values": self.values[:, :, :stored].clone(),
            "pending_keys": self.pending_keys.clone(),
            "pending_values": self.pending_values.clone(),
        }

    def load_state_dict(self, state: Dict) -> None:
        """Takes over a :meth:`state_dict`.

        Raises:
            ValueError: it comes from a bank of other sizes; this bank is left as it was
        """
        for name, size in self._sizes().items():
            if state["sizes"][name] != size:
                raise ValueError(
                    f"memory with {name} {state['sizes'][name]} does not fit a bank with {size}"
                )
        stored = state["keys"].size(2)
        for name in ("chunk_keys", "keys", "values"):
            getattr(self, name)[:, :, :stored] = state[name]
        self.pending_keys.copy_(state["pending_keys"])
        self.pending_values.copy_(state["pending_values"])
        self.num_written = list(state["num_written"])
        self.num_pending = list(state["num_pending"])

    def _sizes(self) -> Dict:
        names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "scope")
        return {name: getattr(self, name) for name in names}

    def _check_rows(self, name: str, tensor: Tensor) -> None:
        expected = (self.num_streams, self.num_heads, self.head_dim)
        if (tensor.size(0), tensor.size(1), tensor.size(3)) != expected:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} do not fit a bank of (streams, heads, "
                f"head_dim) {expected}"
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
