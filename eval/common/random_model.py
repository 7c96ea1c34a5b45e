"""Models with random weights and a full memory, and the work that they need.

B streams, T tokens, C embed_dim, L backbone layers, S SideNet layers, V vocabulary, M memory_size,
c chunk_size, K retrieved tokens.

``args``: the options of eval/benchmark_model.py.
"""

from argparse import Namespace
from contextlib import nullcontext
from typing import Callable, Dict, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.optim.adam import Adam
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.longmem import LongMemConfig, SideNetDecoder
from longmem_fairseq.modules import token_losses

LONGMEM, NO_MEMORY, BACKBONE = VARIANTS = ("longmem", "longmem without memory", "backbone")
SEARCH, READ = "search", "gather and memory attention"  # the stages of reading memory


class Preset(NamedTuple):
    """Sizes of a model and of its batch; *retrieval_layer* is the one whose keys are cached."""

    layers: int
    embed_dim: int
    heads: int
    tokens: int
    streams: int
    vocabulary: int
    retrieval_layer: int


PRESETS = {
    "tiny": Preset(4, 128, 4, 256, 8, 8000, 3),
    "small": Preset(12, 768, 12, 1024, 1, 51200, 9),
    "gpt2_medium": Preset(24, 1024, 16, 1024, 1, 51200, 17),
}


class Sizes(NamedTuple):
    """Sizes that determine the work; 0 sidenet_layers for the backbone alone, 0 chunks and retrieved
    tokens without memory."""

    streams: int
    tokens: int
    embed_dim: int
    layers: int
    vocabulary: int
    sidenet_layers: int = 0
    chunks: int = 0
    retrieved: int = 0


def necessary_flops(sizes: Sizes, training: bool = False) -> Dict[str, float]:
    """Floating-point operations that one segment needs, by stage; a multiply-add is two.

    With N = M / c chunks::

        block            B T (24 C^2 + 2 T C)   four C x C projections and an MLP of 8 C^2; scores
                                                and weighted values of T / 2 keys (causal)
        backbone         L block
        SideNet layers   S block
        head             2 B T C V
        search           2 B T N C              every chunk key with every query (exact search)
        memory attention 4 B T K C              scores and weighted values
        backward         2 S block              gradients of inputs and weights
                         + 2 B T C V            the head is frozen: gradient of its input alone
                         + 4 B T K C            the retrieved is constant: of the queries alone
    """
    queries = sizes.streams * sizes.tokens
    width = sizes.embed_dim
    block = queries * (24 * width**2 + 2 * sizes.tokens * width)
    flops = {
        "backbone": sizes.layers * block,
        "SideNet layers": sizes.sidenet_layers * block,
        "head": 2 * queries * width * sizes.vocabulary,
        SEARCH: 2 * queries * sizes.chunks * width,
        READ: 4 * queries * sizes.retrieved * width,
    }
    if training:
        flops["backward"] = 2 * flops["SideNet layers"] + flops["head"] + flops[READ]
    return flops


def necessary_bytes(sizes: Sizes, itemsize: int, trainable: int) -> Dict[str, float]:
    """Bytes to be read and written by the stages that hardly compute.

    Keys and values take *itemsize* bytes a number: retrieved ones are read, those of the segment
    copied. Adam reads gradient, weight and two moments, and writes all but the gradient.
    """
    keys_and_values = 2 * sizes.streams * sizes.tokens * sizes.embed_dim * itemsize
    return {
        READ: sizes.retrieved * keys_and_values,
        "write": 2 * keys_and_values,
        "optimizer": 7 * 4 * trainable,
    }


def model_config(args: Namespace) -> LongMemConfig:
    """The model's configuration but for compute_dtype and no_memory.

    Raises:
        ValueError: there is no such field, or it cannot have this value
    """
    options = [f"{name}={getattr(args, name)}" for name in ("memory_size", "chunk_size", "k")]
    options.append(f"retrieval_layer_index={PRESETS[args.preset].retrieval_layer}")
    config = OmegaConf.structured(LongMemConfig)
    for option in options + args.model_option:
        try:
            config.merge_with_dotlist([option])
        except (OmegaConfBaseException, IndexError) as error:
            raise ValueError(f"--model-option {option}: {str(error).splitlines()[0]}") from error
    return config


