"""Memory files, damaged on purpose; whatever else is wrong, their checksums are right."""

import json
import zlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longmem_fairseq.memory.memory_file import HEADER_KEY


def parts(path):
    """Header and tensors of a good file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()[HEADER_KEY]), tensors


def write(path, header, tensors):
    """A file of a header without checksums, as :mod:`memory_file` writes it."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    checksums = {n: zlib.crc32(t.flatten().view(torch.uint8).numpy()) for n, t in tensors.items()}
    checksums["header"] = zlib.crc32(json.dumps(header).encode())
    text = json.dumps({**header, "checksums": checksums})
    save_file(tensors, path, metadata={HEADER_KEY: text})


def rewrite(path, header, tensors):
    """Writes a header that was read, or anything else, in the place of what was read."""
    if isinstance(header, dict) and "checksums" in header:
        header = {name: value for name, value in header.items() if name != "checksums"}
        write(path, header, tensors)
    else:
        text = header if isinstance(header, str) else json.dumps(header)
        save_file(tensors, path, metadata={HEADER_KEY: text})


def with_header(**changed):
    def damage(path):
        header, tensors = parts(path)
        rewrite(path, {**header, **changed}, tensors)

    return damage


def without(name):
    def damage(path):
        header, tensors = parts(path)
        for part in (header, tensors):
            part.pop(name, None)
        rewrite(path, header, tensors)

    return damage


def with_tensor(name, change):
    def damage(path):
        header, tensors = parts(path)
        tensors[name] = change(tensors.get(name))
        rewrite(path, header, tensors)

    return damage


def truncated(fraction):
    def damage(path):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * fraction)])

    return damage


def offset_of(path, name):
    """Of the first byte of a tensor."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return 8 + length + json.loads(whole[8 : 8 + length])[name]["data_offsets"][0]


def flip(path, offset, bits=1):
    whole = bytearray(path.read_bytes())
    whole[offset] ^= bits
    path.write_bytes(whole)


def flipped(name):
    return lambda path: flip(path, offset_of(path, name))


def with_text(change):
    def damage(path):
        header, tensors = parts(path)
        rewrite(path, change(json.dumps(header)), tensors)

    return damage
