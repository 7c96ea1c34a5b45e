"""Memory files: a safetensors file whose metadata has one JSON header under the key HEADER_KEY.

N banks, H heads, S stored slots, c chunk_size in tokens, D head_dim.

Header: ``format`` (2), the sizes and the fill of :meth:`MemoryBank.header`, ``fingerprint`` of the
backbone (hexadecimal, and its layer; empty if unknown), and ``checksums`` (CRC-32 of every tensor,
and of the JSON text of the rest as ``header``). Tensors: those of :meth:`MemoryBank.state_dict`; files
of format 1 have no ``token_ids``. The file of one shard of a bank (see :mod:`shard_files`) also says
``shard`` and ``num_shards``, and holds the keys and values of that shard alone.

Reading a file executes nothing. But the tensors ``index.*`` of an approximate index are bytes that
faiss (C++) parses when a bank is loaded with the same index: load one only from files you trust.
Exact search leaves no index in a file, and reads none.
"""

import fcntl
import json
import os
import shutil
import stat
import tempfile
import zlib
from contextlib import contextmanager, suppress
from typing import Dict, Iterator, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longmem_fairseq.memory.chunk_store import DTYPES, Placement
from longmem_fairseq.memory.token_log import UNKNOWN

FORMAT = 2
READABLE = (1, 2)
MOST = 2**40  # of anything that a header counts
HEADER_KEY = "longmem_memory"
IN_MEMORY = 2**28  # bytes, of a tensor that has to be copied to be saved
Version = Tuple[int, ...]
MAPPED = ("chunk_keys", "keys", "values", "scales")  # what is not read as a whole


