"""The files of a bank that is split over processes: one for each shard, ``PATH.0-of-4`` and so on.

Slot s of a bank of N shards is slot s // N of shard s % N, so any number of shards can load the
files of any other number.
"""

import json
import math
import os
import re
import zlib
from typing import Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.memory_file import MAPPED, read_memory_file
from longmem_fairseq.memory.pending_tokens import PENDING
from longmem_fairseq.utils.argument_error import ArgumentError


def part_path(path: str, shard: int, num_shards: int) -> str:
    """The file of one shard; *path* itself where there is only one."""
    return path if num_shards == 1 else f"{path}.{shard}-of-{num_shards}"


def read_memory(
    path: str, verify: bool = True, shard: int = 0, num_shards: int = 1
) -> Tuple[Dict, Dict[str, Tensor]]:
    """Header and tensors of a memory, or of one part of it, in however many files it was saved.

    Reads only the files that hold something of it.

    Args:
        verify: see :func:`read_memory_file`

    Raises:
        FileNotFoundError: there is no such memory, or one of its files is missing
        ValueError: see :func:`read_memory_file`; or the files are not of one memory
    """
    saved = _saved_shards(path)
    parts, identities = {}, set()
    for i in range(saved):
        if (i - shard) % math.gcd(saved, num_shards) != 0:
            continue  # no slot is in both
        file = part_path(path, i, saved)
        header, parts[i] = read_memory_file(file, verify)
        part = header.pop("shard", 0), header.pop("num_shards", 1)
        if part != (i, saved):
            raise ValueError(f"{file} holds shard {part[0]} of {part[1]}: it was renamed")
        same_in_all = (parts[i][name] for name in ("token_ids", *PENDING))
        identities.add(identity(header, same_in_all))
    if len(identities) > 1:
        raise ValueError(f"{path}: its {saved} files were not saved together")
    if saved != num_shards:
        slots = header["memory_size"] // header["chunk_size"]
        if slots % num_shards:
            text = "{} holds a memory of {:,} chunks, which {num_shards} ({}) must divide"
            raise ArgumentError(text, path, slots, num_shards)
        stored = min(max(header["num_written"]), slots)
        return header, _cut(parts, saved, stored, shard, num_shards)
    return header, parts[shard]


def memory_size_of(path: str) -> Optional[int]:
    """Tokens that a saved memory has room for; None where :func:`read_memory` will raise an error."""
    try:
        header, _ = read_memory_file(part_path(path, 0, _saved_shards(path)), verify=False)
    except (OSError, ValueError):
        return None
    return header["memory_size"]


def _saved_shards(path: str) -> int:
    """How many files hold the memory *path*."""
    saved = list(_saved_files(path))
    if not saved:
        raise FileNotFoundError(f"{path}: no such memory file")
    if len(saved) > 1:
        numbers = ", ".join(map(str, sorted(saved)))
        raise ValueError(
            f"{path} was saved by different numbers of shards ({numbers}): remove the files of all but "
            "one"
        )
    return saved[0]


def remove_other_parts(path: str, num_shards: int = 1) -> None:
    """Removes the files of a memory that other numbers of shards than *num_shards* have saved.

    A process that has mapped one of them keeps its contents.

    Raises:
        OSError: one cannot be removed
    """
    for saved, files in _saved_files(path).items():
        if saved != num_shards:
            for file in files:
                os.remove(file)


def _saved_files(path: str) -> Dict[int, List[str]]:
    """The files named as :func:`part_path` does, by number of shards."""
    files = {1: [path]} if os.path.isfile(path) else {}
    folder, name = os.path.split(os.path.abspath(path))
    for file in os.listdir(folder) if os.path.isdir(folder) else ():
        match = re.fullmatch(re.escape(name) + r"\.(\d+)-of-(\d+)", file)
        if match is None:
            continue
        shard, saved = int(match[1]), int(match[2])
        whole = os.path.join(folder, file)
        if shard < saved and file == part_path(name, shard, saved) and os.path.isfile(whole):
            files.setdefault(saved, []).append(whole)
    return files


def _cut(parts: Dict[int, Dict], saved: int, stored: int, shard: int, num_shards: int) -> Dict:
    """The tensors of one part, of those of *saved* others; *stored* slots are in all together.

    Trained indices are left behind: they are of other chunks.
    """
    tensors = {n: t for n, t in next(iter(parts.values())).items() if not n.startswith("index.")}
    slots = shard + num_shards * torch.arange(-(-stored // num_shards))
    slots = slots.clamp(max=max(stored - 1, 0))  # the last one may not be stored in this shard
    for name in MAPPED:
        if name not in tensors:
            continue
        buffer = tensors[name]  # N x H x slots x ...
        tensors[name] = buffer.new_empty(*buffer.shape[:2], len(slots), *buffer.shape[3:])
        for i, part in parts.items():
            here = slots % saved == i
            tensors[name][:, :, here] = part[name][:, :, slots[here] // saved]
    return tensors


def identity(header: Dict, tensors: Iterable[Tensor]) -> int:
    """A checksum of the header and of tensors that all shards of one memory have in common."""
    checksum = zlib.crc32(json.dumps(header).encode())
    for tensor in tensors:
        checksum = zlib.crc32(tensor.cpu().flatten().view(torch.uint8).numpy(), checksum)
    return checksum
