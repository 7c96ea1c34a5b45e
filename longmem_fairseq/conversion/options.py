"""The options of Hugging Face language models (config.json) as fields of LongMemBackboneConfig.

One function per family: here those that descend from LLaMA, in gpt_options.py the others. The names of
their tensors stand in families.py. Each raises KeyError for an option that config.json lacks, and
ValueError for one that is not supported.
"""

import json
import math
from typing import Any, Dict, Iterable, List

from longmem_fairseq.modules.rotary_scaling import ORIGINAL, SCALINGS

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
    """Our name of an activation.

    Raises:
        ValueError: there is none
    """
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
    base = config.get("rope_theta", config.get("rotary_emb_base", 10000.0))
    share = config.get("partial_rotary_factor", config.get("rotary_pct", share))
    return {
        "positions": "rotary",
        "rotary_dim": int(head_dim * parameters.get("partial_rotary_factor", share)),
        "rotary_base": float(parameters.get("rope_theta", base)),
        "rotary_scaling": _scaling(config.get("rope_scaling") or parameters, config),
    }


def _scaling(rule: Config, config: Config) -> str:
    name = rule.get("rope_type", rule.get("type", "default"))
    if name == "default":
        return ""
    if name not in SCALINGS:
        raise ValueError(
            f"config.json: rotary scaling {name} is not supported, only {', '.join(SCALINGS)}"
        )
    numbers = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
    numbers.update({key: value for key, value in rule.items() if value is not None})
    most = config.get("max_position_embeddings")
    original = config.get(ORIGINAL) or numbers.get(ORIGINAL, most)
    if ORIGINAL in SCALINGS[name]:
        numbers[ORIGINAL] = config["max_position_embeddings"] if name == "dynamic" else original
    if "attention_factor" in SCALINGS[name]:
        factor = numbers.setdefault("factor", most / original)
        numbers.setdefault("attention_factor", _attention_factor(name, factor, numbers))
    return json.dumps({"rope_type": name, **{key: numbers[key] for key in SCALINGS[name]}})


def _attention_factor(name: str, factor: float, numbers: Config) -> float:
    """By which queries and keys grow, where config.json does not say."""
    if factor <= 1:
        return 1.0
    if name == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(numbers[ORIGINAL]))
    growth = 0.1 * math.log(factor)
    if numbers.get("mscale") and numbers.get("mscale_all_dim"):
        return (numbers["mscale"] * growth + 1) / (numbers["mscale_all_dim"] * growth + 1)
    return growth + 1


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


def llama(config: Config) -> Config:
    """LLaMA."""
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
    """Mistral."""
    return {**llama(config), **sliding(config, range(config["num_hidden_layers"]))}


def qwen(config: Config) -> Config:
    """The common part of Qwen 2 and 3."""
    options = llama(config)
    if config.get("use_sliding_window", False):
        first = config.get("max_window_layers", 28)
        options.update(sliding(config, range(first, config["num_hidden_layers"])))
    return options


def qwen2(config: Config) -> Config:
    """Qwen 2."""
    return {**qwen(config), "qkv_bias": True, "out_bias": False}


def qwen3(config: Config) -> Config:
    """Qwen 3."""
    return {**qwen(config), "qk_norm": True}


def smollm3(config: Config) -> Config:
    """SmolLM3."""
    config = {"num_key_value_heads": 4, "rope_theta": 2e6, **config}
    num_layers, every = config["num_hidden_layers"], config.get("no_rope_layer_interval", 4)
    # the name misleads: 0 is a layer without
    turned = config.get("no_rope_layers") or [(i + 1) % every for i in range(num_layers)]
    layers = [layer for layer, turns in enumerate(turned[:num_layers]) if not turns]
    options = {**llama(config), "no_rotary_layers": layers}
    if config.get("use_sliding_window", False):
        options.update(sliding(config, layers))
    return options


def phi3(config: Config) -> Config:
    """Phi-3."""
    config = {ORIGINAL: 4096, **config}
    for place in ("rope_scaling", "rope_parameters"):
        rule = config.get(place) or {}
        if rule.get("rope_type", rule.get("type")) in ("su", "yarn"):  # its first names of longrope
            config[place] = {**rule, "rope_type": "longrope"}
    return {**mistral(config), "qkv_bias": False, "out_bias": False}


