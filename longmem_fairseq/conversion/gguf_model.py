"""A GGUF file as transformers would have it: the JSON files of a folder, names and order of tensors."""

import json
from pathlib import Path
from typing import Dict, Iterator, Tuple

import torch
from torch import Tensor

from longmem_fairseq.conversion.families import FAMILIES, Family
from longmem_fairseq.conversion.gguf_config import (
    FACTORS,
    architecture,
    generation_config,
    model_config,
    tokenizer_config,
)
from longmem_fairseq.conversion.gguf_file import GGUFFile, gguf_package
from longmem_fairseq.conversion.gguf_tokenizer import tokenizer_json

# computed from the configuration: by llama.cpp's converter, and by ours
COMPUTED = {FACTORS, "rope_factors_long.weight", "rope_factors_short.weight"}


def write_json_files(file: GGUFFile, folder: Path, with_tokenizer: bool) -> None:
    """What else is in the folder of a model: config.json, tokenizer.json and so on.

    Raises:
        ValueError: of an architecture or with a tokenizer that is not supported
    """
    metadata = file.metadata
    try:
        contents = {
            "config": model_config(metadata, file.shapes, file.tensor(FACTORS)),
            "generation_config": generation_config(metadata),
            "tokenizer_config": tokenizer_config(metadata),
        }
        texts = {name: json.dumps(content) for name, content in contents.items()}
        if with_tokenizer:
            texts["tokenizer"] = tokenizer_json(metadata)
    except (LookupError, TypeError, AttributeError, ArithmeticError, OverflowError) as error:
        raise ValueError(f"{file.path}: its metadata is damaged ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def theirs_of_gguf(file: GGUFFile, family: Family, num_layers: int) -> Dict[str, str]:
    """The name that transformers gives each module, by the name that llama.cpp gives it."""
    gguf = gguf_package()
    name = file.metadata["general.architecture"]
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    table = gguf.get_tensor_name_map(arch, num_layers)
    found: Dict[str, str] = {}
    # Falcon's one norm of a block is the first of these, and where it has two that of the MLP
    for key in sorted(family.modules, key=lambda key: key == "*.ln_mlp"):
        if key == "*.ln_mlp" and "blk.0.attn_norm_2.weight" not in file.shapes:
            continue
        for prefix in ("", *family.prefixes, "".join(family.prefixes)):
            for layer in range(num_layers if key.startswith("*.") else 1):
                block = f"{family.blocks}.{layer}."
                theirs = prefix + key.replace("*.", block)
                ours = table.get_name(theirs)
                if ours is not None:
                    found[ours] = theirs
    return found


def gguf_weights(file: GGUFFile, config: Dict) -> Iterator[Tuple[Path, str, str, Tensor]]:
    """File, name in it, transformers' name, and values in transformers' order, one after another.

    Args:
        config: config.json

    Raises:
        ValueError: there is a tensor that the family does not have
    """
    arch = architecture(file.metadata)
    family = FAMILIES[config["model_type"]]
    num_layers = config.get("num_hidden_layers", config.get("n_layer"))
    theirs_of = theirs_of_gguf(file, family, num_layers)
    heads = config.get("num_attention_heads", config.get("n_head"))
    kv_heads = config.get("num_kv_heads") or config.get("num_key_value_heads") or heads
    for path, name, tensor in file.tensors():
        if name in COMPUTED:
            continue
        module, _, parameter = name.rpartition(".")
        if module not in theirs_of:
            raise ValueError(f"{path}: {name} is no tensor of this family")
        if arch.permuted and module.endswith((".attn_q", ".attn_k")):
            tensor = unpermuted(tensor, heads if module.endswith("q") else kv_heads)
        if module.endswith(".attn_qkv") and config["model_type"] in ("bloom", "falcon", "gpt_neox"):
            tensor = grouped(tensor, heads, kv_heads)
        if config["model_type"] == "gpt2" and module.startswith("blk.") and tensor.dim() == 2:
            tensor = tensor.t()  # transformers' Conv1D
        if "norm" in module:
            tensor = tensor - arch.norm_offset
        yield path, name, f"{theirs_of[module]}.{parameter}", tensor


def unpermuted(tensor: Tensor, heads: int) -> Tensor:
    """Rows of heads x pairs x 2, as llama.cpp turns them, to heads x 2 x pairs."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def grouped(tensor: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Rows of all queries, all keys, all values, to those of each key/value head in turn."""
    head_dim = tensor.size(0) // (heads + 2 * kv_heads)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    parts = [part.unflatten(0, (kv_heads, -1, head_dim)) for part in tensor.split(sizes)]
    return torch.cat(parts, dim=1).flatten(0, 2)
