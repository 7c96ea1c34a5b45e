"""GGUF files of small random models, as llama.cpp's convert_hf_to_gguf.py writes them."""

import math

import gguf
import torch

ARCHITECTURES = {  # by transformers' model_type
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "bloom")},
    **{name: name for name in ("falcon", "phi3", "stablelm", "starcoder2", "olmo2", "smollm3")},
    **{name: name for name in ("granite", "exaone4", "cohere2")},
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "cohere": "command-r",
    "mistral": "llama",
}
PERMUTED = ("llama", "granite", "smollm3")
GROUPED = ("bloom", "falcon", "gptneox")


def write_gguf(model, path, tokenizer=(), quantization=None, changes=(), **splits):
    """
    Args:
        model: of transformers
        tokenizer: pairs of a key after ``tokenizer.`` and a value
        quantization: of matrices, as ``gguf.GGMLQuantizationType``
        changes: pairs of a key and a value, in place of what the model says
        splits: ``split_max_tensors``, for files of at most so many
    """
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, arch, **splits)
    values = {**hyperparameters(config, arch), **dict(changes)}
    for key, value in values.items():
        if value is not None:
            add(writer, f"{arch}.{key}", value)
    ids = {"bos": config.bos_token_id, "eos": config.eos_token_id, "padding": config.pad_token_id}
    for name, id_ in ids.items():
        if id_ is not None:
            writer.add_uint32(
                f"tokenizer.ggml.{name}_token_id", id_ if type(id_) is int else id_[0]
            )
    for key, value in tokenizer:
        add(writer, f"tokenizer.{key}", value)
    for name, tensor in tensors(model, arch):
        data = tensor.contiguous().numpy()
        kind = None
        if quantization is not None and tensor.dim() == 2 and tensor.size(1) % 32 == 0:
            data, kind = gguf.quants.quantize(data, quantization), quantization
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, key, value):
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds.update({str: writer.add_string, list: writer.add_array})
    kinds[type(value)](key, value)


def hyperparameters(config, arch):
    """By key after the architecture's name."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if arch == "falcon":
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    share = rope.get("partial_rotary_factor", 1.0)
    rms = getattr(config, "rms_norm_eps", None)
    epsilons = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
    epsilon = next((getattr(config, name) for name in epsilons if hasattr(config, name)), None)
    found = {
        "vocab_size": config.vocab_size,
        "context_length": getattr(config, "max_position_embeddings", None),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim if head_dim * heads != config.hidden_size else None,
        "attention.layer_norm_rms_epsilon": rms,
        "attention.layer_norm_epsilon": epsilon if rms is None else None,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": int(share * head_dim) if rope else None,
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "logit_scale": getattr(config, "logit_scale", getattr(config, "logits_scaling", None)),
        "attention.scale": getattr(config, "attention_multiplier", None),
        "embedding_scale": getattr(config, "embedding_multiplier", None),
        "residual_scale": getattr(config, "residual_multiplier", None),
    }
    if rope.get("rope_type") in ("linear", "yarn"):
        found["rope.scaling.type"] = rope["rope_type"]
        found["rope.scaling.factor"] = rope["factor"]
        found["rope.scaling.original_context_length"] = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        found["rope.scaling.original_context_length"] = original
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    if arch == "gptneox":
        found["use_parallel_residual"] = config.use_parallel_residual
    if arch == "exaone4" and config.sliding_window:
        slides = [kind == "sliding_attention" for kind in config.layer_types]
        found["attention.sliding_window_pattern"] = slides
    if arch == "gemma3":
        found["attention.sliding_window_pattern"] = 2
        found["rope.freq_base_swa"] = config.rope_parameters["sliding_attention"]["rope_theta"]
    return found


def tensors(model, arch):
    """Names and values as llama.cpp has them."""
    config = model.config
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    stacked = {}
    for name, tensor in model.state_dict().items():
        module, _, parameter = name.rpartition(".")
        if module in ("lm_head", "embed_out") and tied:
            continue
        norms, _, head = module.rpartition(".norms.")
        if norms:  # StableLM's, one for each head
            stacked.setdefault(f"{table.get_name(norms)}.{parameter}", []).append(tensor)
            continue
        found = table.get_name(module) or table.get_name(module.removeprefix("transformer."))
        yield f"{found}.{parameter}", _changed(found, tensor, config, arch)
    yield from ((name, torch.stack(parts)) for name, parts in stacked.items())
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(config, rope)
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(rope["long_factor"])
        yield "rope_factors_short.weight", torch.tensor(rope["short_factor"])


def _changed(name, tensor, config, arch):
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if arch in PERMUTED and name.endswith(("attn_q", "attn_k")):
        count = heads if name.endswith("attn_q") else kv_heads
        halves = tensor.reshape(count, 2, tensor.size(0) // count // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if arch in GROUPED and name.endswith("attn_qkv"):
        if arch == "falcon":
            kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
            kv_heads = kv_heads if config.multi_query or config.new_decoder_architecture else heads
        else:
            kv_heads = heads
        grouped = tensor.reshape(kv_heads, heads // kv_heads + 2, -1, *tensor.shape[1:])
        parts = (grouped[:, :-2], grouped[:, -2], grouped[:, -1])
        return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])
    if arch == "gpt2" and name.startswith("blk.") and tensor.dim() == 2:
        return tensor.t()
    if arch.startswith("gemma") and "norm" in name:
        return tensor + 1
    return tensor


def llama3_factors(config, rope):
    """As in the method generate_extra_tensors of llama.cpp's LlamaModel."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    original = rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    factors = []
    for wave in (2 * math.pi / frequencies).tolist():
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(float(rope["factor"]))
        else:
            smooth = (original / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors)
