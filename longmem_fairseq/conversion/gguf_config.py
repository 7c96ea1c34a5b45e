"""The metadata of a GGUF file as config.json, generation_config.json and tokenizer_config.json."""

import json
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch

from longmem_fairseq.conversion.families import FAMILIES
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
FACTORS = "rope_freqs.weight"


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
    config["num_kv_heads"] = kv_heads
    config["new_decoder_architecture"] = "blk.0.attn_norm_2.weight" in shapes or (
        1 < kv_heads < heads
    )
    config["num_ln_in_parallel_attn"] = 2 if "blk.0.attn_norm_2.weight" in shapes else 1
    config["multi_query"] = kv_heads == 1
    config["bias"] = "blk.0.attn_output.bias" in shapes
    config["ffn_hidden_size"] = config.get("intermediate_size")


def _gemma2(config: Config, metadata: Config, shapes: Shapes) -> None:
    # llama.cpp knows the number by the number of layers; the smaller models have head_dim
    is_largest = config["num_hidden_layers"] == 46
    _gemma_scale(config, is_largest)


def _gemma3(config: Config, metadata: Config, shapes: Shapes) -> None:
    _gemma_scale(config, config["num_hidden_layers"] == 62)
    config["rope_local_base_freq"] = metadata.get("gemma3.rope.freq_base_swa", 10000.0)
    pattern = metadata.get("gemma3.attention.sliding_window_pattern")
    if pattern is not None:
        config["sliding_window_pattern"] = pattern


def _gemma_scale(config: Config, is_largest: bool) -> None:
    head_dim = config.setdefault("head_dim", 256)
    whole = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = whole if is_largest else head_dim


class Architecture(NamedTuple):
    """
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
_ALL = {  # by general.architecture
    "llama": Architecture("llama", settle=_llama, permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", settle=_biases),
    "gemma2": Architecture("gemma2", settle=_gemma2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", settle=_gemma3, norm_offset=1.0),
    "gpt2": Architecture("gpt2", GPT2_KEYS, _gpt2),
    "bloom": Architecture("bloom", BLOOM_KEYS),
    "gptneox": Architecture("gpt_neox", settle=_gpt_neox),
    "falcon": Architecture("falcon", FALCON_KEYS, _falcon),
}
ARCHITECTURES = {name: arch for name, arch in _ALL.items() if arch.model_type in FAMILIES}


def architecture(metadata: Config) -> Architecture:
    """
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


def model_config(metadata: Config, shapes: Shapes, factors: Optional[torch.Tensor]) -> Config:
    """config.json.

    Args:
        metadata: keys and values of the file
        shapes: of its tensors
        factors: ``rope_freqs.weight``, by which the wavelengths were stretched

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
    for special, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        config[f"{special}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    heads = metadata.get(f"{name}.attention.head_count")
    head_dim = config.get("head_dim", metadata.get(f"{name}.embedding_length", 0) // (heads or 1))
    turned = metadata.get(f"{name}.rope.dimension_count", head_dim)
    if head_dim and turned != head_dim:
        config["partial_rotary_factor"] = turned / head_dim
    config["rope_scaling"] = _scaling(metadata, name, config, turned, factors)
    arch.settle(config, metadata, shapes)
    return config


def _scaling(
    metadata: Config, name: str, config: Config, channels: int, factors: Optional[torch.Tensor]
) -> Optional[Config]:
    if factors is not None:
        return _llama3_scaling(config, channels, factors)
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    old = metadata.get(f"{name}.rope.scale_linear")
    if kind == "none" and old is None:
        return None
    rule = {"rope_type": "linear" if kind == "none" else kind}
    rule["factor"] = metadata.get(f"{name}.rope.scaling.factor", old)
    original = metadata.get(f"{name}.rope.scaling.original_context_length")
    if original is not None:
        rule["original_max_position_embeddings"] = original
    for key in ("beta_fast", "beta_slow"):
        value = metadata.get(f"{name}.rope.scaling.yarn_{key}")
        if value is not None:
            rule[key] = value
    return rule


def _llama3_scaling(config: Config, channels: int, factors: torch.Tensor) -> Config:
    """The rule that llama.cpp's converter replaced by what it makes of every wavelength.

    Raises:
        ValueError: no original length gives these factors
    """
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
    for special, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        id_ = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id_ is not None and id_ < len(tokens):
            found[f"{special}_token"] = tokens[id_]
    for name in ("add_bos_token", "add_eos_token"):
        if f"tokenizer.ggml.{name}" in metadata:
            found[name] = metadata[f"tokenizer.ggml.{name}"]
    if "tokenizer.chat_template" in metadata:
        found["chat_template"] = metadata["tokenizer.chat_template"]
    return found
