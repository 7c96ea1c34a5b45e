"""Options of every model that has a memory, and their checks."""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from longmem_fairseq.memory import (
    DTYPES,
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

logger = logging.getLogger(__name__)

MEMORY_SCOPE_CHOICES = ChoiceEnum(["stream", "batch"])
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


def build_memory(
    cfg: MemoryConfig, backbone: DecoderConfig, tokens_per_sample: int, fingerprint: str = ""
) -> Optional[ExternalMemory]:
    """Checks the memory options against the backbone and against each other.

    Args:
        backbone: its shape
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
        "fingerprint": fingerprint and f"{fingerprint} layer {cfg.retrieval_layer_index}",
    }
    num_heads, head_dim = key_value_sizes(backbone)
    num_slots = cfg.memory_size // cfg.chunk_size // cfg.memory_shards
    check_index(cfg.memory_index, cfg.memory_index_parameters, head_dim, num_slots)
    token_bytes = bytes_per_token(num_heads, head_dim, cfg.chunk_size, options["dtype"])
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
