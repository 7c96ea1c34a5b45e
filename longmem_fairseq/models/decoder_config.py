"""The shape of a decoder: every option that its weights depend on.

The defaults are the paper's GPT-2*; ``preprocess/convert_checkpoint.py`` sets the others for other
families of language models.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from longmem_fairseq.modules import ACTIVATIONS, BLOCKS, NORMS, QK_NORMS, Rotary

ACTIVATION_CHOICES = ChoiceEnum(list(ACTIVATIONS))
POSITION_CHOICES = ChoiceEnum(["alibi", "learned", "rotary"])
BLOCK_CHOICES = ChoiceEnum(list(BLOCKS))
NORM_CHOICES = ChoiceEnum(list(NORMS))
QK_NORM_CHOICES = ChoiceEnum(list(QK_NORMS))
# more is a mistake, or the configuration of somebody who wants the machine to run out of memory
MOST_LAYERS, MOST_CHANNELS, MOST_POSITIONS = 1000, 2**20, 2**24


@dataclass
class DecoderConfig(FairseqDataclass):
    """Options of a decoder's shape."""

    embed_dim: int = field(default=1024, metadata={"help": "size of the hidden states"})
    num_layers: int = field(default=24, metadata={"help": "number of blocks"})
    num_attention_heads: int = field(
        default=16, metadata={"help": "attention heads; must divide --embed-dim unless --head-dim"}
    )
    fitted_search_layer: int = field(
        default=0,
        metadata={
            "help": "hidden state whose mean was taken when the checkpoint was converted, for "
            "--memory-search hidden; 0: none"
        },
    )
    num_kv_heads: int = field(
        default=0,
        metadata={
            "help": "heads of keys and values, which must divide --num-attention-heads "
            "(grouped-query attention); 0: as many"
        },
    )
    head_dim: int = field(
        default=0, metadata={"help": "channels of a head; 0: --embed-dim / --num-attention-heads"}
    )
    ffn_dim: int = field(default=0, metadata={"help": "units of the MLP; 0: 4 * --embed-dim"})
    block: BLOCK_CHOICES = field(
        default="parallel",
        metadata={
            "help": "attention and MLP side by side on one norm (parallel), on a norm each "
            "(parallel_two_norms), or one after the other (sequential)"
        },
    )
    no_pre_norms: bool = field(
        default=False, metadata={"help": "do not normalize the input of a block's branches"}
    )
    post_norms: bool = field(
        default=False, metadata={"help": "also normalize what a branch of a block adds"}
    )
    residual_scale: float = field(
        default=1.0, metadata={"help": "factor of what a branch of a block adds"}
    )
    norm: NORM_CHOICES = field(default="layer_norm", metadata={"help": "kind of every norm"})
    layer_norm_eps: float = field(default=1e-6, metadata={"help": "epsilon of every norm"})
    activation_fn: ACTIVATION_CHOICES = field(
        default="gelu_tanh", metadata={"help": "activation of the MLP"}
    )
    gated_mlp: bool = field(
        default=False, metadata={"help": "the activation gates a second projection (SwiGLU, GeGLU)"}
    )
    no_mlp_bias: bool = field(default=False, metadata={"help": "MLP without biases"})
    qkv_bias: bool = field(
        default=False, metadata={"help": "projections to queries, keys and values with biases"}
    )
    out_bias: bool = field(
        default=False, metadata={"help": "attention's output projection with a bias"}
    )
    qk_norm: bool = field(
        default=False, metadata={"help": "normalize every query and key; see --qk-norm-kind"}
    )
    qk_norm_kind: QK_NORM_CHOICES = field(
        default="head_rms_norm",
        metadata={
            "help": "--qk-norm over the channels of a head, with the same weights for all heads "
            "(head_rms_norm); over those of all heads at once (all_heads_rms_norm); or over those of a "
            "head, with weights of its own (heads_layer_norm)"
        },
    )
    query_scale: float = field(
        default=1.0,
        metadata={"help": "factor of queries, besides that of scores, 1 / sqrt(--head-dim)"},
    )
    attention_softcap: float = field(
        default=0.0, metadata={"help": "attention scores stay within this by tanh; 0: unlimited"}
    )
    logit_scale: float = field(
        default=1.0, metadata={"help": "factor of the logits, but for the head's bias"}
    )
    logit_softcap: float = field(
        default=0.0, metadata={"help": "logits stay within this by tanh; 0: unlimited"}
    )
    positions: POSITION_CHOICES = field(
        default="alibi",
        metadata={"help": "ALiBi, learned embeddings of --max-positions, or rotary"},
    )
    max_positions: int = field(
        default=0, metadata={"help": "learned embeddings, the longest --tokens-per-sample"}
    )
    alibi_scale: float = field(default=1.0, metadata={"help": "factor of ALiBi's slopes"})
    rotary_dim: int = field(
        default=0, metadata={"help": "channels of a head that are rotated; 0: all"}
    )
    rotary_base: float = field(
        default=10000.0, metadata={"help": "ratio of the longest to the shortest wavelength"}
    )
    rotary_scaling: str = field(
        default="",
        metadata={
            "help": "how wavelengths are stretched, as JSON with the names of Hugging Face's "
            'rope_scaling: {"rope_type": "linear", "factor": 8}, or dynamic, llama3, yarn, longrope'
        },
    )
    no_rotary_layers: List[int] = field(
        default_factory=list,
        metadata={"help": "layers (from 0, as 3,7) without rotary, that is, without positions"},
    )
    sliding_window: int = field(
        default=0, metadata={"help": "tokens that --sliding-layers see, the query's own included"}
    )
    sliding_layers: List[int] = field(
        default_factory=list,
        metadata={"help": "layers (from 0, as 0,2) that see --sliding-window tokens only"},
    )
    sliding_rotary_base: float = field(
        default=0.0,
        metadata={"help": "--rotary-base of --sliding-layers, unscaled; 0: as the other layers"},
    )
    embed_scale: float = field(default=1.0, metadata={"help": "factor of the token embeddings"})
    embed_norm: bool = field(default=False, metadata={"help": "normalize the token embeddings"})
    tied_head: bool = field(
        default=False, metadata={"help": "the output head is the token embedding"}
    )
    no_head_bias: bool = field(default=False, metadata={"help": "output head without a bias"})
    smeared_key_layers: List[int] = field(
        default_factory=list,
        metadata={
            "help": "layers (from 0, as 2,3) whose k_proj takes half of its channels from the previous "
            "token: small models learn to copy many times sooner, and there; a cached key then says "
            "what came before it"
        },
    )


