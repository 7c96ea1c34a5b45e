"""The families of Hugging Face models that can be converted, and the names of their tensors."""

import re
from typing import Callable, Dict, NamedTuple, Tuple

from torch import Tensor

from longmem_fairseq.conversion import options as hf_options
from longmem_fairseq.conversion.options import Config

# causal masks and wavelengths that older versions saved with the weights
UNUSED = re.compile(r"\.(attn|(self_)?attention|self_attn)\.((masked_)?bias|rotary_emb\.inv_freq)$")
# of the models that also see
VISION = re.compile(r"(vision_tower|multi_modal_projector)\.")


def unchanged(name: str, tensor: Tensor, config: Config) -> Tensor:
    return tensor


def change_gpt2(name: str, tensor: Tensor, config: Config) -> Tensor:
    # its Conv1D is a transposed Linear
    if name.startswith("layers.") and tensor.dim() == 2:
        tensor = tensor.t()
    if "self_attn.qkv." in name:  # q, k and v of all heads in turn, not of each head
        heads = tensor.unflatten(0, (3, config["n_head"], -1))
        tensor = heads.transpose(0, 1).flatten(0, 2)
    return tensor


def change_opt(name: str, tensor: Tensor, config: Config) -> Tensor:
    # its first position is row 2: fairseq, where OPT comes from, counts from the padding index on
    return tensor[2:] if name == "embed_positions.weight" else tensor


def change_gemma(name: str, tensor: Tensor, config: Config) -> Tensor:
    if "norm" in name:
        tensor = tensor.float() + 1  # its norms multiply by 1 + weight
    # it divides scores by the square root of a number of its own, not of head_dim
    scaled = "self_attn.q_proj." if config["model_type"] == "gemma2" else "self_attn.q_norm."
    if scaled in name:
        ratio = config.get("head_dim", 256) / config.get("query_pre_attn_scalar", 256)
        tensor = tensor * ratio**0.5
    return tensor


class Family(NamedTuple):
    """
    options: config.json -> fields of LongMemBackboneConfig; ValueError for what is not supported
    blocks: the module that holds the layers
    modules: names of modules without their prefix -> ours; ``*.`` stands before those of a block, and
        ``self_attn.qkv`` is all three projections in one: for each key/value head the rows of its query
        heads, those of its key, those of its value
    prefixes: before the names of all modules but the head, as far as they are there
    change: our name, tensor, config.json -> what the tensor has to be here
    tied: the head is the embedding, where config.json does not say
    """

    options: Callable[[Config], Config]
    blocks: str
    modules: Dict[str, str]
    prefixes: Tuple[str, ...] = ("model.",)
    change: Callable[[str, Tensor, Config], Tensor] = unchanged
    tied: bool = False

    def our_name(self, name: str) -> str:
        """What a tensor is called here, "" for one that is not needed.

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
        if key not in self.modules:
            raise ValueError(f"{name} is no tensor of this family")
        ours = f"{self.modules[key]}.{parameter}"
        return f"layers.{block[1]}.{ours}" if block else ours


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
_TRANSFORMER = ("transformer.",)
_DECODER = ("model.", "decoder.")
_LANGUAGE = ("language_model.", "model.", "language_model.")

FAMILIES = {  # by the model_type of config.json
    "gpt2": Family(hf_options.gpt2, "h", GPT2, _TRANSFORMER, change_gpt2, tied=True),
    "opt": Family(hf_options.opt, "layers", OPT, _DECODER, change_opt, tied=True),
    "bloom": Family(hf_options.bloom, "h", BLOOM, _TRANSFORMER, tied=True),
    "gpt_neox": Family(hf_options.gpt_neox, "layers", GPT_NEOX, ("gpt_neox.",)),
    "falcon": Family(hf_options.falcon, "h", FALCON, _TRANSFORMER, tied=True),
    "llama": Family(hf_options.llama, "layers", LLAMA),
    "mistral": Family(hf_options.mistral, "layers", LLAMA),
    "qwen2": Family(hf_options.qwen2, "layers", LLAMA),
    "qwen3": Family(hf_options.qwen3, "layers", LLAMA),
    "gemma2": Family(hf_options.gemma2, "layers", GEMMA, change=change_gemma, tied=True),
    "gemma3_text": Family(hf_options.gemma3, "layers", GEMMA, _LANGUAGE, change_gemma, tied=True),
}
