"""Small random models of every family, as transformers saves them."""

import torch
import transformers

VOCAB = 64
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **IDS,
}
FALCON = {
    **{name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
    "num_attention_heads": 4,
    **IDS,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WITHOUT_GROUPS = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.5, 6.0],
}
GEMMA = {**SMALL, "head_dim": 16, "query_pre_attn_scalar": 10, "sliding_window": 5}
MODELS = {  # name: (configuration class, options)
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
        | {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1},
    ),
    "opt": (
        "OPT",
        {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")}
        | {"ffn_dim": 48, "pad_token_id": 1, "bos_token_id": 2},
    ),
    "bloom": (
        "Bloom",
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4} | IDS,
    ),
    "bloom-6-heads": (
        "Bloom",
        {"vocab_size": VOCAB, "hidden_size": 24, "n_layer": 4, "n_head": 6} | IDS,
    ),
    "neox": ("GPTNeoX", WITHOUT_GROUPS),
    "neox-sequential": (
        "GPTNeoX",
        WITHOUT_GROUPS | {"use_parallel_residual": False, "hidden_act": "gelu_fast"},
    ),
    "falcon-7b": ("Falcon", {**FALCON, "multi_query": True}),
    "falcon-40b": ("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
        | {"num_ln_in_parallel_attn": 1, "ffn_hidden_size": 40},
    ),
    "falcon-rw": (
        "Falcon",
        {**FALCON, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
    ),
    "llama": ("Llama", SMALL),
    "llama-biases": (
        "Llama",
        {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 12}
        | {"tie_word_embeddings": True},
    ),
    "llama-linear": (
        "Llama",
        {**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama3": ("Llama", {**SMALL, "rope_parameters": LLAMA3, "eos_token_id": [2, 5]}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 5}),
    "qwen2": (
        "Qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 16}),
    "llama-yarn": ("Llama", {**SMALL, "rope_parameters": YARN}),
    "llama-dynamic": (
        "Llama",
        {**SMALL, "max_position_embeddings": 16}
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "qwen3-yarn": (
        "Qwen3",
        {**SMALL, "head_dim": 16}
        | {"rope_parameters": {**YARN, "beta_fast": 8, "mscale": 1.5, "mscale_all_dim": 0.5}},
    ),
    "smollm3": ("SmolLM3", {**SMALL, "no_rope_layer_interval": 3}),
    "smollm3-windows": (
        "SmolLM3",
        {**SMALL, "no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": 5},
    ),
    "granite": (
        "Granite",
        {**SMALL, "embedding_multiplier": 3.0, "residual_multiplier": 0.4}
        | {"attention_multiplier": 0.2, "logits_scaling": 4.0},
    ),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 5}),
    "phi4-mini": (
        "Phi3",
        {**SMALL, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}
        | {"original_max_position_embeddings": 5, "rope_parameters": LONGROPE},
    ),
    "olmo2": ("Olmo2", SMALL),
    "exaone4": ("Exaone4", {**SMALL, "sliding_window": 5, "sliding_window_pattern": 2}),
    "exaone4-small": (
        "Exaone4",
        {**SMALL, "head_dim": 16, "sliding_window": None, "rope_parameters": LLAMA3}
        | {"layer_types": ["full_attention"] * 4},
    ),
    "exaone4-32b": (
        "Exaone4",
        {**SMALL, "sliding_window": 5, "sliding_window_pattern": "LLLG", "rope_parameters": LLAMA3}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    "cohere": ("Cohere", {**SMALL, "logit_scale": 0.25}),
    "cohere-plus": ("Cohere", {**SMALL, "use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("Cohere2", {**SMALL, "sliding_window": 5, "sliding_window_pattern": 2}),
    "stablelm": ("StableLm", {**SMALL, "use_qkv_bias": True}),
    "stablelm-12b": (
        "StableLm",
        {**SMALL, "use_parallel_residual": True, "qk_layernorm": True}
        | {"partial_rotary_factor": 0.5},
    ),
    "starcoder2": ("Starcoder2", {**SMALL, "sliding_window": 5}),
    "gpt-neo": (
        "GPTNeo",
        {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 5}
        | {"max_position_embeddings": 64, "attention_types": [[["local", "global"], 2]]}
        | {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1},
    ),
    "gptj": (
        "GPTJ",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
        | {"rotary_dim": 4, "bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1},
    ),
    "gemma": ("Gemma", {**SMALL, "head_dim": 16, "hidden_act": "gelu"}),
    "gemma2": (
        "Gemma2",
        {**GEMMA, "attn_logit_softcapping": 0.7, "final_logit_softcapping": 0.9},
    ),
    "gemma3": (
        "Gemma3Text",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            }
        },
    ),
}


def make_model(name, folder, tokenizer=None, saving=None, **changes):
    """Saves a model with weights large enough to matter in *folder*, and returns it.

    Args:
        tokenizer: of the package tokenizers, to be saved with it
        saving: arguments of ``save_pretrained``
        changes: options of the configuration
    """
    kind, sizes = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **changes})
    # only eager attention knows softcapping; but it counts Falcon's ALiBi twice
    config._attn_implementation = "sdpa" if kind == "Falcon" else "eager"
    torch.manual_seed(1)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{kind.removesuffix('Text')}{head}")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, **(saving or {}))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return model
