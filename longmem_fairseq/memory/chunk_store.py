"""Where a bank keeps the keys and values of its tokens.

N rows of one chunk each, c chunk_size in tokens, D head_dim, n rows of one call.
"""

import math
import mmap
import os
import tempfile
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.utils.argument_error import ArgumentError

STORAGES = ("device", "host", "disk")
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


class Placement(NamedTuple):
    """Where buffers live: *storage* is one of STORAGES.

    device: of the model; host: in main memory; disk: in a file of *directory* (default: the
    system's folder for temporary files) that is mapped into memory and vanishes with the process.
    *tensors*: buffers of a memory file, by name, to be used in place.
    """

    storage: str = "device"
    device: Optional[torch.device] = None
    directory: Optional[str] = None
    tensors: Optional[Dict[str, Tensor]] = None

    def buffer(self, name: str, shape: Tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A buffer of zeros, or the one that is there.

        Zeros, not empty: a masked chunk takes part in the products with weight 0, and 0 * NaN is NaN.

        Raises:
            ArgumentError: there is no room for it
        """
        if self.tensors is not None:
            return self.tensors[name]
        size = math.prod(shape) * dtype.itemsize
        if self.storage != "disk" or size == 0:  # there are no empty mappings
            device = self.device if self.storage == "device" else None
            try:
                return torch.zeros(shape, dtype=dtype, device=device)
            except RuntimeError as error:
                raise ArgumentError(
                    "a memory whose {} take {:,} bytes cannot be made: choose a smaller {memory_size}, "
                    "or {storage} disk",
                    name,
                    size,
                ) from error
        try:
            with tempfile.TemporaryFile(prefix="longmem-", dir=self.directory) as file:
                # all of it now: writing to a mapped page that finds no room kills the process
                os.posix_fallocate(file.fileno(), 0, size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise ArgumentError(
                "{storage} disk: cannot make a file of {:,} bytes in {} ({}); choose another "
                "{directory} or a smaller {memory_size}",
                size,
                self.directory or tempfile.gettempdir(),
                error.strerror,
            ) from error
        if name != "chunk_keys" and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # reading ahead would read many times what is used
        return torch.frombuffer(mapped, dtype=dtype).view(shape)


class ChunkStore:
    """Keys and values of all chunks of N banks with H heads and S slots, in any of DTYPES.

    ``int8`` keeps a scale for the keys and one for the values of every chunk (the largest absolute
    value is 127); everything else is stored as it is. A row is a chunk; (bank, head, slot) is row
    (bank * H + head) * S + slot.

    Args:
        slots: N, H, S
        chunk_size, head_dim: c, D
        dtype: a key of DTYPES
        placement: where the buffers live
    """

    def __init__(
        self,
        slots: Tuple[int, int, int],
        chunk_size: int,
        head_dim: int,
        dtype: str,
        placement: Placement,
    ):
        self.dtype = DTYPES[dtype]
        self.chunk_size, self.head_dim = chunk_size, head_dim
        shape = (*slots, chunk_size, head_dim)
        self.keys = placement.buffer("keys", shape, self.dtype)
        self.values = placement.buffer("values", shape, self.dtype)
        self.scales = None  # N x H x S x 2, of keys and values
        if self.dtype == torch.int8:
            self.scales = placement.buffer("scales", (*slots, 2), torch.float32)

    def buffers(self) -> Dict[str, Tensor]:
        """Everything stored, by name; the first dimensions are N x H x S."""
        buffers = {"keys": self.keys, "values": self.values}
        if self.scales is not None:
            buffers["scales"] = self.scales
        return buffers

    def write(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Overwrites *rows* (n) with keys and values, n x c x D."""
        rows = rows.to(self.keys.device)
        for column, (buffer, new) in enumerate(((self.keys, keys), (self.values, values))):
            new = new.to(self.keys.device)
            if self.scales is not None:
                scale = new.float().abs().amax(dim=(1, 2)).clamp(min=1e-12) / 127  # n
                self.scales.view(-1, 2)[rows, column] = scale
                new = (new.float() / scale.view(-1, 1, 1)).round()
            buffer.view(-1, self.chunk_size, self.head_dim)[rows] = new.to(self.dtype)

    def gather(self, rows: Tensor) -> Tuple[Tensor, Tensor]:
        """Keys and values of *rows* (n), n x c x D, on the device of *rows*.

        In the stored type, or float32 where that is int8.
        """
        stored = rows.to(self.keys.device)
        shape = (-1, self.chunk_size, self.head_dim)
        keys = self.keys.view(shape).index_select(0, stored)
        values = self.values.view(shape).index_select(0, stored)
        if self.scales is not None:
            scales = self.scales.view(-1, 2).index_select(0, stored)[:, :, None, None]
            keys, values = keys * scales[:, 0], values * scales[:, 1]  # n x c x D
        return keys.to(rows.device), values.to(rows.device)


def bytes_per_token(
    num_heads: int, head_dim: int, chunk_size: int, dtype: str, search_dim: int = 0
) -> float:
    """Bytes that a cached token takes: its keys and values, and its share of the chunk's float32
    search keys (and scales); those of an approximate index are not counted.

    Args:
        search_dim: of search ``hidden``, which has one search key for all heads; 0 for one each
    """
    chunk = 4 * (search_dim or num_heads * head_dim) + (8 * num_heads if dtype == "int8" else 0)
    return num_heads * 2 * head_dim * DTYPES[dtype].itemsize + chunk / chunk_size
