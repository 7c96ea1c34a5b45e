"""Memory bank, search and memory files. Needs torch, numpy, safetensors and faiss; knows nothing of
fairseq."""

from longmem_fairseq.memory.bank_copies import extend_bank, forget_document, select_banks
from longmem_fairseq.memory.bank_layout import SEARCHES, BankLayout, check_sizes
from longmem_fairseq.memory.chunk_store import DTYPES, STORAGES, bytes_per_token
from longmem_fairseq.memory.excerpts import find_excerpts
from longmem_fairseq.memory.external_memory import ExternalMemory
from longmem_fairseq.memory.faiss_index import TooFewChunksError, check_index
from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.memory_fork import MemoryFork
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.memory.shard_files import memory_size_of
from longmem_fairseq.memory.sharded_bank import ShardedBank
from longmem_fairseq.memory.sharded_ring import check_shards
from longmem_fairseq.memory.token_log import Source

__all__ = [
    "DTYPES",
    "SEARCHES",
    "STORAGES",
    "BankLayout",
    "ExternalMemory",
    "MemoryBank",
    "MemoryFork",
    "Retrieved",
    "ShardedBank",
    "Source",
    "TooFewChunksError",
    "bytes_per_token",
    "check_index",
    "check_shards",
    "check_sizes",
    "extend_bank",
    "find_excerpts",
    "forget_document",
    "memory_size_of",
    "select_banks",
]
