"""The memory that a converted backbone and its SideNet will need, from their shape alone."""

from typing import Iterator

import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import nn

from longmem_fairseq.memory import bytes_per_token
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.sidenet import SideNetDecoder

GIB = 2**30
TRAINING_BYTES = 16  # of a trained parameter: float32 weight, gradient and two moments of Adam
MEMORY_SIZE = 65536


def estimate(
    cfg: LongMemBackboneConfig, dictionary: Dictionary, tokens_per_sample: int
) -> Iterator[str]:
    """Lines with the numbers of parameters and the memory that they take; allocates no weights.

    Raises:
        ValueError: the backbone has a single layer
    """
    if cfg.num_layers < 2:
        raise ValueError("config.json: a SideNet needs a backbone of at least 2 layers")
    with torch.device("meta"):
        backbone = BackboneDecoder(OmegaConf.structured(cfg), dictionary, tokens_per_sample)
    reduction = next(r for r in range(2, cfg.num_layers + 2) if cfg.num_layers % r == 0)
    layer = reduction * max(1, round(0.75 * cfg.num_layers / reduction)) - 1
    frozen = sum(p.numel() for p in backbone.parameters())
    options = LongMemConfig(
        layer_reduction_factor=reduction, retrieval_layer_index=layer, memory_size=MEMORY_SIZE
    )
    with torch.device("meta"):
        sidenet = SideNetDecoder(
            OmegaConf.structured(options), backbone, torch.zeros(32, device="cpu")
        )
    trainable = sum(p.numel() for p in sidenet.parameters() if p.requires_grad)
    matrices = [m for m in backbone.layers.modules() if isinstance(m, nn.Linear)]
    int8 = sum(m.weight.numel() for m in matrices)
    share = trainable / (trainable + frozen)
    yield f"backbone: {cfg.num_layers} layers, {frozen:,} frozen parameters"
    yield f"SideNet: {cfg.num_layers // reduction} layers, {trainable:,} trainable ({share:.1%})"
    yield (
        f"backbone in float32 {4 * frozen / GIB:.1f} GiB, bfloat16 {2 * frozen / GIB:.1f} GiB, int8 "
        f"{(2 * frozen - int8) / GIB:.1f} GiB (head and embeddings stay bfloat16)"
    )
    yield (
        f"SideNet in training {TRAINING_BYTES * trainable / GIB:.1f} GiB (float32 weights, gradients, "
        f"Adam), in use {4 * trainable / GIB:.1f} GiB; activations come on top"
    )
    memory = sidenet.memory
    token = bytes_per_token(memory.num_heads, memory.head_dim, options.chunk_size, "bfloat16")
    yield (
        f"memory of {memory.num_heads} key/value heads x {memory.head_dim} at layer {layer}: "
        f"{token:,.0f} bytes per token in bfloat16, {MEMORY_SIZE * token / GIB:.2f} GiB for "
        f"{MEMORY_SIZE:,} tokens of one stream"
    )
