"""Building a model with memory: its bank, its pointer, and the lines of its log."""

import logging
import math
from typing import Any, Dict, Optional

from torch import nn

from longmem_fairseq.memory import (
    ExternalMemory,
    MemoryBank,
    ShardedBank,
    bytes_per_token,
    check_index,
    check_shards,
    check_sizes,
)
from longmem_fairseq.models.decoder_config import DecoderConfig, key_value_sizes
from longmem_fairseq.models.memory_config import MemoryConfig, search_dim, search_layer
from longmem_fairseq.modules import ConstantPointer, TrainedPointer
from longmem_fairseq.utils.cli import option_names

logger = logging.getLogger(__name__)


def build_pointer(cfg: MemoryConfig, embed_dim: int) -> Optional[nn.Module]:
    """The pointer that the options describe; None for --pointer none.

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
    if not math.isfinite(cfg.pointer_bias):
        raise ValueError(f"--pointer-bias ({cfg.pointer_bias}) must be finite")
    if kind == "trained":
        return TrainedPointer(embed_dim, cfg.pointer_bias)
    return ConstantPointer(cfg.pointer_bias)


@option_names()
def build_memory(
    cfg: MemoryConfig,
    backbone: DecoderConfig,
    tokens_per_sample: int,
    fingerprint: str = "",
    has_values: bool = True,
) -> Optional[ExternalMemory]:
    """The memory that the options describe; None where the model is to have none.

    Args:
        backbone: its shape
        tokens_per_sample: tokens of a segment
        fingerprint: of the frozen backbone, hexadecimal; "" for one that is trained. That of the
            memory names the layer, too: keys of another one are as foreign as another backbone's
        has_values: whether keys and values are read, or only which tokens there were

    Raises:
        ValueError: naming the option to change
    """
    if not check_memory(cfg, backbone, tokens_per_sample):
        logger.info("no memory bank")
        return None
    options = _bank_options(cfg, backbone, fingerprint)
    num_heads, head_dim = key_value_sizes(backbone)
    if not has_values:  # nor is there anything of a type: a file fits any --compute-dtype
        num_heads, options["dtype"] = 0, "float32"
    num_slots = cfg.memory_size // cfg.chunk_size // cfg.memory_shards
    key_dim = options["search_dim"] or head_dim
    check_index(cfg.memory_index, cfg.memory_index_parameters, key_dim, num_slots)
    sizes = num_heads, head_dim, cfg.chunk_size, options["dtype"], options["search_dim"]
    _log_memory(cfg, bytes_per_token(*sizes))
    bank_class = ShardedBank if cfg.memory_shards > 1 else MemoryBank
    return ExternalMemory(num_heads, head_dim, bank_class, **options)


def _bank_options(cfg: MemoryConfig, backbone: DecoderConfig, fingerprint: str) -> Dict[str, Any]:
    """Arguments of the :class:`MemoryBank`, besides its heads and their channels."""
    dtype, hidden = str(cfg.memory_dtype), str(cfg.memory_search) == "hidden"
    return {
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
        "search_dim": search_dim(cfg, backbone) if hidden else 0,
        "fingerprint": fingerprint and f"{fingerprint} layer {cfg.retrieval_layer_index}",
    }


def _log_memory(cfg: MemoryConfig, token_bytes: float) -> None:
    """One line with the layer, the size and the sharing of the bank."""
    split = f", over {cfg.memory_shards} processes" if cfg.memory_shards > 1 else ""
    logger.info(
        f"memory bank of layer {cfg.retrieval_layer_index}: {cfg.memory_size:,} tokens of "
        f"{token_bytes:,.0f} bytes, {cfg.memory_size * token_bytes / 2**20:,.1f} MiB when full, one "
        f"per {cfg.memory_scope}{split}"
    )


def check_memory(cfg: MemoryConfig, backbone: DecoderConfig, tokens_per_sample: int) -> bool:
    """Checks the memory options against the backbone and against each other.

    Returns:
        whether the model is to have a memory

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
        return False
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
    if str(cfg.memory_search) == "hidden":
        search_layer(cfg, backbone)
    return True


def log_parameters(model) -> None:
    """One line with the trainable and the frozen parameters."""
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trainable
    logger.info(f"{trainable:,} trainable and {frozen:,} frozen parameters")