def key_value_sizes(cfg: DecoderConfig) -> Tuple[int, int]:
    """Heads of keys and values, and channels of a head."""
    heads = cfg.num_attention_heads
    return cfg.num_kv_heads or heads, cfg.head_dim or cfg.embed_dim // heads


def block_shape(cfg: DecoderConfig, layer: int) -> Dict[str, Any]:
    """Arguments of the :class:`DecoderBlock` of a layer, besides embed_dim and num_heads."""
    return {
        "activation": str(cfg.activation_fn),
        "layer_norm_eps": cfg.layer_norm_eps,
        "block": str(cfg.block),
        "norm": str(cfg.norm),
        "ffn_dim": cfg.ffn_dim or None,
        "gated_mlp": cfg.gated_mlp,
        "mlp_bias": not cfg.no_mlp_bias,
        "pre_norms": not cfg.no_pre_norms,
        "post_norms": cfg.post_norms,
        "residual_scale": cfg.residual_scale,
        "num_kv_heads": cfg.num_kv_heads or None,
        "head_dim": cfg.head_dim or None,
        "qkv_bias": cfg.qkv_bias,
        "out_bias": cfg.out_bias,
        "qk_norm_eps": cfg.layer_norm_eps if cfg.qk_norm else None,
        "qk_norm": str(cfg.qk_norm_kind),
        "query_scale": cfg.query_scale,
        "rotary": rotary_of(cfg, layer),
        "softcap": cfg.attention_softcap,
        "smeared_keys": layer in cfg.smeared_key_layers,
    }


