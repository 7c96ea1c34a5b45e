"""Models to be timed, and the steps that are: of a preset with random weights, or a converted model.

B streams, T tokens.

``args``, here and there: the options of eval/benchmark_model.py.
"""

from argparse import Namespace
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.optim.adam import Adam
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from eval.common.necessary import Sizes, block_sizes
from eval.common.speed_options import Parser, positive
from eval.common.timing import Step
from longmem_fairseq.memory import check_sizes
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.checkpoints import load_backbone, read_backbone
from longmem_fairseq.models.decoder_config import DecoderConfig
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memory_config import search_dim
from longmem_fairseq.models.sidenet import SideNetDecoder
from longmem_fairseq.tokenizers import load_dictionary

LONGMEM, NO_MEMORY, BACKBONE = VARIANTS = ("longmem", "longmem without memory", "backbone")
MODES = ("evaluation", "training", "generation")


class Preset(NamedTuple):
    """A backbone of the paper's kind, and the segments that it reads."""

    layers: int
    embed_dim: int
    heads: int
    tokens: int
    streams: int
    vocabulary: int


PRESETS = {
    "tiny": Preset(4, 128, 4, 256, 8, 8000),
    "small": Preset(12, 768, 12, 1024, 1, 51200),
    "gpt2_medium": Preset(24, 1024, 16, 1024, 1, 51200),
}
MODEL_STREAMS, MODEL_TOKENS = 4, 1024  # of the segments of a converted model


def add_step_options(parser: Parser) -> None:
    """Options of the model's memory, and of the segments and prompts that are read."""
    number = partial(parser.add_argument, type=positive)
    number("--memory-size", default=65536, help="tokens of the memory bank")
    number("--chunk-size", default=4, help="tokens per chunk")
    number("--k", default=64, help="tokens retrieved per query and head")
    parser.add_argument(
        "--model-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any field of LongMemConfig, such as memory_index=torch; may be repeated",
    )
    converted = f"of a converted model {MODEL_STREAMS} x {MODEL_TOKENS}"
    number("--tokens-per-sample", help=f"tokens of a segment, if not the preset's ({converted})")
    number("--batch-size", help="streams, if not the preset's")
    number("--prompts", default=1, help="prompts that are continued side by side")
    number("--prompt-tokens", default=512, help="tokens of a prompt")
    number("--new-tokens", default=32, help="tokens that are generated after it")


def check_step_options(args: Namespace) -> None:
    """Completes the options, and checks them against the model.

    Raises:
        FileNotFoundError, ValueError: naming the option
    """
    streams, tokens = MODEL_STREAMS, MODEL_TOKENS
    if args.model is None:
        streams, tokens = PRESETS[args.preset].streams, PRESETS[args.preset].tokens
    args.tokens_per_sample = args.tokens_per_sample or tokens
    args.batch_size = args.batch_size or streams
    length = args.prompt_tokens + args.new_tokens
    if "generation" in args.mode and length > args.tokens_per_sample:
        raise ValueError(
            f"--prompt-tokens and --new-tokens ({length} together) must not exceed "
            f"--tokens-per-sample ({args.tokens_per_sample}): leaving the window is another measurement"
        )
    config = model_config(args)
    check_sizes(config.memory_size, config.chunk_size, config.k)
    if config.no_memory:
        raise ValueError("--model-option: keep the memory; the model without it is measured anyway")


@lru_cache(maxsize=1)
def backbone_config(preset: str, model: Path) -> DecoderConfig:
    """The shape of the backbone: that of a converted *model*, or of the preset if that is None.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_backbone`
    """
    if model is not None:
        return read_backbone(str(model))["cfg"]["model"]
    sizes = PRESETS[preset]
    return OmegaConf.structured(
        LongMemBackboneConfig(
            embed_dim=sizes.embed_dim,
            num_layers=sizes.layers,
            num_attention_heads=sizes.heads,
        )
    )


def retrieval_layer(num_layers: int) -> int:
    """Seven tenths of the depth, as in the paper's 17 of 24; odd, so that the SideNet's layer beside it
    starts as a copy of the one whose keys are cached."""
    return min(num_layers - 1, int(0.7 * num_layers) | 1)


def model_config(args: Namespace) -> LongMemConfig:
    """The model's configuration but for compute_dtype and no_memory.

    Raises:
        ValueError: there is no such field, or it cannot have this value
    """
    options = [f"{name}={getattr(args, name)}" for name in ("memory_size", "chunk_size", "k")]
    num_layers = backbone_config(args.preset, args.model).num_layers
    options.append(f"retrieval_layer_index={retrieval_layer(num_layers)}")
    config = OmegaConf.structured(LongMemConfig)
    for option in options + args.model_option:
        try:
            config.merge_with_dotlist([option])
        except (OmegaConfBaseException, IndexError) as error:
            raise ValueError(f"--model-option {option}: {str(error).splitlines()[0]}") from error
    return config


def build_backbone(args: Namespace, dtype: str) -> BackboneDecoder:
    """A frozen backbone, stored as a SideNet stores it."""
    if args.model is not None:
        dictionary = load_dictionary(args.model / "dict.txt")
        backbone, _ = load_backbone(
            str(args.model), dictionary, args.tokens_per_sample, compute_dtype=dtype
        )
    else:
        dictionary = Dictionary()
        for number in range(PRESETS[args.preset].vocabulary - len(dictionary)):
            dictionary.add_symbol(f"symbol{number}")
        cfg = backbone_config(args.preset, None).copy()
        cfg.compute_dtype = dtype
        backbone = BackboneDecoder(cfg, dictionary, args.tokens_per_sample)
    backbone.freeze()
    return backbone.to(args.device)


