"""Options of every model that has a memory, and their checks."""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import nn

from longmem_fairseq.memory import (
    DTYPES,
    SEARCHES,
    STORAGES,
    ExternalMemory,
    MemoryBank,
    ShardedBank,
    bytes_per_token,
    check_index,
    check_shards,
    check_sizes,
)
from longmem_fairseq.models.backbone import COMPUTE_DTYPE_CHOICES
from longmem_fairseq.models.decoder_config import DecoderConfig, key_value_sizes
from longmem_fairseq.modules import ConstantPointer, TrainedPointer
from longmem_fairseq.utils.cli import option_names

logger = logging.getLogger(__name__)

MEMORY_SCOPE_CHOICES = ChoiceEnum(["stream", "batch"])
MEMORY_SEARCH_CHOICES = ChoiceEnum(list(SEARCHES))
POINTER_CHOICES = ChoiceEnum(["none", "constant", "trained"])
MEMORY_DTYPE_CHOICES = ChoiceEnum(["compute", *DTYPES])
MEMORY_HEADS_CHOICES = ChoiceEnum(["query", "shared"])
MEMORY_STORAGE_CHOICES = ChoiceEnum(list(STORAGES))


@dataclass
class MemoryConfig(FairseqDataclass):
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
        metadata={"help": "tokens retrieved per query and head; a multiple of --chunk-size"},
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
    if not 1 <= cfg.search_layer <= num_layers:
        raise ValueError(
            f"--search-layer ({cfg.search_layer}) must be between 1 and {num_layers}, or -1: the "
            f"backbone has {num_layers} layers"
        )
    return cfg.search_layer


def search_dim(cfg: MemoryConfig, backbone: DecoderConfig) -> int:
    """Dimensions of the search keys: --search-dim, or the backbone's channels where it has fewer.

    Raises:
        ValueError: there are none
    """
    if cfg.search_dim < 1:
        raise ValueError(f"--search-dim ({cfg.search_dim}) must be at least 1")
    return min(cfg.search_dim, backbone.embed_dim)


def build_pointer(cfg: MemoryConfig, embed_dim: int) -> Optional[nn.Module]:
    """What turns that which was found into a prediction; None for --pointer none.

    Raises:
        ValueError: naming the option that does not fit
    """
    kind = str(cfg.pointer)
    if kind == "none":
        return None
    if str(cfg.memory_search) != "hidden":
        raise ValueError(
            f"--pointer ({kind}) needs --memory-search hidden, not {cfg.memory_search}, in which each "
            "head finds other tokens"
        )
    if kind == "trained":
        return TrainedPointer(embed_dim)
    return ConstantPointer()


@option_names()
def build_memory(
    cfg: MemoryConfig,
    backbone: DecoderConfig,
    tokens_per_sample: int,
    fingerprint: str = "",
    has_values: bool = True,
) -> Optional[ExternalMemory]:
    """Checks the memory options against the backbone and against each other.

    Args:
        backbone: its shape
        has_values: whether keys and values are read, or only which tokens there were
        tokens_per_sample: tokens of a segment
        fingerprint: of the frozen backbone, hexadecimal; "" for one that is trained. That of the
            memory names the layer, too: keys of another one are as foreign as another backbone's

    Returns:
        None where the model is to have no memory.

    Raises:
        ValueError: naming the option to change
    """
    num_layers = backbone.num_layers
    if not 0 <= cfg.retrieval_layer_index < num_layers:
        raise ValueError(
            f"--retrieval-layer-index ({cfg.retrieval_layer_index}) must be between 0 and "
            f"{num_layers - 1}: the backbone has {num_layers} layers"
        )
    if cfg.no_memory and cfg.use_external_memory:
        raise ValueError("--no-memory contradicts --use-external-memory: give one of them")
    if cfg.no_memory or cfg.memory_size == 0:
        logger.info("no memory bank")
        return None
    check_sizes(cfg.memory_size, cfg.chunk_size, cfg.k)
    check_shards(cfg.memory_shards, cfg.memory_size, cfg.chunk_size)
    if cfg.memory_size < tokens_per_sample:
        raise ValueError(
            f"--memory-size ({cfg.memory_size}) must be at least one segment, --tokens-per-sample "
            f"({tokens_per_sample}); 0 for no memory"
        )
    if cfg.memory_distance < 0 or (cfg.memory_distance and str(backbone.positions) != "rotary"):
        raise ValueError(
            f"--memory-distance ({cfg.memory_distance}) must be 0, or positive with a backbone of "
            f"rotary positions (this one's are {backbone.positions})"
        )
    dtype = str(cfg.memory_dtype)
    options = {
        "memory_size": cfg.memory_size,
        "chunk_size": cfg.chunk_size,
        "k": cfg.k,
        "scope": str(cfg.memory_scope),
        "index": cfg.memory_index,
        "index_parameters": cfg.memory_index_parameters,
        "dtype": str(cfg.compute_dtype) if dtype == "compute" else dtype,
        "storage": str(cfg.memory_storage),
        "directory": cfg.memory_dir,
        "search": str(cfg.memory_search),
        "search_dim": search_dim(cfg, backbone) if str(cfg.memory_search) == "hidden" else 0,
        "fingerprint": fingerprint and f"{fingerprint} layer {cfg.retrieval_layer_index}",
    }
    num_heads, head_dim = key_value_sizes(backbone)
    if not has_values:
        num_heads = 0
    if options["search"] == "hidden":
        search_layer(cfg, backbone)
    num_slots = cfg.memory_size // cfg.chunk_size // cfg.memory_shards
    key_dim = options["search_dim"] or head_dim
    check_index(cfg.memory_index, cfg.memory_index_parameters, key_dim, num_slots)
    token_bytes = bytes_per_token(
        num_heads, head_dim, cfg.chunk_size, options["dtype"], options["search_dim"]
    )
    split = f", over {cfg.memory_shards} processes" if cfg.memory_shards > 1 else ""
    logger.info(
        f"memory bank of layer {cfg.retrieval_layer_index}: {cfg.memory_size:,} tokens of "
        f"{token_bytes:,.0f} bytes, {cfg.memory_size * token_bytes / 2**20:,.1f} MiB when full, one "
        f"per {cfg.memory_scope}{split}"
    )
    bank_class = ShardedBank if cfg.memory_shards > 1 else MemoryBank
    return ExternalMemory(num_heads, head_dim, bank_class, **options)


def log_parameters(model) -> None:
    """One line with the trainable and the frozen parameters."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trainable
    logger.info(f"{trainable:,} trainable and {frozen:,} frozen parameters")
