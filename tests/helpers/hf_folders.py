"""Folders of Hugging Face models, whole and changed, and their conversion."""

import json

import torch

from longmem_fairseq.commands.convert import main as convert_checkpoint

ALONE = "--no-tokenizer"


def weights(folder):
    return torch.load(folder / "checkpoint.pt")["model"]


def convert(model, dest, *options):
    convert_checkpoint(["--model", str(model), "--dest", str(dest), *options])
    return weights(dest)


def change_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def as_bin(model, tensors=None):
    """Replaces the shards by one pytorch_model.bin."""
    from safetensors.torch import load_file

    state = {}
    for path in sorted(model.glob("*.safetensors")):
        state.update(load_file(path))
        path.unlink()
    (model / "model.safetensors.index.json").unlink()
    torch.save({**state, **(tensors or {})}, model / "pytorch_model.bin")
