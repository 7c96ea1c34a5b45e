"""Reading GGUF files, the format of llama.cpp, through its official package ``gguf``."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, List, Tuple

import torch
from torch import Tensor

from longmem_fairseq.utils.argument_error import ArgumentError
from longmem_fairseq.utils.refusal import refused

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def gguf_package():
    """The package ``gguf``.

    Raises:
        ImportError: it is not installed
    """
    try:
        import gguf
    except ImportError:
        raise ImportError(
            "GGUF files need the package gguf: pip install 'longmem-fairseq[hf]'"
        ) from None
    return gguf


def gguf_parts(path: Path) -> List[Path]:
    """The files of a model that may be split (``NAME-00001-of-00003.gguf``); *path* is any of them.

    Raises:
        FileNotFoundError: one is missing
    """
    split = _SPLIT.fullmatch(path.name)
    if not split:
        return [path]
    count = int(split[3])
    parts = [path.with_name(f"{split[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(
                f"{part}: no such file, though {path.name} is one of {count} parts"
            )
    return parts


def gguf_models(folder: Path) -> List[Path]:
    """The models of a folder, by the first part of each."""
    paths = sorted(folder.glob("*.gguf"))
    return [
        path for path in paths if not (split := _SPLIT.fullmatch(path.name)) or split[2] == "00001"
    ]


def _strict_reader(gguf):
    class Reader(gguf.GGUFReader):
        """A reader that refuses to read beyond the end of a file, whatever length a field claims."""

        def _get(self, offset, dtype, count=1, *args, **kwargs):
            values = super()._get(offset, dtype, count, *args, **kwargs)
            if len(values) != count:
                raise ValueError(f"it ends at byte {len(self.data):,}, and more was to follow")
            return values

    return Reader


class GGUFFile:
    """A model in one or more GGUF files, memory-mapped.

    Args:
        path: the file, or one of those that it was split into

    Raises:
        ImportError: the package ``gguf`` is not installed
        FileNotFoundError: a part is missing
        ValueError: a file is damaged, truncated, or of another format
    """

    def __init__(self, path: Path):
        self.paths = gguf_parts(path)
        self.path = self.paths[0]
        self._gguf = gguf_package()
        self._readers = [self._reader(part) for part in self.paths]

    def _reader(self, path: Path):
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ArgumentError(
                "{} is no GGUF file: it begins with {!r}, expected b'GGUF'; {model} is a folder, a "
                "GGUF file, or a hub id",
                path,
                magic,
            )
        try:
            with refused(f"{path} is damaged or truncated"):
                return _strict_reader(self._gguf)(path)
        except MemoryError:
            raise ValueError(f"{path} is damaged: a field claims more than memory holds") from None

    @cached_property
    def metadata(self) -> Dict[str, Any]:
        """The key-value pairs of the first part."""
        with refused(f"{self.path} is damaged"):
            return {key: field.contents() for key, field in self._readers[0].fields.items()}

    @cached_property
    def shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Shapes of all tensors, in PyTorch's order (out x in).

        Raises:
            ValueError: a part lacks tensors, or two hold one of the same name
        """
        tensors = [tensor for _, tensor in self._tensors()]
        shapes = {t.name: tuple(int(size) for size in reversed(t.shape)) for t in tensors}
        expected = self.metadata.get("split.tensors.count", len(tensors))
        if len(shapes) != expected:
            raise ValueError(f"{self.path} has {len(shapes)} tensors, expected {expected}")
        return shapes

    def some_tensors(self, names: Collection[str]) -> Dict[str, Tensor]:
        """The values of those of *names* that there are."""
        chosen = ((path, tensor) for path, tensor in self._tensors() if tensor.name in names)
        return {tensor.name: self._values(path, tensor) for path, tensor in chosen}

    def tensors(self) -> Iterator[Tuple[Path, str, Tensor]]:
        """File, name and values of all tensors, in float32, one after another.

        Raises:
            ValueError: of a type that the package does not dequantize
        """
        for path, tensor in self._tensors():
            yield path, tensor.name, self._values(path, tensor)

    def _tensors(self) -> Iterator[Tuple[Path, Any]]:
        """File and description of all tensors."""
        for path, reader in zip(self.paths, self._readers, strict=True):
            for tensor in reader.tensors:
                yield path, tensor

    def _values(self, path: Path, tensor) -> Tensor:
        try:
            values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise ValueError(
                f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which the package gguf "
                "does not dequantize"
            ) from None
        return torch.tensor(values)  # a copy: the file is read-only
