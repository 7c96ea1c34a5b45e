"""The good files of targets that convert models: Hugging Face's layout, and the released LongMem's."""

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Dict

import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from longmem_fairseq.commands.convert_released import (
    BACKBONE_NAMES,
    PRETRAINED,
    SIDENET_HEAD,
    SIDENET_NAMES,
)
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.sidenet import SideNetDecoder
from tests.fuzz import seeds


def hf(folder: Path) -> None:
    """A LLaMA of two layers in two shards, with a tokenizer."""
    folder = folder / "hf"
    folder.mkdir()
    seeds.hf_tokenizer(folder)
    for name in ("dict.txt", "ids.json"):
        (folder / name).unlink()
    vocab = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = {
        **{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "eos_token_id": 2},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"vocab_size": vocab, "tie_word_embeddings": True, "rope_theta": 1e4, "head_dim": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.embed_tokens.weight": torch.zeros(vocab, 8),
        "model.norm.weight": torch.ones(8),
    }
    first = set(tensors)
    for layer in ("model.layers.0.", "model.layers.1."):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = torch.ones(8)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"):
            tensors[f"{layer}{name}.weight"] = torch.zeros(8, 8)
        for name in ("self_attn.k_proj", "self_attn.v_proj"):
            tensors[f"{layer}{name}.weight"] = torch.zeros(4, 8)
        tensors[f"{layer}mlp.down_proj.weight"] = torch.zeros(8, 8)
    for number, chosen in ((0, first), (1, tensors.keys() - first)):
        save_file({n: tensors[n] for n in chosen}, folder / f"model-{number}.safetensors")
    table = {name: f"model-{int(name not in first)}.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def gguf(folder: Path) -> None:
    """The same sizes as a GGUF file of llama.cpp, with a tokenizer of bytes and two pieces."""
    from gguf import GGUFWriter, TokenType

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "\u2581a", "a"]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    types += [TokenType.NORMAL] * 2
    (folder / "hf").mkdir()
    writer = GGUFWriter(folder / "hf" / "model.gguf", "llama")
    for key, value in {
        **{"vocab_size": len(tokens), "context_length": 16, "embedding_length": 8},
        **{"block_count": 2, "feed_forward_length": 8, "rope.dimension_count": 4},
        **{"attention.head_count": 2, "attention.head_count_kv": 1},
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.scores", [0.0] * len(tokens))
    writer.add_array("tokenizer.ggml.token_type", [int(type_) for type_ in types])
    for key, id_ in {"unknown": 0, "bos": 1, "eos": 2}.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", id_)
    shapes = {"token_embd": (len(tokens), 8), "output_norm": (8,)}
    for layer in ("blk.0.", "blk.1."):
        shapes |= {f"{layer}{name}": (8,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{layer}{name}": (8, 8) for name in ("attn_q", "attn_output")}
        shapes |= {f"{layer}{name}": (4, 8) for name in ("attn_k", "attn_v")}
        shapes |= {f"{layer}{name}": (8, 8) for name in ("ffn_gate", "ffn_up", "ffn_down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.ones(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def hf_sums(folder: Path) -> None:
    """Files of a model, and their hashes as sha256sum prints them."""
    hf(folder)
    paths = sorted((folder / "hf").glob("*.safetensors"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "sums.txt").write_text("".join(lines))


def hf_bin(folder: Path) -> None:
    """The same model as one pickle, hf/pytorch_model.bin, and what is in that, data.pkl."""
    hf(folder)
    tensors = {}
    for path in (folder / "hf").glob("*.safetensors"):
        tensors.update(load_file(path))
        path.unlink()
    (folder / "hf" / "model.safetensors.index.json").unlink()
    torch.save(tensors, folder / "good.pt")
    (folder / "hf" / "pytorch_model.bin").write_bytes((folder / "good.pt").read_bytes())
    seeds.write_pickle_of(folder)


def released(folder: Path) -> None:
    """A backbone and a LongMem on it in the released layout, and their options."""
    dictionary = Dictionary()
    dictionary.add_symbol("a")
    dictionary.save(str(folder / "dict.txt"))
    sizes = {"embed_dim": 8, "num_layers": 2, "num_attention_heads": 2}
    options = {"memory_size": 16, "chunk_size": 2, "k": 4, "retrieval_layer_index": 1}
    options |= {"layer_reduction_factor": 2, "activation_fn": "gelu"}
    torch.manual_seed(1)
    cfg = OmegaConf.structured(LongMemBackboneConfig(_name="longmem_backbone", **sizes))
    backbone = BackboneDecoder(cfg, dictionary, 8)
    frozen = renamed(backbone.state_dict(), BACKBONE_NAMES)
    cfg = OmegaConf.structured(LongMemConfig(_name="longmem", pretrained_model_path="", **options))
    weights = renamed(SideNetDecoder(cfg, backbone, torch.zeros(32)).state_dict(), SIDENET_NAMES)
    del weights["decoder.backbone_fingerprint"]
    weights.update({PRETRAINED + name: tensor for name, tensor in frozen.items()})
    weights[SIDENET_HEAD] = frozen["decoder.model.lm_head.weight"]
    options |= {**sizes, "tokens_per_sample": 8, "use_external_memory": True}
    (folder / "options.json").write_text(json.dumps(options))
    torch.save({"backbone": frozen, "longmem": weights}, folder / "weights.pt")
    write_released(folder, options)
    (folder / "good.pt").write_bytes((folder / "longmem.pt").read_bytes())
    seeds.write_pickle_of(folder)


def parity(folder: Path) -> None:
    """A fixture of eval/parity.py, and what is in the pickle of its expected.pt."""
    released(folder)
    tokens = torch.full((2, 1, 8), 4)  # segments x batch x T
    logits = torch.zeros(2, 1, 8, len(Dictionary.load(str(folder / "dict.txt"))))
    expected = {"backbone_logits": logits, "longmem_logits": logits}
    chunks = torch.zeros(2, 8, 2, dtype=torch.long)  # H x (T * batch) x R
    expected.update(tokens=tokens, retrieved_chunks=[None, chunks])
    torch.save(expected, folder / "good.pt")
    seeds.write_pickle_of(folder)


def write_released(folder: Path, options) -> None:
    """Both checkpoints with these options, which are a dictionary unless they are false."""
    args = Namespace(**options) if isinstance(options, dict) else options
    for name, tensors in torch.load(folder / "weights.pt").items():
        torch.save({"args": args, "model": tensors}, folder / f"{name}.pt")


def renamed(weights: Dict[str, torch.Tensor], names: Dict[str, str]) -> Dict[str, torch.Tensor]:
    """Weights of ours by their released names; *names* are the released ones and ours."""
    found = {}
    for name, tensor in weights.items():
        for theirs, ours in reversed(names.items()):
            if ours.startswith("."):
                name = name.replace(ours, theirs)
            elif name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        found[name] = tensor
    return found