def rotary_of(cfg: DecoderConfig, layer: int) -> Optional[Rotary]:
    """Rotary positions of a layer; None where it has none."""
    if str(cfg.positions) != "rotary" or layer in cfg.no_rotary_layers:
        return None
    channels = cfg.rotary_dim or key_value_sizes(cfg)[1]
    if layer in cfg.sliding_layers and cfg.sliding_rotary_base > 0:
        return Rotary(channels, cfg.sliding_rotary_base)
    return Rotary(channels, cfg.rotary_base, cfg.rotary_scaling)


def check_decoder(cfg: DecoderConfig, window: int) -> None:
    """Checks the options of a decoder against each other.

    Args:
        window: tokens of a segment

    Raises:
        ValueError: naming the option that does not fit
    """
    _check_sizes(cfg)
    _check_heads(cfg)
    _check_layers(cfg)
    if str(cfg.positions) == "learned" and window > cfg.max_positions:
        raise ValueError(
            f"--tokens-per-sample ({window}) must not exceed the {cfg.max_positions} positions that "
            "the model has learned (--max-positions)"
        )


def _check_sizes(cfg: DecoderConfig) -> None:
    """Limits of every size on its own."""
    for option, value, least, most in (
        ("--num-layers", cfg.num_layers, 1, MOST_LAYERS),
        ("--embed-dim", cfg.embed_dim, 1, MOST_CHANNELS),
        ("--num-attention-heads", cfg.num_attention_heads, 1, MOST_CHANNELS),
        ("--num-kv-heads", cfg.num_kv_heads, 0, cfg.num_attention_heads),
        ("--head-dim", cfg.head_dim, 0, MOST_CHANNELS),
        ("--ffn-dim", cfg.ffn_dim, 0, MOST_CHANNELS),
        ("--max-positions", cfg.max_positions, 0, MOST_POSITIONS),
    ):
        if not least <= value <= most:
            raise ValueError(f"{option} ({value}) must be between {least} and {most:,}")


def _check_heads(cfg: DecoderConfig) -> None:
    """Divisibility of channels and heads."""
    heads, kv_heads = cfg.num_attention_heads, cfg.num_kv_heads
    if cfg.head_dim == 0 and cfg.embed_dim % heads != 0:
        raise ValueError(
            f"--embed-dim ({cfg.embed_dim}) must be a multiple of --num-attention-heads ({heads})"
        )
    head_dim = key_value_sizes(cfg)[1]
    if not 0 <= cfg.rotary_dim <= head_dim:
        raise ValueError(
            f"--rotary-dim ({cfg.rotary_dim}) must be between 0 and the {head_dim} channels of a head"
        )
    if kv_heads > 0 and heads % kv_heads != 0:
        raise ValueError(
            f"--num-attention-heads ({heads}) must be a multiple of --num-kv-heads ({kv_heads})"
        )


def _check_layers(cfg: DecoderConfig) -> None:
    """Options that list layers."""
    for option, layers in (
        ("--smeared-key-layers", cfg.smeared_key_layers),
        ("--sliding-layers", cfg.sliding_layers),
        ("--no-rotary-layers", cfg.no_rotary_layers),
    ):
        for layer in layers:
            if not 0 <= layer < cfg.num_layers:
                raise ValueError(f"{option} ({layer}) must be between 0 and {cfg.num_layers - 1}")
    if bool(cfg.sliding_layers) != (cfg.sliding_window > 0):
        raise ValueError(
            f"--sliding-layers ({cfg.sliding_layers}) and --sliding-window ({cfg.sliding_window}) go "
            "together: give both or none"
        )