def build_backbone(args: Namespace, dtype: str) -> BackboneDecoder:
    """A frozen backbone with random weights, stored as a SideNet stores it."""
    preset = PRESETS[args.preset]
    dictionary = Dictionary()
    for number in range(preset.vocabulary - len(dictionary)):
        dictionary.add_symbol(f"symbol{number}")
    cfg = LongMemBackboneConfig(
        embed_dim=preset.embed_dim,
        num_layers=preset.layers,
        num_attention_heads=preset.heads,
        compute_dtype=dtype,
    )
    backbone = BackboneDecoder(cfg, dictionary, args.tokens_per_sample)
    backbone.freeze()
    return backbone.to(args.device)


def build_model(args: Namespace, dtype: str, variant: str, backbone: BackboneDecoder) -> nn.Module:
    """A variant with random weights on *backbone*."""
    if variant not in (LONGMEM, NO_MEMORY):
        return backbone
    config = model_config(args)
    config.compute_dtype, config.no_memory = dtype, variant == NO_MEMORY
    fingerprint = torch.zeros(32, dtype=torch.uint8)
    return SideNetDecoder(config, backbone, fingerprint).to(args.device)


def sizes_of(args: Namespace, variant: str) -> Sizes:
    """The sizes of one of VARIANTS."""
    preset, config = PRESETS[args.preset], model_config(args)
    has_sidenet, has_memory = variant in (LONGMEM, NO_MEMORY), variant == LONGMEM
    return Sizes(
        streams=args.batch_size,
        tokens=args.tokens_per_sample,
        embed_dim=preset.embed_dim,
        layers=preset.layers,
        vocabulary=preset.vocabulary,
        sidenet_layers=preset.layers // config.layer_reduction_factor if has_sidenet else 0,
        chunks=config.memory_size // config.chunk_size if has_memory else 0,
        retrieved=config.k if has_memory else 0,
    )


def no_stages(name: str):
    """Stands for :class:`timing.Stages` where nothing is measured."""
    return nullcontext()


def make_step(args: Namespace, model: nn.Module, training: bool) -> Callable:
    """Reading a segment and its loss, in training also the gradients and the update.

    The returned function takes a :class:`timing.Stages`. The memory is full from the start, and no
    document ends.
    """
    device, (streams, tokens) = args.device, (args.batch_size, args.tokens_per_sample)
    model.train(training)
    if getattr(model, "memory", None) is not None:
        fill(model, streams, tokens, training, device)
    optimizer = None
    if training:
        optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    symbols = (model.dictionary.nspecial, len(model.dictionary))
    new_document = torch.zeros(streams, dtype=torch.bool, device=device)

    def step(stage: Callable = no_stages) -> None:
        source, target = torch.randint(*symbols, (2, streams, tokens), device=device)
        with torch.set_grad_enabled(training):
            logits, _ = model(source, new_document=new_document)
            with stage("loss"):
                loss = token_losses(logits, target, model.padding_idx).mean()
        if training:
            with stage("backward"):
                loss.backward()
            with stage("optimizer"):
                optimizer.step()
                optimizer.zero_grad()

    return step


@torch.no_grad()  # else writing would wait for a backward pass
def fill(model: SideNetDecoder, streams: int, tokens: int, training: bool, device) -> None:
    """Fills the memory bank with random keys and values, segment by segment as a model would."""
    memory, dtype = model.memory, model.backbone.compute_dtype
    everywhere = torch.ones(streams, tokens, dtype=torch.bool, device=device)
    memory.begin(streams, everywhere[:, 0], training, device)
    shape = (2, streams, memory.num_heads, tokens, memory.head_dim)
    while min(memory.bank.num_tokens) < memory.bank.layout.memory_size:
        memory.write(*torch.randn(shape, device=device).to(dtype), everywhere)
