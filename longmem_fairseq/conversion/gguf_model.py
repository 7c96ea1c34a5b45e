"""A GGUF file as transformers would have it: the JSON files of a folder, names and order of tensors."""

import json
from pathlib import Path
from typing import Dict, Iterator, Tuple

import torch
from torch import Tensor

from longmem_fairseq.conversion.families import FAMILIES, Family
from longmem_fairseq.conversion.gguf_config import (
    COMPUTED,
    Architecture,
    architecture,
    generation_config,
    model_config,
    tokenizer_config,
)
from longmem_fairseq.conversion.gguf_file import GGUFFile, gguf_package
from longmem_fairseq.conversion.gguf_tokenizer import tokenizer_json
from longmem_fairseq.utils.argument_error import ArgumentError
from longmem_fairseq.utils.refusal import refused


def write_json_files(file: GGUFFile, folder: Path, with_tokenizer: bool) -> None:
    """Writes config.json, tokenizer.json and the like to a model's folder.

    Raises:
        ValueError: of an architecture or with a tokenizer that is not supported
    """
    metadata = file.metadata
    try:
        contents = {
            "config": model_config(metadata, file.shapes, file.some_tensors(COMPUTED)),
            "generation_config": generation_config(metadata),
            "tokenizer_config": tokenizer_config(metadata),
        }
        texts = {name: json.dumps(content) for name, content in contents.items()}
        if with_tokenizer:
            texts["tokenizer"] = tokenizer_json(metadata)
    except ArgumentError as error:
        raise error.within(file.path) from None
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    except (ImportError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # anything may be missing in a stranger's metadata, or of another type
        raise ValueError(f"{file.path}: its metadata is damaged ({error!r})") from None
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def theirs_of_gguf(file: GGUFFile, family: Family, num_layers: int) -> Dict[str, str]:
    """The name that transformers gives each module, by the name that llama.cpp gives it."""
    gguf = gguf_package()
    name = file.metadata["general.architecture"]
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    table = gguf.get_tensor_name_map(arch, num_layers)
    found: Dict[str, str] = {}
    for key in family.modules:  # of two that are the same to llama.cpp, the later is the family's
        # Falcon's one norm of a block has another name than the first of two
        if key == "*.ln_mlp" and "blk.0.attn_norm_2.weight" not in file.shapes:
            continue
        for prefix in ("", *family.prefixes, "".join(family.prefixes)):
            for layer in range(num_layers if key.startswith("*.") else 1):
                theirs = prefix + key.replace("*.", f"{family.blocks}.{layer}.")
                ours = table.get_name(theirs.removesuffix(".norms.#"))
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
    for path, name, tensor in file.tensors():
        if name in COMPUTED:
            continue
        module, _, parameter = name.rpartition(".")
        if module not in theirs_of:
            raise ValueError(f"{path}: {name} is no tensor of this family")
        theirs = theirs_of[module]
        shape = tuple(tensor.shape)
        with refused(f"{path}: {name} of shape {shape} does not fit its metadata"):
            tensor = in_their_order(module, tensor, arch, config)
        if theirs.endswith(".#"):  # one norm for each head
            for head, row in enumerate(tensor):
                yield path, name, f"{theirs[:-1]}{head}.{parameter}", row
        else:
            yield path, name, f"{theirs}.{parameter}", tensor


def in_their_order(module: str, tensor: Tensor, arch: Architecture, config: Dict) -> Tensor:
    """A tensor as it was before llama.cpp's converter changed it.

    Args:
        module: llama.cpp's name
        config: config.json
    """
    heads = config.get("num_attention_heads", config.get("n_head"))
    kv_heads = config.get("num_kv_heads") or config.get("num_key_value_heads") or heads
    if arch.permuted and module.endswith((".attn_q", ".attn_k")):
        return unpermuted(tensor, heads if module.endswith("q") else kv_heads)
    if module.endswith(".attn_qkv") and arch.model_type in ("bloom", "falcon", "gpt_neox"):
        return grouped(tensor, heads, kv_heads)
    if arch.model_type == "gpt2" and module.startswith("blk.") and tensor.dim() == 2:
        return tensor.t()  # transformers' Conv1D
    return tensor - arch.norm_offset if "norm" in module else tensor


def unpermuted(tensor: Tensor, heads: int) -> Tensor:
    """Rows of heads x pairs x 2, as llama.cpp turns them, to heads x 2 x pairs."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def grouped(tensor: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Rows of all queries, all keys, all values, to those of each key/value head in turn."""
    head_dim = tensor.size(0) // (heads + 2 * kv_heads)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    parts = [part.unflatten(0, (kv_heads, -1, head_dim)) for part in tensor.split(sizes)]
    return torch.cat(parts, dim=1).flatten(0, 2)
