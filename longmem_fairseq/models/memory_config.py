"""Options of every model that has a memory; ``building.py`` checks them."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from longmem_fairseq.memory import DTYPES, SEARCHES, STORAGES
from longmem_fairseq.models.backbone import COMPUTE_DTYPE_CHOICES
from longmem_fairseq.models.decoder_config import DecoderConfig

MEMORY_SCOPE_CHOICES = ChoiceEnum(["stream", "batch"])
MEMORY_SEARCH_CHOICES = ChoiceEnum(list(SEARCHES))
POINTER_CHOICES = ChoiceEnum(["none", "constant", "trained"])
MEMORY_DTYPE_CHOICES = ChoiceEnum(["compute", *DTYPES])
MEMORY_HEADS_CHOICES = ChoiceEnum(["query", "shared"])
MEMORY_STORAGE_CHOICES = ChoiceEnum(list(STORAGES))


@dataclass
class MemoryConfig(FairseqDataclass):
    """Options of a model's memory."""

    pretrained_model_path: str = field(
        default="",
        metadata={"help": "checkpoint of the backbone (longmem_backbone)"},
    )
    use_external_memory: bool = field(
        default=False,
        metadata={
            "help": "the released code's switch; memory is on here unless --no-memory, and the two "
            "together are refused"
        },
    )
    no_memory: bool = field(
        default=False, metadata={"help": "the same model without a memory bank (a baseline)"}
    )
    memory_size: int = field(
        default=65536,
        metadata={"help": "tokens a memory bank holds, oldest out first; 0 is --no-memory"},
    )
    chunk_size: int = field(
        default=4, metadata={"help": "tokens per chunk; a chunk is found and evicted as a whole"}
    )
    k: int = field(
        default=64,
        metadata={
            "help": "tokens retrieved per query and head; a multiple of --chunk-size; a bare backbone "
            "retrieves 128 unless told otherwise"
        },
    )
    retrieval_layer_index: int = field(
        default=17,
        metadata={"help": "backbone layer whose keys and values are cached, counted from 0"},
    )
    memory_search: MEMORY_SEARCH_CHOICES = field(
        default="attention",
        metadata={
            "help": "what finds a token in memory; attention: the inner product of a query with the "
            "mean attention key of its chunk, per head, as in the paper; hidden: the similarity of "
            "hidden states of the backbone, one search for all heads, which reads what came next"
        },
    )
    search_layer: int = field(
        default=-1,
        metadata={
            "help": "backbone layer after which hidden states are compared, 1 to the number of layers; "
            "-1: that to which the backbone's search keys were fitted, or 19 twentieths of the depth"
        },
    )
    search_dim: int = field(
        default=128,
        metadata={
            "help": "dimensions of what --memory-search hidden compares: hidden states after a random "
            "rotation, 4 bytes each per chunk"
        },
    )
    pointer: POINTER_CHOICES = field(
        default="none",
        metadata={
            "help": "mix the prediction with the tokens that came next in memory (needs "
            "--memory-search hidden); constant: without training, by the similarity alone; trained: by "
            "a small network"
        },
    )
    pointer_bias: float = field(
        default=0.0,
        metadata={
            "help": "added to the logit of the pointer's weight: more than 0 trusts memory more, as a "
            "larger mixture weight of a kNN-LM"
        },
    )
    memory_scope: MEMORY_SCOPE_CHOICES = field(
        default="stream",
        metadata={
            "help": "stream: every batch row has its own bank; batch: all rows share one, as in the "
            "released code"
        },
    )
    memory_heads: MEMORY_HEADS_CHOICES = field(
        default="query",
        metadata={
            "help": "where several heads share keys and values (grouped-query attention): query: every "
            "head retrieves for itself, as in the paper; shared: they retrieve the same chunks, by the "
            "mean of their queries, which takes one search instead of one per head"
        },
    )
    memory_distance: int = field(
        default=0,
        metadata={
            "help": "retrieved tokens count as so many tokens back in the rotary positions of a "
            "backbone that has them; 0: memory has no positions"
        },
    )
    memory_index: str = field(
        default="torch",
        metadata={
            "help": "how the bank is searched: torch (exact, matrix products), flat (exact, faiss), or "
            "approximately by an index of faiss.index_factory, such as IVF1024,Flat, for banks of "
            "millions of tokens"
        },
    )
    memory_index_parameters: str = field(
        default="",
        metadata={
            "help": "of an approximate --memory-index, as nprobe=32 (IVF) or efSearch=64 (HNSW): more "
            "finds better and takes longer"
        },
    )
    memory_dtype: MEMORY_DTYPE_CHOICES = field(
        default="compute",
        metadata={
            "help": "type of the cached keys and values; compute: that of --compute-dtype; int8: a "
            "byte each, with a scale per chunk"
        },
    )
    memory_storage: MEMORY_STORAGE_CHOICES = field(
        default="device",
        metadata={
            "help": "where keys and values are cached: on the model's device, in host memory, or in a "
            "memory-mapped file on disk"
        },
    )
    memory_dir: Optional[str] = field(
        default=None,
        metadata={"help": "folder for --memory-storage disk (default: that for temporary files)"},
    )
    memory_shards: int = field(
        default=1,
        metadata={
            "help": "split the bank over so many processes, which all read the same documents: each "
            "stores and searches a part. For evaluation and generation; must be the number of processes"
        },
    )
    gate_lr_multiplier: float = field(
        default=1.0,
        metadata={"help": "the memory gate moves this many times faster than --lr says"},
    )
    compute_dtype: COMPUTE_DTYPE_CHOICES = field(
        default="float32",
        metadata={
            "help": "type of the matrix products (autocast) and of the stored frozen backbone; "
            "trained weights stay float32"
        },
    )


def memory_options(cfg: MemoryConfig) -> Dict[str, Any]:
    """Arguments of the :class:`JointAttention` that reads memory."""
    return {
        "gate_lr_multiplier": cfg.gate_lr_multiplier,
        "memory_heads": str(cfg.memory_heads),
        "memory_distance": cfg.memory_distance,
        "memory_search": str(cfg.memory_search),
    }


def default_search_layer(num_layers: int) -> int:
    """19 twentieths of the depth; measured in docs/results/2026-11-27-memory-that-pays.md."""
    return max(1, round(0.95 * num_layers))


def search_layer(cfg: MemoryConfig, backbone: DecoderConfig) -> int:
    """The number of the hidden state that --memory-search hidden compares.

    Raises:
        ValueError: the backbone has no such layer
    """
    num_layers = backbone.num_layers
    if cfg.search_layer == -1:
        return backbone.fitted_search_layer or default_search_layer(num_layers)
    return checked_search_layer(cfg.search_layer, num_layers)


def checked_search_layer(layer: int, num_layers: int) -> int:
    """The layer itself.

    Raises:
        ValueError: there is no such layer
    """
    if not 1 <= layer <= num_layers:
        raise ValueError(
            f"--search-layer ({layer}) must be between 1 and {num_layers}, or left to its default: the "
            f"backbone has {num_layers} layers"
        )
    return layer


def search_dim(cfg: MemoryConfig, backbone: DecoderConfig) -> int:
    """Dimensions of the search keys: --search-dim, or the backbone's channels where it has fewer.

    Raises:
        ValueError: there are none
    """
    if cfg.search_dim < 1:
        raise ValueError(f"--search-dim ({cfg.search_dim}) must be at least 1")
    return min(cfg.search_dim, backbone.embed_dim)
