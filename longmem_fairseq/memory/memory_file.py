"""Memory files: a safetensors file whose metadata has one JSON header under the key HEADER_KEY.

N banks, B streams, H heads, H* searches per query, S stored slots, c chunk_size in tokens, D head_dim,
E dimensions of a search key.

Header: ``format`` (3), the sizes and the fill of :meth:`MemoryBank.header`, ``fingerprint`` of the
backbone (hexadecimal, and its layer; empty if unknown), and ``checksums`` (CRC-32 of every tensor,
and of the JSON text of the rest as ``header``). Tensors: those of :meth:`MemoryBank.state_dict`; files
of format 1 have no ``token_ids``, those of formats 1 and 2 nothing of search ``hidden``. The file of
one shard of a bank (see :mod:`shard_files`) also says ``shard`` and ``num_shards``, and holds the keys
and values of that shard alone.

Reading a file executes nothing. But the tensors ``index.*`` of an approximate index are bytes that
faiss (C++) parses when a bank is loaded with the same index: load one only from files you trust.
Exact search leaves no index in a file, and reads none.
"""

import json
import os
import tempfile
import zlib
from contextlib import contextmanager
from typing import Dict, Iterator, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longmem_fairseq.memory.bank_layout import SCOPES, SEARCHES
from longmem_fairseq.memory.chunk_store import DTYPES, Placement
from longmem_fairseq.memory.token_log import UNKNOWN
from longmem_fairseq.utils.replaced_file import (
    Version,
    give_usual_mode,
    put_in_place,
    replaced_mode,
)

FORMAT = 3
READABLE = (1, 2, 3)
MOST = 2**40  # of anything that a header counts
HEADER_KEY = "longmem_memory"
IN_MEMORY = 2**28  # bytes, of a tensor that has to be copied to be saved
MAPPED = ("chunk_keys", "keys", "values", "scales")  # what is not read as a whole


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
        # in a folder of its own, because safetensors puts a file of any name beside what it writes
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=folder) as beside:
            tensors = {name: _contiguous(name, t, beside) for name, t in tensors.items()}
            checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
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
        _add_younger(header)
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
    if "token_ids" not in tensors:
        tensors["token_ids"] = torch.full(_held_shape(header), UNKNOWN, dtype=torch.int32)
    if "last_search" not in tensors:
        tensors["pending_search"] = torch.zeros(_num_banks(header), header["chunk_size"], 0)
        tensors["last_search"] = torch.zeros(header["num_streams"], 0)
    return header, tensors


def _add_younger(header: Dict) -> None:
    """What headers of older formats do not say."""
    if header["format"] < 3:
        in_document = [False] * header["num_streams"] if type(header["num_streams"]) is int else []
        header.update(search="attention", search_dim=0, in_document=in_document)


def _check_header(header: Dict) -> None:
    """Raises ValueError, KeyError or TypeError where it is not that of a bank."""
    names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "k")
    for name in names:
        least = 0 if name == "num_heads" and header["search"] == "hidden" else 1
        if type(header[name]) is not int or not least <= header[name] <= MOST:
            raise ValueError(f"{name} {header[name]!r}")
    memory_size, size, k = header["memory_size"], header["chunk_size"], header["k"]
    if memory_size % size or k % size or k > memory_size:
        raise ValueError(f"memory_size {memory_size} and k {k} with chunks of {size}")
    shard, num_shards = header.get("shard", 0), header.get("num_shards", 1)
    if type(shard) is not int or type(num_shards) is not int or not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard!r} of {num_shards!r}")
    if memory_size // size % num_shards:
        raise ValueError(f"memory_size {memory_size} for {num_shards} shards with chunks of {size}")
    for name, known in (("scope", SCOPES), ("dtype", DTYPES), ("search", SEARCHES)):
        if header[name] not in known:
            raise ValueError(f"{name} {header[name]!r}")
    search, dim = header["search"], header["search_dim"]
    if type(dim) is not int or not 0 <= dim <= MOST or (dim > 0) != (search == "hidden"):
        raise ValueError(f"search {search} of {dim!r} dimensions")
    in_document = header["in_document"]
    if len(in_document) != header["num_streams"] or any(type(x) is not bool for x in in_document):
        raise ValueError(f"in_document {in_document!r} of {header['num_streams']} streams")
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
    dim = header["search_dim"]
    search = (banks, 1, slots[2], dim) if dim else (*slots, head_dim)
    waiting = torch.float32 if dtype == torch.int8 else dtype
    expected = {
        "chunk_keys": (search, torch.float32),
        "keys": ((*slots, size, head_dim), dtype),
        "values": ((*slots, size, head_dim), dtype),
        "pending_keys": ((banks, heads, size, head_dim), waiting),
        "pending_values": ((banks, heads, size, head_dim), waiting),
    }
    if header["format"] > 1:
        expected["token_ids"] = (_held_shape(header), torch.int32)
    if header["format"] > 2:
        expected["pending_search"] = ((banks, size, dim), torch.float32)
        expected["last_search"] = ((header["num_streams"], dim), torch.float32)
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
