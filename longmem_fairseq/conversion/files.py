"""Reading a Hugging Face model's folder: config.json and the weights, of which nothing is executed."""

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longmem_fairseq.utils.argument_error import ArgumentError, MissingFileError
from longmem_fairseq.utils.checkpoint_errors import clear_errors
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.text_files import read_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference
# The files of a repository that a conversion can use: not the same weights again in another format
# (consolidated.safetensors, flax_model.msgpack, ...).
PATTERNS = ("*.json", "model*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
PICKLED = ("pytorch_model*.bin",)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_folder(model: str, dry_run: bool) -> Path:
    """The folder of a model; a name that is at no path is one of the Hugging Face hub, and downloaded.

    Args:
        dry_run: config.json is enough

    Raises:
        ImportError: the hub's client is not installed
        ValueError: neither a folder nor a repository that can be downloaded
    """
    path = Path(model)
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(model) or (path.parent.name and path.parent.is_dir()):
        raise MissingFileError("{model} ({}): no such file or folder, and no id of the hub", model)
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise ImportError(
            f"{model}: no such file or folder; to download it from the Hugging Face hub: "
            "pip install 'longmem-fairseq[hf]'"
        ) from None
    try:
        if dry_run:
            return Path(huggingface_hub.hf_hub_download(model, "config.json")).parent
        options = {"ignore_patterns": ["*/*"]}  # their * matches a slash: no file of a subfolder
        folder = huggingface_hub.snapshot_download(model, allow_patterns=list(PATTERNS), **options)
        if not any(Path(folder).glob("*.safetensors")):
            huggingface_hub.snapshot_download(model, allow_patterns=list(PICKLED), **options)
        return Path(folder)
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ArgumentError(
            "{model} ({}): no such file or folder, and it cannot be downloaded from the Hugging Face "
            "hub ({})",
            model,
            str(error).splitlines()[0],
        ) from None


def whole_number(config: Dict[str, Any], name: str, most: int) -> int:
    """An option of config.json, a size that is looked at before anything is made of it.

    Raises:
        ValueError: it is missing, none, or more than *most*
    """
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(
            f"config.json: {name} ({value!r}) must be a whole number from 1 to {most:,}"
        )
    return value


def weight_files(folder: Path) -> Dict[Path, Optional[List[str]]]:
    """The files that hold the weights, each with the names of its tensors (None: not known before).

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing
        ValueError: the index is none, or names a file elsewhere
    """
    for name in WEIGHTS:
        # first, as in transformers: beside it an index is what an earlier, larger save left
        if (folder / name).is_file():
            return {folder / name: None}
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards: Dict[Path, Optional[List[str]]] = {}
            table = read_json(index).get("weight_map")
            if not isinstance(table, dict) or not table:
                raise ValueError(f"{index} has no weight_map")
            for tensor, file in table.items():
                if not re.fullmatch(r"[\w.-]{1,200}\.(safetensors|bin)", str(file)):
                    raise ValueError(
                        f"{index} names {str(file)[:200]!r}, expected a file beside it"
                    )
                shards.setdefault(folder / file, []).append(tensor)
            for path in shards:
                if not path.is_file():
                    raise FileNotFoundError(f"{path}: no such file, though {index.name} names it")
            return shards
    raise FileNotFoundError(f"{folder} has no weights: expected {' or '.join(WEIGHTS)}")


def tensors(path: Path, names: Optional[List[str]]) -> Iterator[Tuple[str, Tensor]]:
    """The tensors of a file, one after another.

    Args:
        names: those that an index says are in it

    Raises:
        ValueError: it is damaged, would execute code, or lacks a tensor
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                _check_names(path, names, list(file.keys()))
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error})") from None
        return
    with clear_errors(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{path} holds no tensors by name")
    _check_names(path, names, list(state))
    yield from state.items()


def _check_names(path: Path, expected: Optional[List[str]], found: List[str]) -> None:
    missing = sorted(set(expected or ()) - set(found))
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}, which the index says is in it")


def check_hashes(sums: Path, paths: List[Path]) -> None:
    """Compares the files of *paths* with a list as ``sha256sum`` prints it.

    Raises:
        FileNotFoundError: there is no such list
        ValueError: a file has another hash, or none is given for it
    """
    if not sums.is_file():
        raise MissingFileError("{sha256} ({}): no such file", sums)
    lines = [line.split() for line in sums.read_text(encoding="utf-8").splitlines()]
    expected = {Path(line[1].lstrip("*")).name: line[0] for line in lines if len(line) == 2}
    for path in paths:
        found = file_hash(path)
        if found != expected.get(path.name):
            message = "{} has the SHA-256 {}, expected {} of {sha256}"
            raise ArgumentError(message, path, found, expected.get(path.name, "one"))
