"""The options of Hugging Face language models (config.json) as fields of LongMemBackboneConfig.

One function per family. What its tensors are called, and how they differ, stands in hf_families.py.
"""

import json
from typing import Any, Dict, Iterable

from longmem_fairseq.modules.rotary import SCALINGS

Config = Dict[str, Any]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def require(config: Config, **expected: Any) -> None:
    """Raises ValueError where an option of config.json is there and has another value."""
    for name, value in expected.items():
        if config.get(name, value) not in (value, None):
            raise ValueError(f"config.json: {name} ({config[name]}) is not supported, only {value}")


def activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(
            f"config.json: activation {name}, expected one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def rotary(config: Config, head_dim: int, share: float = 1.0, kind: str = "") -> Config:
    """Options of rotary positions, as configurations old and new spell them.

    Args:
        share: of the channels of a head, where config.json does not say
        kind: of the layers, where they differ
    """
    parameters = config.get("rope_parameters") or {}
    parameters = parameters.get(kind, parameters)
    rule = config.get("rope_scaling") or parameters
    name = rule.get("rope_type", rule.get("type", "default"))
    scaling = ""
    if name != "default":
        if name not in SCALINGS:
            raise ValueError(
                f"config.json: rotary scaling {name} is not supported, only {', '.join(SCALINGS)}"
            )
        scaling = json.dumps({"rope_type": name, **{key: rule[key] for key in SCALINGS[name]}})
    base = config.get("rope_theta", config.get("rotary_emb_base", 10000.0))
    share = config.get("partial_rotary_factor", config.get("rotary_pct", share))
    return {
        "positions": "rotary",
        "rotary_dim": int(head_dim * parameters.get("partial_rotary_factor", share)),
        "rotary_base": float(parameters.get("rope_theta", base)),
        "rotary_scaling": scaling,
    }


def sliding(config: Config, layers: Iterable[int]) -> Config:
    """The layers with a sliding window: those that config.json lists, else *layers*."""
    kinds = config.get("layer_types")
    if kinds is not None:
        layers = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
    layers = list(layers)
    window = config.get("sliding_window")
    if not window or not layers:
        return {}
    return {"sliding_window": window, "sliding_layers": layers}


def gpt2(config: Config) -> Config:
    require(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    return {
        "embed_dim": config["n_embd"],
        "num_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "ffn_dim": config.get("n_inner") or 0,
        "block": "sequential",
        "activation_fn": activation(config.get("activation_function", "gelu_new")),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "qkv_bias": True,
        "out_bias": True,
        "positions": "learned",
        "max_positions": config["n_positions"],
    }


def opt(config: Config) -> Config:
    # opt-350m alone differs in all of these
    require(config, do_layer_norm_before=True, word_embed_proj_dim=config["hidden_size"])
    require(config, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True)
    bias = config.get("enable_bias", True)
    return {
        "embed_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "ffn_dim": config["ffn_dim"],
        "block": "sequential",
        "activation_fn": activation(config.get("activation_function", "relu")),
        "layer_norm_eps": 1e-5,
        "qkv_bias": bias,
        "out_bias": bias,
        "no_mlp_bias": not bias,
        "positions": "learned",
        "max_positions": config["max_position_embeddings"],
    }


def bloom(config: Config) -> Config:
    require(config, apply_residual_connection_post_layernorm=False)
    return {
        "embed_dim": config.get("hidden_size", config.get("n_embed")),
        "num_layers": config.get("n_layer", config.get("num_hidden_layers")),
        "num_attention_heads": config.get("n_head", config.get("num_attention_heads")),
        "block": "sequential",
        "activation_fn": "gelu_tanh",
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "qkv_bias": True,
        "out_bias": True,
        "positions": "alibi",
        "embed_norm": True,
    }


def gpt_neox(config: Config) -> Config:
    heads, bias = config["num_attention_heads"], config.get("attention_bias", True)
    return {
        "embed_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "ffn_dim": config["intermediate_size"],
        "block": "parallel_two_norms"
        if config.get("use_parallel_residual", True)
        else "sequential",
        "activation_fn": activation(config.get("hidden_act", "gelu")),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
        "qkv_bias": bias,
        "out_bias": bias,
        **rotary(config, config["hidden_size"] // heads, share=0.25),
    }


def falcon(config: Config) -> Config:
    heads, bias = config["num_attention_heads"], config.get("bias", False)
    head_dim, new = config["hidden_size"] // heads, config.get("new_decoder_architecture", False)
    kv_heads = 1 if config.get("multi_query", True) else heads
    if new:
        require(config, parallel_attn=True)
        kv_heads = config.get("num_kv_heads") or heads
    block = "parallel" if config.get("parallel_attn", True) else "sequential"
    if new and (config.get("num_ln_in_parallel_attn") or 2) == 2:
        block = "parallel_two_norms"
    positions = {"positions": "alibi", "alibi_scale": head_dim**-0.5}
    return {
        "embed_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "ffn_dim": config.get("ffn_hidden_size") or 0,
        "block": block,
        "activation_fn": activation(config.get("activation", "gelu")),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "qkv_bias": bias,
        "out_bias": bias,
        "no_mlp_bias": not bias,
        **(positions if config.get("alibi", False) else rotary(config, head_dim)),
    }


def llama(config: Config) -> Config:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    bias = config.get("attention_bias", False)
    return {
        "embed_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "ffn_dim": config["intermediate_size"],
        "block": "sequential",
        "norm": "rms_norm",
        "layer_norm_eps": config.get("rms_norm_eps", 1e-6),
        "activation_fn": activation(config.get("hidden_act", "silu")),
        "gated_mlp": True,
        "no_mlp_bias": not config.get("mlp_bias", False),
        "qkv_bias": bias,
        "out_bias": bias,
        **rotary(config, head_dim),
    }


def mistral(config: Config) -> Config:
    return {**llama(config), **sliding(config, range(config["num_hidden_layers"]))}


def qwen(config: Config) -> Config:
    options = llama(config)
    if config.get("use_sliding_window", False):
        first = config.get("max_window_layers", 28)
        options.update(sliding(config, range(first, config["num_hidden_layers"])))
    return options


def qwen2(config: Config) -> Config:
    return {**qwen(config), "qkv_bias": True, "out_bias": False}


def qwen3(config: Config) -> Config:
    return {**qwen(config), "qk_norm": True}


def gemma2(config: Config) -> Config:
    require(config, use_bidirectional_attention=False)
    # what config.json leaves out is as in the smallest model
    config = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, **config}
    config["hidden_act"] = config.get("hidden_activation") or "gelu_pytorch_tanh"
    return {
        **llama(config),
        "post_norms": True,
        "embed_scale": config["hidden_size"] ** 0.5,
        "attention_softcap": config.get("attn_logit_softcapping", 50.0) or 0.0,
        "logit_softcap": config.get("final_logit_softcapping", 30.0) or 0.0,
        **sliding(config, range(0, config["num_hidden_layers"], 2)),
    }


def gemma3(config: Config) -> Config:
    soft = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = {"rope_theta": 1e6, "sliding_window": 4096, **soft, **config}
    pattern = config.get("sliding_window_pattern", 6)
    options = gemma2(config)
    full = rotary(config, options["head_dim"], kind="full_attention")
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    layers = [i for i in range(config["num_hidden_layers"]) if (i + 1) % pattern != 0]
    base = config.get("rope_local_base_freq", 10000.0)
    return {
        **options,
        "qk_norm": True,
        **full,
        **sliding(config, layers),
        "sliding_rotary_base": float(local.get("rope_theta", base)),
    }