def build_model(args: Namespace, dtype: str, variant: str, backbone: BackboneDecoder) -> nn.Module:
    """A variant on *backbone*; its SideNet starts as training would start."""
    if variant not in (LONGMEM, NO_MEMORY):
        return backbone
    config = model_config(args)
    config.compute_dtype, config.no_memory = dtype, variant == NO_MEMORY
    if variant == NO_MEMORY:
        config.pointer = "none"
    fingerprint = torch.zeros(32, dtype=torch.uint8)
    return SideNetDecoder(config, backbone, fingerprint).to(args.device)


def sizes_of(args: Namespace, variant: str) -> Sizes:
    """The sizes that decide how much *variant* has to compute."""
    cfg, config = backbone_config(args.preset, args.model), model_config(args)
    has_sidenet, has_memory = variant in (LONGMEM, NO_MEMORY), variant == LONGMEM
    block = block_sizes(cfg)
    by_heads = block["kv_dim" if str(config.memory_heads) == "shared" else "heads_dim"]
    hidden = str(config.memory_search) == "hidden"
    layers = 0 if config.no_sidenet or not has_sidenet else config.layer_reduction_factor
    return Sizes(
        streams=args.batch_size,
        tokens=args.tokens_per_sample,
        embed_dim=cfg.embed_dim,
        layers=cfg.num_layers,
        vocabulary=vocabulary(args),
        **block,
        sidenet_layers=cfg.num_layers // layers if layers else 0,
        chunks=config.memory_size // config.chunk_size if has_memory else 0,
        retrieved=config.k if has_memory else 0,
        search_dim=search_dim(config, cfg) if hidden else by_heads,
    )


def vocabulary(args: Namespace) -> int:
    """Symbols of the model's dictionary."""
    if args.model is None:
        return PRESETS[args.preset].vocabulary
    return len(load_dictionary(args.model / "dict.txt"))


def no_stages(name: str):
    """In the place of a :class:`Stages`."""
    return nullcontext()


def make_step(args: Namespace, model: nn.Module, mode: str) -> Step:
    """A step of *mode*. A memory is full from the start, and no document ends."""
    if mode == "generation":
        return generation_step(args, model)
    return segment_step(args, model, training=mode == "training")


def segment_step(args: Namespace, model: nn.Module, training: bool) -> Step:
    """Reading a segment and its loss, in training also the gradients and the update."""
    device, (streams, tokens) = args.device, (args.batch_size, args.tokens_per_sample)
    model.train(training)
    fill(model, streams, tokens, training, device)
    optimizer = None
    if training:
        optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    symbols = (model.dictionary.nspecial, len(model.dictionary))
    new_document = torch.zeros(streams, dtype=torch.bool, device=device)

    def step(stage: Callable = no_stages) -> None:
        source, target = torch.randint(*symbols, (2, streams, tokens), device=device)
        with torch.set_grad_enabled(training):
            losses, _ = model(source, new_document=new_document, target=target)
            loss = losses.mean()
        if training:
            with stage("backward"):
                loss.backward()
            with stage("optimizer"):
                optimizer.step()
                optimizer.zero_grad()

    return Step(step)


def generation_step(args: Namespace, model: nn.Module) -> Step:
    """The most likely tokens after a prompt; --prompts of them are continued side by side."""
    device = args.device
    model.eval()
    fill(model, 1, args.tokens_per_sample, False, device)
    symbols = (model.dictionary.nspecial, len(model.dictionary))
    prompt = torch.randint(*symbols, (args.prompts, args.prompt_tokens), device=device)
    state = {}

    @torch.no_grad()
    def prepare() -> None:
        state.clear()
        model(prompt, incremental_state=state)

    @torch.no_grad()
    def generate(stage: Callable = no_stages) -> None:
        tokens, new = prompt, prompt[:, :1]  # any token follows the prompt
        for _ in range(args.new_tokens):
            tokens = torch.cat([tokens, new], dim=1)
            scores = model.scores(model(tokens, incremental_state=state))
            new = scores[:, -1].argmax(dim=-1, keepdim=True)

    return Step(generate, prepare)


@torch.no_grad()  # else writing would wait for a backward pass
def fill(model: nn.Module, streams: int, tokens: int, training: bool, device) -> None:
    """Fills the memory bank, if there is one, with random keys and values, segment by segment as a
    model would."""
    memory = getattr(model, "memory", None)
    if memory is None:
        return
    memory.reset()  # the banks of other modes
    dtype = model.backbone.compute_dtype
    everywhere = torch.ones(streams, tokens, dtype=torch.bool, device=device)
    memory.begin(streams, everywhere[:, 0], training, device)
    shape = (2, streams, memory.num_heads, tokens, memory.head_dim)
    dim = memory.options["search_dim"]
    ids = torch.randint(model.dictionary.nspecial, len(model.dictionary), (streams, tokens))
    while min(memory.bank.num_tokens) < memory.bank.layout.memory_size:
        keys, values = torch.randn(shape, device=device).to(dtype)
        search = nn.functional.normalize(torch.randn(streams, tokens, dim, device=device), dim=-1)
        memory.write(keys, values, everywhere, ids, search if dim else None)
