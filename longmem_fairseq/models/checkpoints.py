"""Finding and reading a backbone's checkpoint, and telling one backbone from another."""

import hashlib
import os
from contextlib import contextmanager
from typing import Dict, Iterator, Tuple

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig

CHECKPOINTS = (
    "checkpoint_best.pt",
    "checkpoint_last.pt",
    "checkpoint.pt",
    "model.safetensors",
)
PLACE = "backbone_place"  # in a checkpoint's task_state


def fingerprint(state_dict: Dict[str, Tensor]) -> Tensor:
    """SHA-256 over names, shapes and float32 values of a state dict, as 32 numbers (uint8).

    A tensor, so that it can be part of a model's own state dict.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        if name.removeprefix("decoder.") == "search_mean":
            continue  # no part of what the model computes
        tensor = state_dict[name].float().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def hexadecimal(fingerprint: Tensor) -> str:
    """A fingerprint for people and for files."""
    return fingerprint.cpu().numpy().tobytes().hex()


def dictionary_hash(dictionary: Dictionary) -> str:
    """SHA-256 over the symbols of a dictionary, in order."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


def checkpoint_in(path: str) -> str:
    """The first of CHECKPOINTS in a folder; *path* itself, if it is none or holds none."""
    files = (os.path.join(path, name) for name in CHECKPOINTS)
    return next((file for file in files if os.path.isfile(file)), path)


def note_backbone(state: Dict, folder: str) -> None:
    """Adds to a checkpoint, which is to be in *folder*, where its backbone is from there."""
    path = _model_options(state).get("pretrained_model_path")
    if path:
        place = os.path.relpath(path, os.path.abspath(folder))
        state["task_state"] = {**state["task_state"], PLACE: place}


def find_backbone(state: Dict, folder: str) -> None:
    """Corrects the backbone's path in a checkpoint of *folder*, if they were moved together."""
    place = (state.get("task_state") or {}).get(PLACE)
    if type(place) is str and os.path.isfile(moved := os.path.join(folder, place)):
        _model_options(state)["pretrained_model_path"] = os.path.abspath(moved)


def _model_options(state: Dict) -> Dict:
    """The model's options in a checkpoint; none in one of fairseq's before hydra."""
    options = (state.get("cfg") or {}).get("model")
    return options if isinstance(options, dict) or OmegaConf.is_dict(options) else {}


class BackboneNotFoundError(FileNotFoundError):
    """There is no backbone where ``--pretrained-model-path`` points to."""


def read_backbone(path: str) -> Dict:
    """The checkpoint of a backbone.

    Args:
        path: the checkpoint, or its folder

    Raises:
        BackboneNotFoundError: there is no such file
        ValueError: it is not a checkpoint, or not one of a backbone
    """
    if not path:
        raise ValueError("--pretrained-model-path is missing: give the backbone's checkpoint")
    path = checkpoint_in(path)
    if os.path.isdir(path):
        expected = ", ".join(CHECKPOINTS)
        raise BackboneNotFoundError(
            f"--pretrained-model-path ({path}) holds no checkpoint: expected {expected}"
        )
    if not os.path.isfile(path):
        raise BackboneNotFoundError(f"--pretrained-model-path ({path}): no such file")
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    cfg = state["cfg"]["model"] if state.get("cfg") else None
    # a model of fairseq's before hydra has an argparse.Namespace there
    name = str(cfg.get("_name", "unknown") if OmegaConf.is_dict(cfg) else "unknown")
    if not name.startswith("longmem_backbone"):
        raise ValueError(
            f"--pretrained-model-path ({path}) holds a model of architecture {name}, expected "
            "longmem_backbone; a released LongMem checkpoint goes through "
            "preprocess/convert_longmem_checkpoint.py first"
        )
    # options that are younger than the checkpoint have their defaults
    state["cfg"]["model"] = OmegaConf.merge(OmegaConf.structured(LongMemBackboneConfig), cfg)
    return state


class _NoInitialization(TorchFunctionMode):
    """Inside, the functions of torch.nn.init do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, models are made without room or values for their weights, which are loaded at once.

    Initializing what has no room makes PyTorch import its compiler, which takes seconds.
    """
    with torch.device("meta"), _NoInitialization():
        yield


def load_backbone(
    path: str, dictionary: Dictionary, window: int, **overrides
) -> Tuple[BackboneDecoder, Tensor]:
    """The backbone of a checkpoint and its fingerprint.

    Args:
        path: a checkpoint of ``longmem_backbone``, or its folder
        dictionary: the one in use, which has to be the backbone's
        window: tokens of a segment
        overrides: fields of its configuration to change

    Raises:
        FileNotFoundError, ValueError: as :func:`read_backbone`
        ValueError: it has another dictionary
    """
    state = read_backbone(path)
    cfg = state["cfg"]["model"]
    rows = state["model"]["decoder.embed_tokens.weight"].size(0)
    expected = (state.get("task_state") or {}).get("dictionary_hash")
    if rows != len(dictionary) or expected not in (None, dictionary_hash(dictionary)):
        raise ValueError(
            f"--pretrained-model-path ({path}) was trained with another dictionary ({rows} symbols) "
            f"than the data's dict.txt ({len(dictionary)} symbols): prepare the data with the "
            "backbone's dictionary and tokenizer"
        )
    for field, value in overrides.items():
        cfg[field] = value
    with without_weights():
        decoder = BackboneDecoder(cfg, dictionary, window)
    weights = {name.removeprefix("decoder."): w for name, w in state["model"].items()}
    decoder.load_state_dict(weights, assign=True)  # in the type in which they were saved
    decoder.tie_head()
    return decoder, fingerprint(weights)
