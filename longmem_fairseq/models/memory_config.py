"""Options of every model that has a memory, and their checks."""

import logging
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from longmem_fairseq.memory import ExternalMemory, check_sizes
from longmem_fairseq.models.backbone import COMPUTE_DTYPE_CHOICES

logger = logging.getLogger(__name__)

MEMORY_SCOPE_CHOICES = ChoiceEnum(["stream", "batch"])
MEMORY_INDEX_CHOICES = ChoiceEnum(["flat", "torch"])


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
    memory_index: MEMORY_INDEX_CHOICES = field(
        default="flat",
        metadata={"help": "exact search by faiss (flat) or by a torch matrix product (torch)"},
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


def build_memory(
    cfg: MemoryConfig, num_layers: int, embed_dim: int, num_heads: int, tokens_per_sample: int
) -> Optional[ExternalMemory]:
    """Checks the memory options against the backbone and against each other.

    Args:
        num_layers, embed_dim, num_heads: of the backbone
        tokens_per_sample: tokens of a segment

    Returns:
        None where the model is to have no memory.

    Raises:
        ValueError: naming the option to change
    """
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
    if cfg.memory_size < tokens_per_sample:
        raise ValueError(
            f"--memory-size ({cfg.memory_size}) must be at least one segment, --tokens-per-sample "
            f"({tokens_per_sample}); 0 for no memory"
        )
    stored = 2 * embed_dim * (4 if str(cfg.compute_dtype) == "float32" else 2)
    mebibytes = cfg.memory_size * (stored + 4 * embed_dim / cfg.chunk_size) / 2**20
    logger.info(
        f"memory bank of layer {cfg.retrieval_layer_index}: {cfg.memory_size:,} tokens, "
        f"{mebibytes:,.1f} MiB when full, one per {cfg.memory_scope}"
    )
    return ExternalMemory(
        num_heads,
        embed_dim // num_heads,
        memory_size=cfg.memory_size,
        chunk_size=cfg.chunk_size,
        k=cfg.k,
        scope=str(cfg.memory_scope),
        index=str(cfg.memory_index),
    )


def log_parameters(model) -> None:
    """One line with the trainable and the frozen parameters."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trainable
    logger.info(f"{trainable:,} trainable and {frozen:,} frozen parameters")
