"""The families of Hugging Face models that can be converted, and the names of their tensors."""

import re
from typing import Callable, Dict, NamedTuple, Tuple

import torch
from torch import Tensor

from longmem_fairseq.conversion import gpt_options, options
from longmem_fairseq.conversion.options import Config

# causal masks and wavelengths that older versions saved with the weights
UNUSED = re.compile(r"\.(attn|(self_)?attention|self_attn)\.((masked_)?bias|rotary_emb\.inv_freq)$")
# of the models that also see
VISION = re.compile(r"(vision_tower|multi_modal_projector)\.")


def unchanged(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Most families' tensors are ours."""
    return tensor


def change_gpt2(name: str, tensor: Tensor, config: Config) -> Tensor:
    """GPT-2's matrices are transposed, and its q, k and v those of all heads in turn."""
    # its Conv1D is a transposed Linear
    if name.startswith("layers.") and tensor.dim() == 2:
        tensor = tensor.t()
    if "self_attn.qkv." in name:  # q, k and v of all heads in turn, not of each head
        heads = tensor.unflatten(0, (3, config["n_head"], -1))
        tensor = heads.transpose(0, 1).flatten(0, 2)
    return tensor


def change_opt(name: str, tensor: Tensor, config: Config) -> Tensor:
    """OPT's positions count from 2."""
    # fairseq, where OPT comes from, counts from the padding index on
    return tensor[2:] if name == "embed_positions.weight" else tensor


def change_gemma(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Gemma's norms multiply by 1 + weight."""
    return tensor.float() + 1 if "norm" in name else tensor


def change_phi3(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Phi-3's q, k and v are those of all heads in turn, not of each head."""
    if "self_attn.qkv." not in name:
        return tensor
    # the rows of all query heads, then those of all keys, then of all values, not of each head
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    parts = tensor.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
    return torch.cat([part.unflatten(0, (kv_heads, -1)) for part in parts], dim=1).flatten(0, 1)


def change_gptj(name: str, tensor: Tensor, config: Config) -> Tensor:
    """GPT-J's rotary turns neighboring channels."""
    head_dim = config["n_embd"] // config["n_head"]
    return unpaired(name, tensor, head_dim, config.get("rotary_dim", 64))


def change_cohere(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Cohere's rotary turns neighboring channels, and its norms of queries and keys are H x D."""
    if "self_attn.q_norm." in name or "self_attn.k_norm." in name:
        tensor = tensor.flatten()
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return unpaired(name, tensor, head_dim, head_dim)


def unpaired(name: str, tensor: Tensor, head_dim: int, rotary_dim: int) -> Tensor:
    """Rows of queries and keys for a rotary that turns channels i and i + n/2 together, where the
    model's turns neighbors."""
    if not re.search(r"self_attn\.[qk]_(proj|norm)\.", name):
        return tensor
    heads = tensor.unflatten(0, (-1, head_dim))
    turned, rest = heads[:, :rotary_dim], heads[:, rotary_dim:]
    return torch.cat([turned[:, 0::2], turned[:, 1::2], rest], dim=1).flatten(0, 1)


class Family(NamedTuple):
    """The models of one ``model_type``.

    options: config.json -> fields of LongMemBackboneConfig; ValueError for what is not supported
    blocks: the module that holds the layers
    modules: names of modules without their prefix -> ours; ``*.`` stands before those of a block and
        ``.#`` after those of which each head has its own; ``self_attn.qkv`` is all three projections in
        one: for each key/value head the rows of its query heads, those of its key, those of its value;
        ``gate_up`` is gate_proj and fc1
    prefixes: before the names of all modules but the head, as far as they are there
    change: our name, tensor, config.json -> the tensor in our layout
    tied: the head is the embedding, where config.json does not say
    """

    options: Callable[[Config], Config]
    blocks: str
    modules: Dict[str, str]
    prefixes: Tuple[str, ...] = ("model.",)
    change: Callable[[str, Tensor, Config], Tensor] = unchanged
    tied: bool = False

    def our_name(self, name: str) -> str:
        """Our name of a tensor, "" for one that is not needed; the number of a head stands at the end,
        see :func:`join_heads`.

        Raises:
            ValueError: the family has none of this name
        """
        if UNUSED.search(name) or VISION.search(name):
            return ""
        rest = name
        for prefix in self.prefixes:
            rest = rest.removeprefix(prefix)
        module, _, parameter = rest.rpartition(".")
        block = re.fullmatch(rf"{re.escape(self.blocks)}\.(\d+)\.(.+)", module)
        key = f"*.{block[2]}" if block else module
        head = re.fullmatch(r"(.+)\.(\d+)", key)
        if head and f"{head[1]}.#" in self.modules:
            key, parameter = f"{head[1]}.#", f"{parameter}.{head[2]}"
        if key not in self.modules:
            raise ValueError(f"{name} is no tensor of this family")
        ours = f"{self.modules[key]}.{parameter}"
        return f"layers.{block[1]}.{ours}" if block else ours


def join_heads(weights: Dict[str, Tensor]) -> None:
    """Puts the tensors of single heads together, whose names end with a number."""
    heads: Dict[str, Dict[int, Tensor]] = {}
    for whole in [name for name in weights if name.rpartition(".")[2].isdigit()]:
        name, _, head = whole.rpartition(".")
        heads.setdefault(name, {})[int(head)] = weights.pop(whole)
    for name, tensors in heads.items():
        weights[name] = torch.cat([tensors[head] for head in sorted(tensors)])


LLAMA = {
    "embed_tokens": "embed_tokens",
    "norm": "layer_norm",
    "lm_head": "output_projection",
    "*.input_layernorm": "layer_norm",
    "*.post_attention_layernorm": "mlp_norm",
    "*.self_attn.q_proj": "self_attn.q_proj",
    "*.self_attn.k_proj": "self_attn.k_proj",
    "*.self_attn.v_proj": "self_attn.v_proj",
    "*.self_attn.o_proj": "self_attn.out_proj",
    "*.self_attn.q_norm": "self_attn.q_norm",
    "*.self_attn.k_norm": "self_attn.k_norm",
    "*.mlp.gate_proj": "gate_proj",
    "*.mlp.up_proj": "fc1",
    "*.mlp.down_proj": "fc2",
}
GEMMA = {
    **LLAMA,
    "*.post_attention_layernorm": "attention_post_norm",
    "*.pre_feedforward_layernorm": "mlp_norm",
    "*.post_feedforward_layernorm": "mlp_post_norm",
}
GPT2 = {
    "wte": "embed_tokens",
    "wpe": "embed_positions",
    "ln_f": "layer_norm",
    "lm_head": "output_projection",
    "*.ln_1": "layer_norm",
    "*.attn.c_attn": "self_attn.qkv",
    "*.attn.c_proj": "self_attn.out_proj",
    "*.ln_2": "mlp_norm",
    "*.mlp.c_fc": "fc1",
    "*.mlp.c_proj": "fc2",
}
OPT = {
    "embed_tokens": "embed_tokens",
    "embed_positions": "embed_positions",
    "final_layer_norm": "layer_norm",
    "lm_head": "output_projection",
    "*.self_attn_layer_norm": "layer_norm",
    "*.self_attn.q_proj": "self_attn.q_proj",
    "*.self_attn.k_proj": "self_attn.k_proj",
    "*.self_attn.v_proj": "self_attn.v_proj",
    "*.self_attn.out_proj": "self_attn.out_proj",
    "*.final_layer_norm": "mlp_norm",
    "*.fc1": "fc1",
    "*.fc2": "fc2",
}
BLOOM = {
    "word_embeddings": "embed_tokens",
    "word_embeddings_layernorm": "embed_norm",
    "ln_f": "layer_norm",
    "lm_head": "output_projection",
    "*.input_layernorm": "layer_norm",
    "*.self_attention.query_key_value": "self_attn.qkv",
    "*.self_attention.dense": "self_attn.out_proj",
    "*.post_attention_layernorm": "mlp_norm",
    "*.mlp.dense_h_to_4h": "fc1",
    "*.mlp.dense_4h_to_h": "fc2",
}
FALCON = {
    **BLOOM,
    "*.ln_attn": "layer_norm",
    "*.ln_mlp": "mlp_norm",
}
GPT_NEOX = {
    "embed_in": "embed_tokens",
    "final_layer_norm": "layer_norm",
    "embed_out": "output_projection",
    "*.input_layernorm": "layer_norm",
    "*.attention.query_key_value": "self_attn.qkv",
    "*.attention.dense": "self_attn.out_proj",
    "*.post_attention_layernorm": "mlp_norm",
    "*.mlp.dense_h_to_4h": "fc1",
    "*.mlp.dense_4h_to_h": "fc2",
}
GPT_NEO = {
    **GPT2,
    "*.attn.attention.q_proj": "self_attn.q_proj",
    "*.attn.attention.k_proj": "self_attn.k_proj",
    "*.attn.attention.v_proj": "self_attn.v_proj",
    "*.attn.attention.out_proj": "self_attn.out_proj",
}
GPTJ = {
    **GPT2,
    "*.attn.q_proj": "self_attn.q_proj",
    "*.attn.k_proj": "self_attn.k_proj",
    "*.attn.v_proj": "self_attn.v_proj",
    "*.attn.out_proj": "self_attn.out_proj",
    "*.mlp.fc_in": "fc1",
    "*.mlp.fc_out": "fc2",
}
POST_NORMS = {
    **LLAMA,
    "*.post_attention_layernorm": "attention_post_norm",
    "*.post_feedforward_layernorm": "mlp_post_norm",
}
PHI3 = {
    **LLAMA,
    "*.self_attn.qkv_proj": "self_attn.qkv",
    "*.mlp.gate_up_proj": "gate_up",
}
STABLELM = {
    **LLAMA,
    "*.self_attn.q_layernorm.norms.#": "self_attn.q_norm",
    "*.self_attn.k_layernorm.norms.#": "self_attn.k_norm",
}
STARCODER2 = {
    **LLAMA,
    "*.mlp.c_fc": "fc1",
    "*.mlp.c_proj": "fc2",
}
_TRANSFORMER = ("transformer.",)
_DECODER = ("model.", "decoder.")
_LANGUAGE = ("language_model.", "model.", "language_model.")

FAMILIES = {  # by the model_type of config.json
    "gpt2": Family(gpt_options.gpt2, "h", GPT2, _TRANSFORMER, change_gpt2, tied=True),
    "gpt_neo": Family(gpt_options.gpt_neo, "h", GPT_NEO, _TRANSFORMER, tied=True),
    "gptj": Family(gpt_options.gptj, "h", GPTJ, _TRANSFORMER, change_gptj),
    "opt": Family(gpt_options.opt, "layers", OPT, _DECODER, change_opt, tied=True),
    "bloom": Family(gpt_options.bloom, "h", BLOOM, _TRANSFORMER, tied=True),
    "gpt_neox": Family(gpt_options.gpt_neox, "layers", GPT_NEOX, ("gpt_neox.",)),
    "falcon": Family(gpt_options.falcon, "h", FALCON, _TRANSFORMER, tied=True),
    "stablelm": Family(gpt_options.stablelm, "layers", STABLELM),
    "starcoder2": Family(gpt_options.starcoder2, "layers", STARCODER2, tied=True),
    "llama": Family(options.llama, "layers", LLAMA),
    "mistral": Family(options.mistral, "layers", LLAMA),
    "qwen2": Family(options.qwen2, "layers", LLAMA),
    "qwen3": Family(options.qwen3, "layers", LLAMA),
    "smollm3": Family(options.smollm3, "layers", LLAMA, tied=True),
    "granite": Family(options.granite, "layers", LLAMA),
    "phi3": Family(options.phi3, "layers", PHI3, change=change_phi3),
    "olmo2": Family(options.olmo2, "layers", POST_NORMS),
    "exaone4": Family(options.exaone4, "layers", POST_NORMS),
    "cohere": Family(options.cohere, "layers", LLAMA, change=change_cohere, tied=True),
    "cohere2": Family(options.cohere2, "layers", LLAMA, change=change_cohere, tied=True),
    "gemma": Family(options.gemma, "layers", LLAMA, change=change_gemma, tied=True),
    "gemma2": Family(options.gemma2, "layers", GEMMA, change=change_gemma, tied=True),
    "gemma3_text": Family(options.gemma3, "layers", GEMMA, _LANGUAGE, change_gemma, tied=True),
}
FOREIGN = {  # patterns of model_type in other models, or names of options in their config.json
    "a mixture of experts": r".*moe|mixtral|(num|n)_(local_|routed_)?experts",
    "a model that also sees or hears": r".*_vl|(vision|audio|image)_config|(img|audio)_processor",
    "a state-space model": r".*(mamba|rwkv).*|ssm_.+|state_size|lru_width",
}


def unknown(config: Config) -> str:
    """The reason for which a config.json of no known family is refused."""
    kind = str(config.get("model_type"))
    for description, names in FOREIGN.items():
        if any(re.fullmatch(names, str(name)) for name in (kind, *config)):
            return f"model_type {kind} is {description}, which cannot be converted"
    return f"model_type {kind} is unknown, expected one of {', '.join(FAMILIES)}"
