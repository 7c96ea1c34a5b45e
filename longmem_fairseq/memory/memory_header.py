"""The JSON header of a memory file, checked before anything is made of it.

Sizes and fill of :meth:`MemoryBank.header`; ``format``; and in the file of one shard of a bank (see
:mod:`shard_files`), which holds the keys and values of that shard alone, ``shard`` and ``num_shards``.
"""

import zlib
from dataclasses import fields
from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.token_log import UNKNOWN

FORMAT = 3
READABLE = (1, 2, 3)
MOST = 2**40  # of anything that a header counts
MOST_STREAMS = 2**20  # of which there are lists
FILL = ("num_written", "num_pending", "sources", "in_document")


def check_contents(header: Dict[str, Any], tensors: Dict[str, Tensor]) -> None:
    """Completes header and tensors of a file of an older format to those of today's.

    Raises:
        ValueError: they are not those of a bank
    """
    if header["format"] < 3:
        header.update(search="attention", search_dim=0, in_document=[])
    names = [*(field.name for field in fields(BankLayout)), *FILL]
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"its header lacks {missing[0]}")
    layout = _layout(header)
    if header["format"] < 3:
        header["in_document"] = [False] * layout.num_streams
    _check_fill(header, layout)
    _check_tensors(header, layout, tensors)
    if header["format"] < 2:
        tensors["token_ids"] = torch.full(_held_shape(header, layout), UNKNOWN, dtype=torch.int32)
    if header["format"] < 3:
        for name in ("pending_search", "last_search"):
            tensors[name] = torch.zeros(layout.tensors(0)[name][0])


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of its bytes."""
    return zlib.crc32(tensor.flatten().view(torch.uint8).numpy())


def _layout(header: Dict[str, Any]) -> BankLayout:
    """Raises ValueError where no bank has such sizes."""
    least = {"num_heads": 0 if header["search"] == "hidden" else 1, "search_dim": 0}
    for field in fields(BankLayout):
        value = header[field.name]
        if type(value) is not field.type:
            raise ValueError(f"{field.name} {value!r}")
        most = MOST_STREAMS if field.name == "num_streams" else MOST
        if field.type is int and not least.get(field.name, 1) <= value <= most:
            raise ValueError(f"{field.name} {value!r}")
    return BankLayout(**{field.name: header[field.name] for field in fields(BankLayout)})


def _check_fill(header: Dict[str, Any], layout: BankLayout) -> None:
    """Raises ValueError where it is not that of a bank of this layout."""
    banks, streams = layout.num_banks, layout.num_streams

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 <= value <= MOST

    for name in ("num_written", "num_pending"):
        if not _is_list(header[name], banks, is_count):
            raise ValueError(f"{name} {header[name]!r} for {banks} banks")
    if max(header["num_pending"]) >= layout.chunk_size:
        raise ValueError(f"num_pending {header['num_pending']} with chunks of {layout.chunk_size}")
    if not _is_list(header["in_document"], streams, lambda value: type(value) is bool):
        raise ValueError(f"in_document {header['in_document']!r} of {streams} streams")
    if not _is_list(header["sources"], banks, lambda sources: type(sources) is list):
        raise ValueError(f"sources {header['sources']!r} for {banks} banks")
    for source in (source for sources in header["sources"] for source in sources):
        kinds = [type(part) for part in source] if type(source) is list else []
        if kinds not in ([int, str, int], [int, type(None), int]):
            raise ValueError(f"source {source!r}")


def _is_list(value: Any, length: int, is_right: Callable[[Any], bool]) -> bool:
    return type(value) is list and len(value) == length and all(map(is_right, value))


def _check_tensors(header: Dict[str, Any], layout: BankLayout, tensors: Dict[str, Tensor]) -> None:
    """Raises ValueError where they are not those that the header says."""
    expected = layout.tensors(_num_slots(header, layout))
    expected["token_ids"] = (_held_shape(header, layout), torch.int32)
    younger = {
        1: ("token_ids", "pending_search", "last_search"),
        2: ("pending_search", "last_search"),
    }
    for name in younger.get(header["format"], ()):
        del expected[name]
    for name, tensor in tensors.items():
        if name.startswith("index."):
            expected[name] = ((tensor.numel(),), torch.uint8)
    if set(tensors) != set(expected):
        raise ValueError(f"tensors {sorted(tensors)}, expected {sorted(expected)}")
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype}, expected {shape} and "
                f"{dtype}"
            )


def _num_slots(header: Dict[str, Any], layout: BankLayout) -> int:
    """Slots in the file: as many as the fullest bank has chunks, or as its shards have at most."""
    shard, num_shards = header.get("shard", 0), header.get("num_shards", 1)
    if type(shard) is not int or type(num_shards) is not int or not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard!r} of {num_shards!r}")
    if layout.num_slots % num_shards:
        raise ValueError(f"{layout.num_slots} chunks for {num_shards} shards")
    return -(-min(max(header["num_written"]), layout.num_slots) // num_shards)


def _held_shape(header: Dict[str, Any], layout: BankLayout) -> Tuple[int, int]:
    """N x tokens, stored or waiting, of the fullest bank."""
    fill = zip(header["num_written"], header["num_pending"], strict=True)
    return layout.num_banks, max(len(layout.held(*of_bank)) for of_bank in fill)