def granite(config: Config) -> Config:
    """Granite 3."""
    options = llama(config)
    return {
        **options,
        "embed_scale": config.get("embedding_multiplier", 1.0),
        "residual_scale": config.get("residual_multiplier", 1.0),
        "query_scale": config.get("attention_multiplier", 1.0) * options["head_dim"] ** 0.5,
        "logit_scale": 1 / config.get("logits_scaling", 1.0),
    }


def olmo2(config: Config) -> Config:
    """OLMo 2."""
    return {
        **llama({"rms_norm_eps": 1e-5, **config}),
        "no_pre_norms": True,
        "post_norms": True,
        "qk_norm": True,
        "qk_norm_kind": "all_heads_rms_norm",
    }


def exaone4(config: Config) -> Config:
    """EXAONE 4."""
    every, windows = config.get("sliding_window_pattern", 4), {}
    if config.get("sliding_window"):
        if config.get("layer_types") is None and type(every) is not int:
            raise ValueError(f"config.json: sliding_window_pattern ({every}) needs layer_types")
        windows = sliding(config, _all_but_every(every, config) if type(every) is int else ())
    return {
        **llama({"rms_norm_eps": 1e-5, **config}),
        "no_pre_norms": True,
        "post_norms": True,
        "qk_norm": True,
        **windows,
        "no_rotary_layers": _others(windows, config) if config.get("sliding_window") else [],
    }


def cohere(config: Config) -> Config:
    """Cohere's Command R."""
    return {
        **llama({"rope_theta": 5e5, **config}),
        "block": "parallel",
        "norm": "layer_norm_no_bias",
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
        "logit_scale": config.get("logit_scale", 0.0625),
        "qk_norm": config.get("use_qk_norm", False),
        "qk_norm_kind": "heads_layer_norm",
    }


def cohere2(config: Config) -> Config:
    """Cohere's Command R7B."""
    every = config.get("sliding_window_pattern", 4)
    windows = sliding({"sliding_window": 4096, **config}, _all_but_every(every, config))
    return {**cohere(config), **windows, "no_rotary_layers": _others(windows, config)}


def _all_but_every(nth: int, config: Config) -> List[int]:
    return [i for i in range(config["num_hidden_layers"]) if (i + 1) % nth != 0]


def _others(windows: Config, config: Config) -> List[int]:
    """The layers that do not slide."""
    sliding_layers = windows.get("sliding_layers", ())
    return [i for i in range(config["num_hidden_layers"]) if i not in sliding_layers]


def gemma(config: Config) -> Config:
    """Gemma."""
    require(config, use_bidirectional_attention=False, hidden_activation="gelu_pytorch_tanh")
    config = {"head_dim": 256, **config}
    if config.get("hidden_act", "gelu") == "gelu":  # the first releases say so and mean
        config["hidden_act"] = "gelu_pytorch_tanh"
    return {**llama(config), "embed_scale": config["hidden_size"] ** 0.5}


def gemma2(config: Config) -> Config:
    """Gemma 2."""
    require(config, use_bidirectional_attention=False)
    # options that config.json leaves out are those of the smallest model
    config = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, **config}
    config["hidden_act"] = config.get("hidden_activation") or "gelu_pytorch_tanh"
    return {
        **llama(config),
        "post_norms": True,
        "query_scale": (config["head_dim"] / config.get("query_pre_attn_scalar", 256)) ** 0.5,
        "embed_scale": config["hidden_size"] ** 0.5,
        "attention_softcap": config.get("attn_logit_softcapping", 50.0) or 0.0,
        "logit_softcap": config.get("final_logit_softcapping", 30.0) or 0.0,
        **sliding(config, range(0, config["num_hidden_layers"], 2)),
    }


def gemma3(config: Config) -> Config:
    """Gemma 3's language model."""
    soft = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = {"rope_theta": 1e6, "sliding_window": 4096, **soft, **config}
    pattern = config.get("sliding_window_pattern", 6)
    options = gemma2(config)
    full = rotary(config, options["head_dim"], kind="full_attention")
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    require(local, rope_type="default")
    base = config.get("rope_local_base_freq", 10000.0)
    return {
        **options,
        "qk_norm": True,
        **full,
        **sliding(config, _all_but_every(pattern, config)),
        "sliding_rotary_base": float(local.get("rope_theta", base)),
    }