def file_version(path: str) -> Version:
    """Differs after a file was written again; empty where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def is_memory_file(path: str) -> bool:
    """Whether it has the header of one."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def replaced_mode(path: str) -> Optional[int]:
    """The permissions of the file that is to be replaced; None where there is none, or a link to one.

    Raises:
        OSError: it must not be replaced: its owner made it read-only, or it is no file
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    is_link = stat.S_ISLNK(status.st_mode)
    if not stat.S_ISREG(status.st_mode) and not (is_link and os.path.isfile(path)):
        raise OSError("it is no regular file: give another name")
    if is_link:
        return None
    mode = stat.S_IMODE(status.st_mode)
    if not mode & stat.S_IWUSR:  # root may write it all the same
        raise OSError(f"it is read-only (mode {mode:o}): chmod u+w, or give another name")
    return mode


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
        # in a folder of its own, because safetensors puts a file of any name beside what it writes
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=folder) as beside:
            tensors = {name: _contiguous(name, t, beside) for name, t in tensors.items()}
            checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
            checksums["header"] = _text_checksum(header)
            metadata = {HEADER_KEY: json.dumps({**header, "checksums": checksums})}
            part, usual = os.path.join(beside, "memory"), os.path.join(beside, "usual")
            save_file(tensors, part, metadata=metadata)
            open(usual, "w").close()
            shutil.copymode(usual, part)  # safetensors lets nobody else read it
            if mode is not None:
                os.chmod(part, mode)
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            yield part
    except (SafetensorError, OSError) as error:  # the first is what its writer makes of the second
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


def put_in_place(part: str, path: str, replaces: Optional[Version] = None) -> Version:
    """Makes a staged file that of *path*, at once, and returns its version.

    Args:
        replaces: the version that is there (default: any, or none)

    Raises:
        OSError: another version is there, which is left as it is
    """
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # until it is closed, or the process dies
        if replaces is not None and file_version(path) != replaces:
            raise OSError(
                "another process saved it after it was read: read it again, or give another name"
            )
        version = file_version(part)  # which renaming does not change
        os.replace(part, path)
        os.fsync(descriptor)  # the new name too outlives a power cut
        return version
    finally:
        os.close(descriptor)


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
            header = json.loads((file.metadata() or {})[HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a memory file, or a damaged one ({error})") from error
    if not isinstance(header, dict) or header.get("format") not in READABLE:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{path} is a memory file of format {found!r}, expected {FORMAT}")
    try:
        checksums = header.pop("checksums")
        damaged = [] if checksums["header"] == _text_checksum(header) else ["header"]
        _check_header(header)
        _check_tensors(header, tensors)
        if set(checksums) != {"header", *tensors}:
            raise ValueError(f"checksums of {sorted(checksums)}")
        checked = [name for name in tensors if verify or name not in MAPPED]
        damaged += [name for name in checked if checksums[name] != _checksum(tensors[name])]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is a damaged memory file (header: {error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is a damaged memory file ({error})") from error
    if damaged:
        raise ValueError(f"{path} is a damaged memory file (checksum of {', '.join(damaged)})")
    tensors.setdefault("token_ids", torch.full(_held_shape(header), UNKNOWN, dtype=torch.int32))
    return header, tensors


def _check_header(header: Dict) -> None:
    """Raises ValueError, KeyError or TypeError where it is not that of a bank."""
    names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "k")
    for name in names:
        if type(header[name]) is not int or not 1 <= header[name] <= MOST:
            raise ValueError(f"{name} {header[name]!r}")
    memory_size, size, k = header["memory_size"], header["chunk_size"], header["k"]
    if memory_size % size or k % size or k > memory_size:
        raise ValueError(f"memory_size {memory_size} and k {k} with chunks of {size}")
    shard, num_shards = header.get("shard", 0), header.get("num_shards", 1)
    if type(shard) is not int or type(num_shards) is not int or not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard!r} of {num_shards!r}")
    if memory_size // size % num_shards:
        raise ValueError(f"memory_size {memory_size} for {num_shards} shards with chunks of {size}")
    if header["scope"] not in ("stream", "batch") or header["dtype"] not in DTYPES:
        raise ValueError(f"scope {header['scope']!r}, dtype {header['dtype']!r}")
    if type(header["fingerprint"]) is not str:
        raise ValueError(f"fingerprint {header['fingerprint']!r}")
    banks = _num_banks(header)
    for name in ("num_written", "num_pending"):
        fill = header[name]
        if len(fill) != banks or any(type(n) is not int or not 0 <= n <= MOST for n in fill):
            raise ValueError(f"{name} {fill!r} for {banks} banks")
    if any(pending >= size for pending in header["num_pending"]):
        raise ValueError(f"num_pending {header['num_pending']} with chunks of {size}")
    if len(header["sources"]) != banks:
        raise ValueError(f"sources of {len(header['sources'])} for {banks} banks")
    for first, name, offset in (source for bank in header["sources"] for source in bank):
        if type(first) is not int or type(offset) is not int or type(name) not in (str, type(None)):
            raise ValueError(f"source {[first, name, offset]!r}")


def _check_tensors(header: Dict, tensors: Dict[str, Tensor]) -> None:
    """Raises ValueError where they are not those of the header."""
    banks, heads, head_dim = _num_banks(header), header["num_heads"], header["head_dim"]
    size, dtype = header["chunk_size"], DTYPES[header["dtype"]]
    stored = min(max(header["num_written"]), header["memory_size"] // size)
    slots = (banks, heads, -(-stored // header.get("num_shards", 1)))
    waiting = torch.float32 if dtype == torch.int8 else dtype
    expected = {
        "chunk_keys": ((*slots, head_dim), torch.float32),
        "keys": ((*slots, size, head_dim), dtype),
        "values": ((*slots, size, head_dim), dtype),
        "pending_keys": ((banks, heads, size, head_dim), waiting),
        "pending_values": ((banks, heads, size, head_dim), waiting),
    }
    if header["format"] > 1:
        expected["token_ids"] = (_held_shape(header), torch.int32)
    if dtype == torch.int8:
        expected["scales"] = ((*slots, 2), torch.float32)
    for name, tensor in tensors.items():
        if name.startswith("index."):
            expected[name] = ((tensor.numel(),), torch.uint8)
    if set(tensors) != set(expected):
        raise ValueError(f"tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, (shape, dtype) in expected.items():
        found = tensors[name]
        if (tuple(found.shape), found.dtype) != (shape, dtype):
            raise ValueError(
                f"{name} of shape {tuple(found.shape)} and {found.dtype}, expected {shape} and {dtype}"
            )


def _num_banks(header: Dict) -> int:
    return header["num_streams"] if header["scope"] == "stream" else 1


def _held_shape(header: Dict) -> Tuple[int, int]:
    """N x tokens, stored or waiting, of the fullest bank."""
    size, slots = header["chunk_size"], header["memory_size"] // header["chunk_size"]
    fill = zip(header["num_written"], header["num_pending"], strict=True)
    return _num_banks(header), max(min(written, slots) * size + left for written, left in fill)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.flatten().view(torch.uint8).numpy())


def _text_checksum(header: Dict) -> int:
    return zlib.crc32(json.dumps(header).encode())
