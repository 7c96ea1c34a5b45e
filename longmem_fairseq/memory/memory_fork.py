"""One memory under several hypotheses.

B hypotheses, T tokens, H heads, D head_dim.
"""

from typing import List, Optional

from torch import Tensor

from longmem_fairseq.memory.bank_copies import select_banks
from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.retrieved import Retrieved


class MemoryFork:
    """A memory that several hypotheses read, and to which each adds the tokens that it alone has read.

    The bank it starts from is never written: the first write makes a copy for every hypothesis.

    Args:
        bank: the memory at first; all hypotheses read its first stream
        num_hypotheses: B
        read_only: nothing is added
        document: the name of the added tokens, the first of which begins a document
    """

    def __init__(
        self,
        bank: MemoryBank,
        num_hypotheses: int,
        read_only: bool = False,
        document: Optional[str] = None,
    ):
        self.bank, self.read_only, self.document = bank, read_only, document
        self.banks: List[int] = [0] * num_hypotheses  # the one of every hypothesis
        self._is_original = True

    def retrieve(self, queries: Tensor, contexts: Optional[Tensor] = None) -> Optional[Retrieved]:
        """See :meth:`MemoryBank.retrieve`; B x H x T x D."""
        return self.bank.retrieve(queries, self.banks, contexts)

    def write(
        self,
        keys: Tensor,
        values: Tensor,
        token_ids: Tensor,
        search_keys: Optional[Tensor] = None,
        valid: Optional[Tensor] = None,
    ) -> None:
        """Appends T tokens to the memory of every hypothesis; see :meth:`MemoryBank.write`.

        Raises:
            ValueError: see :meth:`MemoryBank.write`
        """
        if self.read_only:
            return
        own = list(range(len(self.banks)))
        if self._is_original or self.banks != own:
            self.bank, self.banks = select_banks(self.bank, self.banks), own
        if self._is_original:
            for bank in own:
                self.bank.begin_document(bank, self.document, offset=-1)
            self._is_original = False
        self.bank.write(keys, values, valid, token_ids, search_keys)

    def reorder(self, order: Tensor) -> None:
        """Hypothesis i goes on as hypothesis ``order[i]``."""
        self.banks = [self.banks[i] for i in order.tolist()]
