"""The same as options.py for the families that do not descend from LLaMA."""

from itertools import chain, islice

from longmem_fairseq.conversion.options import Config, activation, llama, require, rotary, sliding


def gpt2(config: Config) -> Config:
    """GPT-2."""
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
    """OPT (not opt-350m)."""
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
    """BLOOM."""
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
    """GPT-NeoX and Pythia."""
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
    """Falcon, old and new."""
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


def gpt_neo(config: Config) -> Config:
    """GPT-Neo."""
    heads, num_layers = config["num_heads"], config["num_layers"]
    repeated = config.get("attention_types") or [[["global", "local"], 12]]
    every = (kinds for kinds, times in repeated for _ in range(min(times, num_layers + 1)))
    kinds = list(islice(chain.from_iterable(every), num_layers + 1))
    if len(kinds) != num_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(
            f"config.json: attention_types ({repeated}) must be global and local ones of "
            f"{num_layers} layers"
        )
    local = [layer for layer, kind in enumerate(kinds) if kind == "local"]
    return {
        "embed_dim": config["hidden_size"],
        "num_layers": num_layers,
        "num_attention_heads": heads,
        "ffn_dim": config.get("intermediate_size") or 0,
        "block": "sequential",
        "activation_fn": activation(config.get("activation_function", "gelu_new")),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "out_bias": True,
        "query_scale": (config["hidden_size"] // heads) ** 0.5,  # its scores are not scaled
        "positions": "learned",
        "max_positions": config["max_position_embeddings"],
        **sliding({"sliding_window": config.get("window_size", 256)}, local),
    }


def gptj(config: Config) -> Config:
    """GPT-J."""
    return {
        "embed_dim": config["n_embd"],
        "num_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "ffn_dim": config.get("n_inner") or 0,
        "block": "parallel",
        "activation_fn": activation(config.get("activation_function", "gelu_new")),
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "positions": "rotary",
        "rotary_dim": config.get("rotary_dim", 64),
        "no_head_bias": False,
    }


def starcoder2(config: Config) -> Config:
    """Starcoder 2."""
    bias = config.get("use_bias", True)
    options = llama({"hidden_act": "gelu_pytorch_tanh", **config})
    return {
        **options,
        "norm": "layer_norm",
        "layer_norm_eps": config.get("norm_epsilon", 1e-5),
        "gated_mlp": False,
        "no_mlp_bias": not bias,
        "qkv_bias": bias,
        "out_bias": bias,
        **sliding(config, range(config["num_hidden_layers"])),
    }


def stablelm(config: Config) -> Config:
    """StableLM 2."""
    options = llama(config)
    return {
        **options,
        "block": "parallel" if config.get("use_parallel_residual", False) else "sequential",
        "norm": "layer_norm",
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
        "qkv_bias": config.get("use_qkv_bias", False),
        "qk_norm": config.get("qk_layernorm", False),
        "qk_norm_kind": "heads_layer_norm",
        **rotary(config, options["head_dim"], share=0.25),
    }
