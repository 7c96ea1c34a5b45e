"""The metadata of a GGUF file as config.json, generation_config.json and tokenizer_config.json."""

import json
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.modules.rotary import Rotary

Config = Dict[str, Any]
Shapes = Dict[str, Tuple[int, ...]]

KEYS = {  # after "ARCHITECTURE.": the option of config.json
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
SPECIALS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # tokens, by our name
FACTORS, SHORT, LONG = (
    f"rope_{name}.weight" for name in ("freqs", "factors_short", "factors_long")
)
COMPUTED = (FACTORS, SHORT, LONG)  # by llama.cpp's converter from config.json


def _no_change(config: Config, metadata: Config, shapes: Shapes) -> None:
    """For architectures whose keys say it all."""


def _biases(config: Config, metadata: Config, shapes: Shapes) -> None:
    config["attention_bias"] = "blk.0.attn_output.bias" in shapes
    config["mlp_bias"] = "blk.0.ffn_down.bias" in shapes


def _llama(config: Config, metadata: Config, shapes: Shapes) -> None:
    _biases(config, metadata, shapes)
    if "sliding_window" in config:
        config["model_type"] = "mistral"


def _gpt2(config: Config, metadata: Config, shapes: Shapes) -> None:
    config["n_inner"] = metadata.get("gpt2.feed_forward_length")


def _gpt_neox(config: Config, metadata: Config, shapes: Shapes) -> None:
    config["use_parallel_residual"] = metadata.get("gptneox.use_parallel_residual", True)
    config["attention_bias"] = "blk.0.attn_output.bias" in shapes


def _falcon(config: Config, metadata: Config, shapes: Shapes) -> None:
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", 1)
    has_two_norms = "blk.0.attn_norm_2.weight" in shapes
    config["num_kv_heads"] = kv_heads
    config["new_decoder_architecture"] = has_two_norms or 1 < kv_heads < heads
    config["num_ln_in_parallel_attn"] = 2 if has_two_norms else 1
    config["multi_query"] = kv_heads == 1
    config["bias"] = "blk.0.attn_output.bias" in shapes
    config["ffn_hidden_size"] = shapes["blk.0.ffn_up.weight"][0]


def _gemma2(config: Config, metadata: Config, shapes: Shapes) -> None:
    # no key says it; llama.cpp knows the largest, which differs, by its number of layers
    _scale_queries(config, whole=config["num_hidden_layers"] == 46)


def _gemma3(config: Config, metadata: Config, shapes: Shapes) -> None:
    _scale_queries(config, whole=config["num_hidden_layers"] == 62)
    config["rope_local_base_freq"] = metadata.get("gemma3.rope.freq_base_swa", 10000.0)


def _scale_queries(config: Config, whole: bool) -> None:
    head_dim = config.setdefault("head_dim", 256)
    width = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = width if whole else head_dim


def _starcoder2(config: Config, metadata: Config, shapes: Shapes) -> None:
    config["use_bias"] = "blk.0.attn_q.bias" in shapes


def _stablelm(config: Config, metadata: Config, shapes: Shapes) -> None:
    config["use_qkv_bias"] = "blk.0.attn_q.bias" in shapes
    config["qk_layernorm"] = "blk.0.attn_q_norm.weight" in shapes
    config["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in shapes


def _cohere(config: Config, metadata: Config, shapes: Shapes) -> None:
    config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in shapes
    config["attention_bias"] = "blk.0.attn_q.bias" in shapes


def _olmo2(config: Config, metadata: Config, shapes: Shapes) -> None:
    if "sliding_window" in config:
        raise ValueError("olmo2.attention.sliding_window: OLMo 3 is not supported")


class Architecture(NamedTuple):
    """An architecture of llama.cpp's.

    model_type: in config.json
    keys: as in :data:`KEYS`, where config.json calls them something else
    settle: adds to a config.json what the metadata says otherwise
    permuted: rows of queries and keys are in the order that llama.cpp turns them in
    norm_offset: was added to the weights of norms
    """

    model_type: str
    keys: Dict[str, str] = {}
    settle: Callable[[Config, Config, Shapes], None] = _no_change
    permuted: bool = False
    norm_offset: float = 0.0


GPT2_KEYS = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
BLOOM_KEYS = {
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
FALCON_KEYS = {"attention.layer_norm_epsilon": "layer_norm_epsilon"}
STARCODER2_KEYS = {"attention.layer_norm_epsilon": "norm_epsilon"}
GRANITE_KEYS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
COHERE_KEYS = {"logit_scale": "logit_scale"}
ARCHITECTURES = {  # by general.architecture
    "llama": Architecture("llama", settle=_llama, permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", settle=_biases),
    "smollm3": Architecture("smollm3", settle=_biases, permuted=True),
    "granite": Architecture("granite", GRANITE_KEYS, _biases, permuted=True),
    "phi3": Architecture("phi3"),
    "olmo2": Architecture("olmo2", settle=_olmo2),
    "exaone4": Architecture("exaone4"),
    "command-r": Architecture("cohere", COHERE_KEYS, _cohere),
    "cohere2": Architecture("cohere2", COHERE_KEYS, _cohere),
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture("gemma2", settle=_gemma2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", settle=_gemma3, norm_offset=1.0),
    "gpt2": Architecture("gpt2", GPT2_KEYS, _gpt2),
    "bloom": Architecture("bloom", BLOOM_KEYS),
    "gptneox": Architecture("gpt_neox", settle=_gpt_neox),
    "falcon": Architecture("falcon", FALCON_KEYS, _falcon),
    "stablelm": Architecture("stablelm", settle=_stablelm),
    "starcoder2": Architecture("starcoder2", STARCODER2_KEYS, _starcoder2),
}


def architecture(metadata: Config) -> Architecture:
    """The architecture that a file names.

    Raises:
        ValueError: it is not one that can be converted
    """
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"general.architecture ({name}) is not supported, only {', '.join(ARCHITECTURES)}"
        )
    if metadata.get(f"{name}.expert_count"):
        raise ValueError(f"{name}.expert_count: mixtures of experts are not supported")
    return ARCHITECTURES[name]


def model_config(metadata: Config, shapes: Shapes, factors: Dict[str, Tensor]) -> Config:
    """config.json.

    Args:
        metadata: keys and values of the file
        shapes: of its tensors
        factors: of :data:`COMPUTED`, those that it has: by which wavelengths were stretched

    Raises:
        ValueError: of an architecture or with options that are not supported
    """
    arch = architecture(metadata)
    name = metadata["general.architecture"]
    config: Config = {"model_type": arch.model_type}
    for key, option in {**KEYS, **arch.keys}.items():
        value = metadata.get(f"{name}.{key}")
        if isinstance(value, list):  # one a layer
            if len(set(value)) != 1:
                raise ValueError(f"{name}.{key}: layers that differ are not supported")
            value = value[0]
        if value is not None:
            config[option] = value
    config.setdefault("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    config["tie_word_embeddings"] = "output.weight" not in shapes
    for special, key in SPECIALS.items():
        config[f"{special}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    heads = metadata.get(f"{name}.attention.head_count")
    head_dim = config.get("head_dim", metadata.get(f"{name}.embedding_length", 0) // (heads or 1))
    turned = metadata.get(f"{name}.rope.dimension_count", head_dim)
    if head_dim and turned != head_dim:
        config["partial_rotary_factor"] = turned / head_dim
    config["rope_scaling"] = _scaling(metadata, config, turned, factors)
    pattern = metadata.get(f"{name}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        kinds = ("full_attention", "sliding_attention")
        config["layer_types"] = [kinds[bool(slides)] for slides in pattern]
    elif pattern is not None:
        config["sliding_window_pattern"] = pattern
    arch.settle(config, metadata, shapes)
    return config


def _scaling(
    metadata: Config, config: Config, channels: int, factors: Dict[str, Tensor]
) -> Optional[Config]:
    prefix = f"{metadata['general.architecture']}.rope."
    keys = {  # the name in config.json
        "scaling.factor": "factor",
        "scale_linear": "factor",
        "scaling.original_context_length": "original_max_position_embeddings",
        "scaling.attn_factor": "attention_factor",
        "scaling.yarn_beta_fast": "beta_fast",
        "scaling.yarn_beta_slow": "beta_slow",
    }
    rule = {name: metadata[prefix + key] for key, name in keys.items() if prefix + key in metadata}
    kind = metadata.get(
        prefix + "scaling.type", "linear" if prefix + "scale_linear" in metadata else ""
    )
    if FACTORS in factors:
        return _llama3_scaling(config, channels, factors[FACTORS])
    if LONG in factors:
        rule["long_factor"] = factors[LONG].tolist()
        rule["short_factor"] = factors[SHORT].tolist()
        original = rule.get("original_max_position_embeddings")
        if original is not None:  # where Phi-3 has it
            config["original_max_position_embeddings"] = original
        kind = "longrope"
    return None if kind in ("", "none") else {"rope_type": kind, **rule}


def _llama3_scaling(config: Config, channels: int, factors: Tensor) -> Config:
    """The rule that llama.cpp's converter replaced by the factor of every wavelength.

    Raises:
        ValueError: no original length gives these factors
    """
    if 2 * factors.numel() != channels:
        raise ValueError(f"{FACTORS} has {factors.numel()} numbers, expected {channels // 2}")
    base = config.get("rope_theta", 10000.0)
    plain = Rotary(channels, base).frequencies()
    rule = {
        "factor": round(float(factors.max()), 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    for power in range(24):
        rule["original_max_position_embeddings"] = 2**power
        stretched = Rotary(
            channels, base, json.dumps({"rope_type": "llama3", **rule})
        ).frequencies()
        if torch.allclose(plain / stretched, factors, rtol=1e-5, atol=0):
            return {"rope_type": "llama3", **rule}
    raise ValueError(f"{FACTORS} is not of the rule llama3 with any original length")


def generation_config(metadata: Config) -> Config:
    """Everything that ends a text: eos, and the ends of a turn and of a message of chat models."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return {"eos_token_id": list(dict.fromkeys(id_ for id_ in ids if id_ is not None))}


def tokenizer_config(metadata: Config) -> Config:
    """Special tokens by name, and the template of a chat."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    found: Config = {}
    for special, key in SPECIALS.items():
        id_ = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id_ is not None and id_ < len(tokens):
            found[f"{special}_token"] = tokens[id_]
    for name in ("add_bos_token", "add_eos_token"):
        if f"tokenizer.ggml.{name}" in metadata:
            found[name] = metadata[f"tokenizer.ggml.{name}"]
    if "tokenizer.chat_template" in metadata:
        found["chat_template"] = metadata["tokenizer.chat_template"]
    return found
