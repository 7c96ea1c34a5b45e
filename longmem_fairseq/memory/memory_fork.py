"""One memory under several hypotheses.

B hypotheses, T tokens, H heads, D head_dim.
"""

from typing import List, Optional

from torch import Tensor

from longmem_fairseq.memory.memory_bank import MemoryBank, Retrieved


class MemoryFork:
    """A memory that several hypotheses read, and to which each adds what only it has read.

    The bank it starts from is never written: the first write makes a copy for every hypothesis.

    Args:
        bank: what is remembered at first; all hypotheses read its first stream
        num_hypotheses: B
        read_only: nothing is added
    """

    def __init__(self, bank: MemoryBank, num_hypotheses: int, read_only: bool = False):
        self.bank, self.read_only = bank, read_only
        self.banks: List[int] = [0] * num_hypotheses  # the one of every hypothesis
        self._is_original = True

    def retrieve(self, queries: Tensor) -> Optional[Retrieved]:
        """See :meth:`MemoryBank.retrieve`; B x H x T x D."""
        return self.bank.retrieve(queries, self.banks)

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Appends T tokens to the memory of every hypothesis; B x H x T x D.

        Raises:
            ValueError: see :meth:`MemoryBank.write`
        """
        if self.read_only:
            return
        own = list(range(len(self.banks)))
        if self._is_original or self.banks != own:
            self.bank, self.banks, self._is_original = self.bank.select(self.banks), own, False
        self.bank.write(keys, values)

    def reorder(self, order: Tensor) -> None:
        """Hypothesis i goes on as hypothesis ``order[i]``."""
        self.banks = [self.banks[i] for i in order.tolist()]
