"""The result of a search.

B streams, T tokens, H heads of the store, H* searches per query (H, or 1 for all),
D head_dim, R chunks retrieved per query of c tokens each, K = R * c tokens retrieved per query.
"""

from typing import NamedTuple, Optional, Tuple

from torch import Tensor

from longmem_fairseq.memory.chunk_store import ChunkStore


class Retrieved(NamedTuple):
    """The chunks that every query retrieved, which are still in the bank.

    chunks: B x H* x T x R slot numbers, -1 where there were fewer
    rows: B x H x T x R rows of *store*, any where there were fewer
    store: of the keys and values, until the bank is written again
    scores: B x T x R inner products of query and search key, -inf where there were fewer; None
        where every head searched for itself
    token_ids: B x T x K, -1 where unknown; None as *scores*
    matches: how many tokens before each retrieved one equal the query's and those before it, B x T x K;
        None where the search was given no contexts
    """

    chunks: Tensor
    rows: Tensor
    store: ChunkStore
    scores: Optional[Tensor] = None
    token_ids: Optional[Tensor] = None
    matches: Optional[Tensor] = None

    @property
    def valid(self) -> Tensor:
        """B x H* x T x K, False where the bank held fewer than K tokens."""
        return self.chunks.ge(0).repeat_interleave(self.store.chunk_size, dim=-1)

    def tokens(self) -> Tuple[Tensor, Tensor]:
        """Keys and values, B x H x T x K x D, all at once."""
        num_tokens = self.rows.size(-1) * self.store.chunk_size
        shape = (*self.rows.shape[:-1], num_tokens, self.store.head_dim)
        keys, values = self.store.gather(self.rows.flatten())
        return keys.view(shape), values.view(shape)

    def from_query(self, first: int) -> "Retrieved":
        """Those of the queries from *first* on, where all heads retrieved the same."""
        chunks, rows = (tensor[:, :, first:] for tensor in (self.chunks, self.rows))
        by_token = (self.scores, self.token_ids, self.matches)
        by_token = (None if tensor is None else tensor[:, first:] for tensor in by_token)
        return Retrieved(chunks, rows, self.store, *by_token)

    def for_heads(self, group: int) -> "Retrieved":
        """The same for G query heads of every head of the store: chunks and rows B x H * G x T x R."""
        chunks = self.chunks.expand(self.rows.shape)
        chunks, rows = (t.repeat_interleave(group, dim=1) for t in (chunks, self.rows))
        return self._replace(chunks=chunks, rows=rows)
