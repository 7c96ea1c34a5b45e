"""What a search finds.

B streams, T tokens, H heads, D head_dim, R chunks retrieved per query, K tokens of them.
"""

from typing import NamedTuple, Tuple

from torch import Tensor

from longmem_fairseq.memory.chunk_store import ChunkStore


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
