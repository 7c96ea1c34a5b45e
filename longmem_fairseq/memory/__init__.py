"""Memory bank and exact search. Needs torch, numpy and faiss; knows nothing of fairseq."""

from longmem_fairseq.memory.external_memory import ExternalMemory
from longmem_fairseq.memory.memory_bank import MemoryBank, Retrieved, check_sizes

__all__ = ["ExternalMemory", "MemoryBank", "Retrieved", "check_sizes"]
