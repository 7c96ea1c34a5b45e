"""Memory files: a safetensors file whose metadata has one JSON header under the key HEADER_KEY.

Header: see :mod:`memory_header`; and ``checksums`` (CRC-32 of every tensor, and of the JSON text of the
rest as ``header``). Tensors: those of :meth:`MemoryBank.state_dict`, see :meth:`BankLayout.tensors`;
files of format 1 have no ``token_ids``, those of formats 1 and 2 nothing of search ``hidden``.

Reading a file executes nothing. But the tensors ``index.*`` of an approximate index are bytes that
faiss (C++) parses when a bank is loaded with the same index: load one only from files you trust.
Exact search leaves no index in a file, and reads none.
"""

import json
import os
import tempfile
import zlib
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Tuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longmem_fairseq.memory.chunk_store import Placement
from longmem_fairseq.memory.memory_header import FORMAT, READABLE, check_contents, tensor_checksum
from longmem_fairseq.utils.replaced_file import (
    Version,
    give_usual_mode,
    put_in_place,
    replaced_mode,
)
from longmem_fairseq.utils.text_files import parse_json

HEADER_KEY = "longmem_memory"
IN_MEMORY = 2**28  # bytes, of a tensor that has to be copied to be saved
MAPPED = ("chunk_keys", "keys", "values", "scales")  # not read as a whole


def is_memory_file(path: str) -> bool:
    """Whether it has the header of one."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


@contextmanager
def staged_memory_file(path: str, header: Dict, tensors: Dict[str, Tensor]) -> Iterator[str]:
    """Writes a file beside *path*, for :func:`put_in_place`, and removes it if that is not called.

    Raises:
        OSError: there is no room, or no permission; an older file is left as it was
    """
    mode = None
    header = {"format": FORMAT, **header}
    folder = os.path.dirname(os.path.abspath(path))
    prefix = f".{os.path.basename(path)}."
    try:
        mode = replaced_mode(path)
        # in a folder of its own: safetensors first writes a file of another name beside it
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=folder) as beside:
            tensors = {name: _contiguous(name, t, beside) for name, t in tensors.items()}
            checksums = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
            checksums["header"] = _text_checksum(header)
            metadata = {HEADER_KEY: json.dumps({**header, "checksums": checksums})}
            part = os.path.join(beside, "memory")
            save_file(tensors, part, metadata=metadata)
            if mode is None:
                give_usual_mode(part)
            else:
                os.chmod(part, mode)
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            yield part
    except (SafetensorError, OSError) as error:  # safetensors raises the first for the second
        raise OSError(f"{path}: cannot be written ({error})") from error


def _contiguous(name: str, tensor: Tensor, folder: str) -> Tensor:
    """The tensor as safetensors takes it: of a bank that is not full a copy, and if that is large in a
    file of *folder*, because a bank on disk may be larger than main memory.

    Raises:
        OSError: there is no room
    """
    tensor = tensor.detach().cpu()
    if tensor.is_contiguous():
        return tensor
    place = Placement("disk" if tensor.nbytes > IN_MEMORY else "host", directory=folder)
    try:
        return place.buffer(name, tuple(tensor.shape), tensor.dtype).copy_(tensor)
    except ValueError as error:
        raise OSError(str(error.__cause__)) from error


def write_memory_file(
    path: str, header: Dict, tensors: Dict[str, Tensor], replaces: Optional[Version] = None
) -> Version:
    """Writes a file that is either whole or not there; see :func:`put_in_place`.

    Raises:
        OSError: there is no room, no permission, or another version than the one that *replaces* says;
            an older file is left as it was
    """
    with staged_memory_file(path, header, tensors) as part:
        return put_in_place(part, path, replaces)


def read_memory_file(path: str, verify: bool = True) -> Tuple[Dict, Dict[str, Tensor]]:
    """Header and tensors of a file; the tensors are mapped, not read (copy on write).

    Args:
        verify: compare the checksums of keys and values too, which reads everything once

    Raises:
        FileNotFoundError: there is no such file
        ValueError: not a memory file, one of another format, or a damaged one
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such memory file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if text is None:
            raise ValueError(f"no {HEADER_KEY} in it")
        header = parse_json(text)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a memory file, or a damaged one ({error})") from error
    version = header.get("format") if isinstance(header, dict) else header
    if version not in READABLE or not isinstance(header, dict):
        raise ValueError(f"{path} is a memory file of format {version!r}, expected {FORMAT}")
    try:
        damaged = _damaged(header, tensors, verify)
    except ValueError as error:
        raise ValueError(f"{path} is a damaged memory file ({error})") from error
    if damaged:
        raise ValueError(f"{path} is a damaged memory file (checksum of {', '.join(damaged)})")
    return header, tensors


def _damaged(header: Dict, tensors: Dict[str, Tensor], verify: bool) -> List[str]:
    """Names of damaged parts; takes the checksums out of the header, and completes the rest.

    Raises:
        ValueError: see :func:`check_contents`; or there are other checksums than tensors
    """
    checksums, names = header.pop("checksums", None), list(tensors)
    if not isinstance(checksums, dict) or set(checksums) != {"header", *names}:
        raise ValueError("its header has other checksums than tensors")
    damaged = [] if checksums["header"] == _text_checksum(header) else ["header"]
    check_contents(header, tensors)
    checked = [name for name in names if verify or name not in MAPPED]
    return damaged + [name for name in checked if checksums[name] != tensor_checksum(tensors[name])]


def _text_checksum(header: Dict) -> int:
    return zlib.crc32(json.dumps(header).encode())
