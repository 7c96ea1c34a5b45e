"""Places of a memory after the same words: found by token ids, whatever their states resemble.

In a large memory more places resemble a state than a query retrieves; the name that was stated once is
found among them by the words before it.

T queries, n tokens in memory, M tokens of a context.
"""

from typing import List, NamedTuple

import torch
from torch import Tensor

LENGTHS = (3, 2)  # tokens before a place that equal those before the prediction
BITS = 21  # of a token id in a key
PER_QUERY = (
    16  # of so many chunks that a query retrieves, one is after the same words, for each length
)


class _Sorted(NamedTuple):
    """Places in the order of the tokens before them, then of their age: keys and places, each at most
    n."""

    keys: Tensor
    places: Tensor


class LiteralPlaces:
    """Finds the latest places after the same tokens.

    Args:
        ids: of n tokens in memory
        first: the number of the first of them
    """

    def __init__(self, ids: Tensor, first: int):
        self.tables: List[_Sorted] = []
        for length in LENGTHS:
            windows = ids.new_empty(0, length)
            if len(ids) > length:
                windows = ids.unfold(0, length, 1)[:-1].flip(1)  # the newest first
            ordered = keys_of(windows, length).sort(stable=True)
            self.tables.append(_Sorted(ordered.values, ordered.indices + first + length))

    def latest(self, contexts: Tensor, count: int) -> Tensor:
        """For each of LENGTHS the *count* latest places after as many tokens of each context, the
        latest first: T x 2 * count numbers, -1 where there are fewer.

        Args:
            contexts: T x M token ids, the newest first; negative where there are none
        """
        found: List[Tensor] = []
        for length, table in zip(LENGTHS, self.tables, strict=True):
            wanted = keys_of(contexts, length)
            after = torch.searchsorted(table.keys, wanted, right=True)
            rows = after.unsqueeze(1) - 1 - torch.arange(count)  # T x count
            if len(table.keys) == 0:
                found.append(torch.full_like(rows, -1))
                continue
            wanted = wanted.masked_fill(wanted < 0, -2).unsqueeze(1)  # unlike an unknown token's
            there = (rows >= 0) & (table.keys[rows.clamp(min=0)] == wanted)
            found.append(table.places[rows.clamp(min=0)].masked_fill(~there, -1))
        return torch.cat(found, dim=1)


def keys_of(contexts: Tensor, length: int) -> Tensor:
    """One number for the first *length* of T x M ids, T; negative where one of them is."""
    ids = contexts[:, :length].long()
    keys = (ids << torch.arange(0, BITS * length, BITS)).sum(dim=1)
    return keys.masked_fill((ids < 0).any(dim=1), -1)
