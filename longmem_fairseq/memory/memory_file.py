"""Memory files: a safetensors file whose metadata has one JSON header under the key HEADER_KEY.

N banks, H heads, S stored slots, c chunk_size in tokens, D head_dim.

Header: ``format`` (2), the sizes and the fill of :meth:`MemoryBank.header`, ``fingerprint`` of the
backbone (hexadecimal, empty if unknown), and ``checksums`` (CRC-32 of every tensor, and of the JSON
text of the rest as ``header``). Tensors: those of :meth:`MemoryBank.state_dict`; files of format 1
have no ``token_ids``. The file of one shard of a bank (see :mod:`shard_files`) also says ``shard`` and
``num_shards``, and holds the keys and values of that shard alone.

Reading a file executes nothing. But the tensors ``index.*`` of an approximate index are bytes that
faiss (C++) parses when a bank is loaded with the same index: load one only from files you trust.
Exact search leaves no index in a file, and reads none.
"""

import json
import os
import tempfile
import zlib
from typing import BinaryIO, Dict, Iterator, Tuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longmem_fairseq.memory.chunk_store import DTYPES
from longmem_fairseq.memory.token_log import UNKNOWN

FORMAT = 2
READABLE = (1, 2)
MOST = 2**40  # of anything that a header counts
HEADER_KEY = "longmem_memory"
MAPPED = ("chunk_keys", "keys", "values", "scales")  # what is not read as a whole
BLOCK = 2**24  # bytes of a tensor that are written at a time
DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def write_memory_file(path: str, header: Dict, tensors: Dict[str, Tensor]) -> None:
    """Writes a file that is either whole or not there.

    Args:
        tensors: of types in DTYPE_NAMES, on any device, contiguous or not; takes no copy of them

    Raises:
        OSError: there is no room, or no permission; an older file is left as it was
    """
    header = {"format": FORMAT, **header}
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    checksums["header"] = _text_checksum(header)
    metadata = {HEADER_KEY: json.dumps({**header, "checksums": checksums})}
    folder = os.path.dirname(os.path.abspath(path))
    prefix = f".{os.path.basename(path)}."
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=folder) as beside:
            part = os.path.join(beside, "memory")
            with open(part, "wb") as file:
                _write(file, tensors, metadata)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name too outlives a power cut
    finally:
        os.close(descriptor)


def _write(file: BinaryIO, tensors: Dict[str, Tensor], metadata: Dict[str, str]) -> None:
    """Writes what safetensors would, block by block.

    Its own writer takes contiguous tensors, for which those of a bank that is not full would have to be
    copied (up to release 0.7 it copies all); on disk they may be larger than main memory. The format:
    https://github.com/huggingface/safetensors#format
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned
    entries, end = {"__metadata__": metadata}, 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for block in _blocks(tensors[name]):
            file.write(block)


def _blocks(tensor: Tensor) -> Iterator[np.ndarray]:
    """Its bytes from first to last, at most BLOCK at a time; on a CPU they are not copied."""
    if not tensor.is_contiguous():
        for part in tensor:
            yield from _blocks(part)
        return
    for block in tensor.flatten().split(BLOCK // tensor.element_size()):
        yield block.cpu().view(torch.uint8).numpy()


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
    found = 0
    for block in _blocks(tensor):
        found = zlib.crc32(block, found)
    return found


def _text_checksum(header: Dict) -> int:
    return zlib.crc32(json.dumps(header).encode())
