"""Controls: a model reads an empty memory or another document's, or another model writes its memory."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from longmem_fairseq.memory import ExternalMemory, Retrieved
from longmem_fairseq.models.memory_decoder import MemoryDecoder

MEMORIES = ("own", "empty", "other")


class ControlledMemory(ExternalMemory):
    """The memory of a model under a control.

    Args:
        memory: the model's own, whose sizes and options this one has
        reads: "own"; "empty": retrieves nothing; "other": the memory of the next stream, which reads
            another document
        writer: the decoder whose keys and values are written (default: the model's own)
    """

    def __init__(self, memory: ExternalMemory, reads: str, writer: Optional[MemoryDecoder] = None):
        super().__init__(memory.num_heads, memory.head_dim, memory.bank_class, **memory.options)
        self.reads, self.writer = reads, writer

    def retrieve(self, queries, contexts=None) -> Optional[Retrieved]:
        """See :meth:`ExternalMemory.retrieve`."""
        if self.reads == "empty":
            return None
        if self.reads == "own":
            return super().retrieve(queries, contexts)
        return self._of_next_stream(queries, contexts)

    def _of_next_stream(self, queries: Tensor, contexts: Optional[Tensor]) -> Optional[Retrieved]:
        # Streams that have run out of documents are still in the bank, full of their last one.
        missing = self.bank.layout.num_streams - queries.size(0)
        queries = F.pad(queries, (0, 0, 0, 0, 0, 0, 0, missing)).roll(1, dims=0)
        if contexts is not None:
            contexts = F.pad(contexts, (0, 0, 0, 0, 0, missing)).roll(1, dims=0)
        retrieved = super().retrieve(queries, contexts)
        if retrieved is None:
            return None
        shifted = {
            name: tensor.roll(-1, dims=0)[: queries.size(0) - missing]
            for name, tensor in retrieved._asdict().items()
            if isinstance(tensor, Tensor)
        }
        return retrieved._replace(**shifted)

    def write(self, keys, values, valid, token_ids=None, search_keys=None) -> None:
        """See :meth:`ExternalMemory.write`."""
        if self.writer is not None:
            keys, values, search_keys = self.writer.entries(token_ids)
        super().write(keys, values, valid, token_ids, search_keys)


def control_memory(model, reads: str = "own", writer=None) -> None:
    """Puts a model's memory under a control, which starts empty.

    The memories "empty" and "other" show how much of a result is the memory's: the first is the model
    without it, the second the gain from any memory that is not of this document.

    Args:
        reads: one of MEMORIES
        writer: model, such as an older checkpoint, that writes the memory (default: *model* itself)

    Raises:
        ValueError: a model has no memory
    """
    if reads == "own" and writer is None:
        return
    memory = getattr(model.decoder, "memory", None)
    if writer is not None and None in (memory, writer.decoder.memory):
        raise ValueError("--memory-writer needs two models with a memory bank")
    if memory is None:
        raise ValueError(f"--memory {reads} needs a model with a memory bank")
    model.decoder.memory = ControlledMemory(memory, reads, writer and writer.decoder)
