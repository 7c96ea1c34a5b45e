"""One pass over some tokens: what it looks up in memory, predicts, and leaves to be memorized.

B streams, T tokens, H heads, H' key/value heads, D head_dim, E numbers of a search key, V vocabulary.
"""

from typing import Callable, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.modules import Pointer

Retrieve = Callable[[Tensor], Optional[Retrieved]]


class Entries(NamedTuple):
    """Memory entries of tokens: keys and values B x H' x T x D, and, for search ``hidden``, search keys
    B x T x E; see :meth:`MemoryBank.write`."""

    keys: Tensor
    values: Tensor
    search_keys: Optional[Tensor] = None

    def of_tokens(self, tokens: slice) -> "Entries":
        """The entries of some of the T tokens."""
        keys, values = self.keys[:, :, tokens], self.values[:, :, tokens]
        return Entries(
            keys, values, None if self.search_keys is None else self.search_keys[:, tokens]
        )

    @staticmethod
    def in_one_row(parts: Sequence["Entries"]) -> "Entries":
        """The rows of all *parts*, one after another, as one row."""
        keys, values = (
            torch.cat([t.transpose(0, 1).flatten(1, 2) for t in tensors], dim=1).unsqueeze(0)
            for tensors in ([part.keys for part in parts], [part.values for part in parts])
        )
        if parts[0].search_keys is None:
            return Entries(keys, values)
        search_keys = torch.cat([part.search_keys.flatten(0, 1) for part in parts])
        return Entries(keys, values, search_keys.unsqueeze(0))


class Lookup:
    """A search of memory that remembers its queries and its result.

    queries: of the layer that reads memory, B x H' x n x D; None where no layer does
    found: the result; None where nothing is memorized

    Args:
        retrieve: see :meth:`JointAttention.forward`
        found: the result of a search for all heads at once
    """

    def __init__(self, retrieve: Retrieve, found: Optional[Retrieved] = None):
        self.retrieve, self.found = retrieve, found
        self.queries: Optional[Tensor] = None

    def __call__(self, queries: Tensor) -> Optional[Retrieved]:
        self.queries, self.found = queries, self.retrieve(queries)
        return self.found


class Reading(NamedTuple):
    """The result of reading T tokens.

    logits: B x T x V, before the pointer; None where targets were given
    entries: to be memorized; None without memory
    pointer: to be mixed into the prediction; None without one, or where nothing was found
    lookup: the search of memory; None where there was none
    losses: of the targets (nats, B x T), the pointer mixed in; None without targets
    """

    logits: Optional[Tensor]
    entries: Optional[Entries] = None
    pointer: Optional[Pointer] = None
    lookup: Optional[Lookup] = None
    losses: Optional[Tensor] = None

    @property
    def scores(self) -> Tensor:
        """Logits of the prediction, B x T x V; with a pointer they are log-probabilities."""
        return self.logits if self.pointer is None else self.pointer.mixed(self.logits)
