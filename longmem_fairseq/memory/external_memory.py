"""The memory of a model: one bank for training, another for evaluation.

B streams, T tokens, H heads of the store, H* searches per query (H, or 1), D head_dim, R chunks
retrieved per query.
"""

import time
from contextlib import contextmanager
from typing import Dict, Optional, Sequence, Tuple, Type

import torch
from torch import Tensor

from longmem_fairseq.memory.bank_copies import copy_bank
from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.memory_fork import MemoryFork
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.utils.argument_error import ArgumentError


class ExternalMemory:
    """Memory banks of a model, made when the number of streams is known.

    Training and evaluation read different documents, so each has its bank: a validation in the
    middle of an epoch leaves the training streams as they were.

    Args:
        num_heads, head_dim: H, D of the cached layer
        bank_class: :class:`MemoryBank`, or one of the same methods
        options: keyword arguments of :class:`MemoryBank` but for the number of streams and the device
    """

    def __init__(
        self, num_heads: int, head_dim: int, bank_class: Type[MemoryBank] = MemoryBank, **options
    ):
        self.num_heads, self.head_dim, self.options = num_heads, head_dim, options
        self.bank_class = bank_class
        self.banks: Dict[bool, MemoryBank] = {}
        self.bank: Optional[MemoryBank] = None  # of the current forward
        self.read_only = False
        self.unwritten: Optional[tuple] = None  # the bank and the arguments of its next write
        self.retrieval_seconds = 0.0  # of the current forward
        self.retrieved_chunks: Optional[Tensor] = None  # of the current forward

    def begin(
        self,
        num_streams: int,
        new_document: Optional[Tensor],
        training: bool,
        device: torch.device,
    ) -> None:
        """Chooses the bank of this forward and forgets the rows that start a new document.

        The rows are the first *num_streams* streams of the bank: those that have run out of documents
        are the last ones and are no longer there.

        Raises:
            ArgumentError: there are more streams than before, in the middle of their documents
        """
        self.flush()
        self.retrieval_seconds, self.retrieved_chunks = 0.0, None
        bank = self.banks.get(training)
        if bank is not None and bank.device != device:  # it was loaded before the model was moved
            bank = self.banks[training] = self._moved(bank, device)
        if self.read_only and bank is not None:
            self.bank = bank
            return
        if bank is None or bank.layout.num_streams < num_streams:
            in_document = new_document is None or not new_document.all()
            if bank is not None and any(bank.num_written + bank.num_pending) and in_document:
                raise ArgumentError(
                    "{} streams cannot continue the documents of {}: keep {num_streams} constant until "
                    "every stream starts a new document",
                    num_streams,
                    bank.layout.num_streams,
                )
            bank = self.banks[training] = self._new_bank(num_streams, device)
        elif new_document is not None:
            bank.reset(new_document)
        self.bank = bank

    def _new_bank(self, num_streams: int, device: torch.device) -> MemoryBank:
        sizes = (num_streams, self.num_heads, self.head_dim)
        with torch.inference_mode(False):  # its tensors are written later, too
            return self.bank_class(*sizes, device=device, **self.options)

    def _moved(self, bank: MemoryBank, device: torch.device) -> MemoryBank:
        moved = self._new_bank(bank.layout.num_streams, device)
        moved.load_state_dict(bank.header(), bank.state_dict())
        return moved

    def retrieve(self, queries: Tensor, contexts: Optional[Tensor] = None) -> Optional[Retrieved]:
        """See :meth:`MemoryBank.retrieve`."""
        start = time.perf_counter()
        retrieved = self.bank.retrieve(queries.detach(), contexts=contexts)
        self.retrieval_seconds += time.perf_counter() - start
        self.retrieved_chunks = None if retrieved is None else retrieved.chunks
        return retrieved

    def write(
        self,
        keys: Tensor,
        values: Tensor,
        valid: Tensor,
        token_ids: Optional[Tensor] = None,
        search_keys: Optional[Tensor] = None,
    ) -> None:
        """See :meth:`MemoryBank.write`.

        Before a backward pass the segment waits until the next forward pass begins: the backward pass
        reads the retrieved chunks once more, so the bank has to stay as it is until then.
        """
        if self.read_only:
            return
        self.flush()
        if search_keys is not None:
            search_keys = search_keys.detach()
        self.unwritten = (self.bank, keys.detach(), values.detach(), valid, token_ids, search_keys)
        if not torch.is_grad_enabled():
            self.flush()

    def flush(self) -> None:
        """Writes the segment that waits, if there is one.

        Raises:
            ArgumentError: see :meth:`MemoryBank.write`
        """
        if self.unwritten is not None:
            bank, *segment = self.unwritten
            self.unwritten = None
            bank.write(*segment)

    def reset(self) -> None:
        """Forgets everything."""
        self.banks, self.bank, self.unwritten = {}, None, None

    def save(self, path: str, training: bool = True) -> bool:
        """Writes the bank of training or evaluation to a memory file; False if there is none yet.

        Raises:
            OSError: the file cannot be written
        """
        self.flush()
        if training not in self.banks:
            return False
        self.banks[training].save(path)
        return True

    def load(
        self,
        path: str,
        training: bool = True,
        device: Optional[torch.device] = None,
        memory_map: bool = False,
    ) -> None:
        """Makes the bank of a memory file that of training or evaluation.

        Raises:
            FileNotFoundError, ValueError: see :meth:`MemoryBank.load`; the file's sizes are not those
                of this model's options; or it has several streams, and is for evaluation; the bank is
                left as it was
        """
        options = {"num_heads": self.num_heads, "head_dim": self.head_dim, **self.options}
        with torch.inference_mode(False):
            bank = self.bank_class.load(path, memory_map=memory_map, device=device, **options)
        if not training:
            _check_single(path, bank)
        self.flush()
        self.banks[training] = bank

    def load_rows(
        self, rows: Sequence[Optional[Tuple[str, int]]], device: Optional[torch.device] = None
    ) -> None:
        """Makes a bank for training out of those of several memory files.

        Args:
            rows: for each of its streams a file and the stream there, or None for an empty one. One
                that the file does not have has never been written, and is empty too

        Raises:
            FileNotFoundError, ValueError: see :meth:`load`
        """
        self.flush()
        options = {"num_heads": self.num_heads, "head_dim": self.head_dim, **self.options}
        bank = self._new_bank(len(rows), device)
        for path in sorted({row[0] for row in rows if row is not None}):
            other = MemoryBank.load(path, device=device, **options)
            for stream, row in enumerate(rows):
                if row is not None and row[0] == path and row[1] < other.layout.num_streams:
                    copy_bank(bank, stream, other, row[1])
        self.banks[True] = bank

    def single_bank(self, device: torch.device) -> MemoryBank:
        """The bank of evaluation, of one stream; an empty one if there is none yet.

        Raises:
            ValueError: it has several streams
        """
        self.flush()
        bank = self.banks.get(False)
        if bank is None:
            bank = self.banks[False] = self._new_bank(1, device)
        elif bank.device != device:
            bank = self.banks[False] = self._moved(bank, device)
        _check_single("the memory", bank)
        return bank

    def fork(
        self, num_hypotheses: int, device: torch.device, document: Optional[str] = None
    ) -> MemoryFork:
        """The memory of evaluation, of one stream, for a reading that leaves it as it is.

        Args:
            document: see :class:`MemoryFork`

        Raises:
            ValueError: it has several streams
        """
        bank = self.single_bank(device)
        return MemoryFork(bank, num_hypotheses, self.read_only, document)

    @contextmanager
    def frozen(self):
        """Inside, the memory is read but neither written nor reset."""
        before, self.read_only = self.read_only, True
        try:
            yield
        finally:
            self.read_only = before

    def statistics(self, gate: Optional[Tensor]) -> Dict:
        """Of the current forward: gate (mean over heads), memory_tokens that a query could find (mean
        over banks), retrieval_seconds, retrieved_chunks (B x H* x T x R or None).

        Args:
            gate: of the memory layer, H; None where none reads memory
        """
        tokens = self.bank.num_tokens
        return {
            "gate": None if gate is None else gate.detach().mean(),
            "memory_tokens": sum(tokens) / len(tokens),
            "retrieval_seconds": self.retrieval_seconds,
            "retrieved_chunks": self.retrieved_chunks,
        }


def _check_single(memory: str, bank: MemoryBank) -> None:
    """Raises ValueError where it is of several streams."""
    if len(bank.num_written) > 1:
        raise ValueError(
            f"{memory} holds {bank.layout.num_streams} streams: a generation starts from one"
        )
