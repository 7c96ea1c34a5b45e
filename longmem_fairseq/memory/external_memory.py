"""The memory a model holds: one bank for training, another for evaluation."""

import time
from contextlib import contextmanager
from typing import Dict, Optional

import torch
from torch import Tensor

from longmem_fairseq.memory.memory_bank import MemoryBank, Retrieved


class ExternalMemory:
    """Memory banks of a model, made when the number of streams is known.

    Training and evaluation read different documents, so each has its bank: a validation in the
    middle of an epoch leaves the training streams as they were.

    Args:
        num_heads, head_dim: H, D of the cached layer
        options: keyword arguments of :class:`MemoryBank` (memory_size, chunk_size, k, scope, index)
    """

    def __init__(self, num_heads: int, head_dim: int, **options):
        self.num_heads, self.head_dim, self.options = num_heads, head_dim, options
        self.banks: Dict[bool, MemoryBank] = {}
        self.bank: Optional[MemoryBank] = None  # of the current forward
        self.read_only = False
        self.retrieval_seconds = 0.0  # of the current forward
        self.retrieved_chunks: Optional[Tensor] = None  # of the current forward

    def begin(
        self,
        num_streams: int,
        new_document: Optional[Tensor],
        training: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Chooses the bank of this forward and forgets the rows that start a new document.

        Raises:
            ValueError: the number of streams changed in the middle of their documents
        """
        self.retrieval_seconds, self.retrieved_chunks = 0.0, None
        bank = self.banks.get(training)
        if self.read_only and bank is not None:
            self.bank = bank
            return
        if bank is None or bank.num_streams != num_streams or bank.keys.device != device:
            in_document = new_document is None or not new_document.all()
            if bank is not None and any(bank.num_written + bank.num_pending) and in_document:
                raise ValueError(
                    f"{num_streams} streams cannot continue the documents of {bank.num_streams}: "
                    "keep --batch-size constant until every stream starts a new document"
                )
            bank = MemoryBank(
                num_streams,
                self.num_heads,
                self.head_dim,
                dtype=dtype,
                device=device,
                **self.options,
            )
            self.banks[training] = bank
        elif new_document is not None:
            bank.reset(new_document)
        self.bank = bank

    def retrieve(self, queries: Tensor) -> Optional[Retrieved]:
        """See :meth:`MemoryBank.retrieve`."""
        start = time.perf_counter()
        retrieved = self.bank.retrieve(queries.detach())
        self.retrieval_seconds += time.perf_counter() - start
        self.retrieved_chunks = None if retrieved is None else retrieved.chunks
        return retrieved

    def write(self, keys: Tensor, values: Tensor, valid: Tensor) -> None:
        """See :meth:`MemoryBank.write`."""
        if not self.read_only:
            self.bank.write(keys.detach(), values.detach(), valid)

    def reset(self) -> None:
        """Forgets everything."""
        self.banks = {}

    @contextmanager
    def frozen(self):
        """Inside, the memory is read but neither written nor reset."""
        before, self.read_only = self.read_only, True
        try:
            yield
        finally:
            self.read_only = before

    def statistics(self, gate: Tensor) -> Dict:
        """What a forward reports: gate (mean over heads), memory_tokens that a query could find
        (mean over banks), retrieval_seconds, retrieved_chunks (B x H x T x R or None).

        Args:
            gate: of the memory layer, H
        """
        tokens = self.bank.num_tokens
        return {
            "gate": gate.detach().mean(),
            "memory_tokens": sum(tokens) / len(tokens),
            "retrieval_seconds": self.retrieval_seconds,
            "retrieved_chunks": self.retrieved_chunks,
        }
