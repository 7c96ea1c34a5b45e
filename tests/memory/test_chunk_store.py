"""Where the keys and values are: every type and place against lists of tensors."""

import errno
import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem_fairseq.memory import DTYPES, STORAGES, MemoryBank, bytes_per_token
from longmem_fairseq.memory.chunk_store import ChunkStore, Placement
from tests.helpers.examples import examples


def check_rounding(stored, written, dtype):
    """A chunk c x D as it is read against what was written."""
    if dtype != "int8":
        assert stored.dtype == DTYPES[dtype]
        assert torch.equal(stored, written.to(DTYPES[dtype]))
        return
    assert stored.dtype == torch.float32
    step = written.abs().max() / 127
    assert (stored - written).abs().max() <= step * 0.501


@settings(max_examples=examples(40))
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    storage=st.sampled_from(STORAGES),
    banks=st.integers(1, 2),
    heads=st.integers(1, 2),
    slots=st.integers(1, 5),
    chunk_size=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 7), max_size=6),
    seed=st.integers(0, 99),
)
def test_a_ring_reads_what_was_written_last(
    dtype, storage, banks, heads, slots, chunk_size, head_dim, sizes, seed
):
    random = torch.Generator().manual_seed(seed)
    placement = Placement(storage)
    store = ChunkStore((banks, heads, slots), chunk_size, head_dim, dtype, placement)
    rings = [[None] * slots for _ in range(banks * heads)]  # keys and values of every slot
    for write, size in enumerate(sizes):
        ring = write % len(rings)
        size = min(size, slots)
        places = [(seed + write + i) % slots for i in range(size)]
        # chunks of very different size, some of zeros
        shape = (2, size, chunk_size, head_dim)
        magnitudes = 10 ** torch.randint(-3, 4, (size, 1, 1), generator=random).float()
        keys, values = torch.randn(shape, generator=random) * magnitudes
        keys[: seed % 3] = 0
        for place, chunk in zip(places, zip(keys, values, strict=True), strict=True):
            rings[ring][place] = chunk
        store.write(ring * slots + torch.tensor(places, dtype=torch.long), keys, values)
    flat = [chunk for ring in rings for chunk in ring]
    rows = torch.randint(len(flat), (3 * len(flat),), generator=random)  # some several times
    for row, key, value in zip(rows.tolist(), *store.gather(rows), strict=True):
        if flat[row] is None:
            assert not key.any() and not value.any()  # zeros: masked, but multiplied all the same
        else:
            check_rounding(key, flat[row][0], dtype)
            check_rounding(value, flat[row][1], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", STORAGES)
def test_a_bank_keeps_the_last_chunks_in_any_type_and_place(dtype, storage, tmp_path):
    bank = MemoryBank(
        2, 2, 3, 12, chunk_size=2, k=12, dtype=dtype, storage=storage, directory=str(tmp_path)
    )
    torch.manual_seed(1)
    keys, values = torch.randn(2, 2, 2, 31, 3)
    for part in (slice(0, 5), slice(5, 6), slice(6, 18), slice(18, 31)):  # parts of chunks too
        bank.write(keys[:, :, part], values[:, :, part])
    assert bank.num_written == [15, 15] and bank.num_pending == [1, 1]
    found_keys, found_values = bank.retrieve(torch.randn(2, 2, 1, 3)).tokens()
    for row in range(2):
        for head in range(2):
            chunks = [
                (keys[row, head, start : start + 2], values[row, head, start : start + 2])
                for start in range(18, 30, 2)
            ]
            found = (tensor[row, head, 0].split(2) for tensor in (found_keys, found_values))
            for key, value in zip(*found, strict=True):
                nearest = min(chunks, key=lambda chunk: (chunk[0] - key.float()).abs().max())
                check_rounding(key, nearest[0], dtype)
                check_rounding(value, nearest[1], dtype)
                chunks = [chunk for chunk in chunks if chunk is not nearest]
            assert chunks == []


def test_storages_give_the_same_bytes(tmp_path):
    torch.manual_seed(1)
    tokens = torch.randn(2, 1, 2, 37, 3)
    for dtype in DTYPES:
        found = []
        for storage in STORAGES:
            bank = MemoryBank(1, 2, 3, 16, 2, 8, dtype=dtype, storage=storage)
            bank.write(*tokens)
            found.append({name: t.clone() for name, t in bank.state_dict().items()})
        for other in found[1:]:
            assert all(torch.equal(other[name], found[0][name]) for name in found[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 4, 1), (4, 8, 3), (5, 16, 2)])
def test_bytes_per_token_are_those_of_a_bank(dtype, sizes):
    chunk_size, head_dim, heads = sizes
    for streams, scope, banks in ((3, "stream", 3), (3, "batch", 1)):
        bank = MemoryBank(
            streams, heads, head_dim, 40 * chunk_size, chunk_size, chunk_size, scope, dtype=dtype
        )
        expected = bytes_per_token(heads, head_dim, chunk_size, dtype)
        assert bank.ring.num_bytes / (banks * bank.layout.memory_size) == pytest.approx(
            expected, rel=1e-12
        )


def test_bytes_per_token_by_hand():
    assert bytes_per_token(16, 64, 4, "float32") == 16 * (2 * 64 * 4 + 64 * 4 / 4)
    assert bytes_per_token(16, 64, 4, "bfloat16") == 16 * (2 * 64 * 2 + 64 * 4 / 4)
    assert bytes_per_token(16, 64, 4, "int8") == 16 * (2 * 64 + 64 * 4 / 4 + 2 * 4 / 4)


@pytest.mark.parametrize("option", ["dtype", "storage"])
def test_types_and_places_that_there_are_not(option):
    with pytest.raises(ValueError) as error:
        MemoryBank(1, 1, 1, 64, **{option: "paper"})
    known = ", ".join(DTYPES if option == "dtype" else STORAGES)
    assert str(error.value) == f"{option} (paper) must be one of {known}"


NO_FILE = (
    "storage disk: cannot make a file of {:,} bytes in {} ({}); choose another directory or a smaller "
    "memory_size"
)


def test_a_folder_that_is_not_there(tmp_path):
    """A path that does not exist, and one that is a file."""
    (tmp_path / "file").write_text("")
    for name, reason in (("missing", errno.ENOENT), ("file", errno.ENOTDIR)):
        folder = str(tmp_path / name)
        with pytest.raises(ValueError) as error:
            MemoryBank(1, 2, 3, 64, storage="disk", directory=folder)
        assert str(error.value) == NO_FILE.format(64 * 2 * 3 * 4, folder, os.strerror(reason))


@pytest.mark.parametrize("nth", [1, 2, 3])  # keys, values, chunk keys
def test_a_disk_without_room(tmp_path, monkeypatch, nth):
    allocate, sizes = os.posix_fallocate, []

    def full(descriptor, offset, size):
        sizes.append(size)
        if len(sizes) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError) as error:
        MemoryBank(1, 2, 3, 64, storage="disk", directory=str(tmp_path))
    assert len(sizes) == nth
    expected = NO_FILE.format(sizes[-1], tmp_path, "No space left on device")
    assert str(error.value) == expected
    assert list(tmp_path.iterdir()) == []


def mappings(folder):
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if folder in line]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads /proc/self/maps")
def test_files_on_disk_vanish_with_the_bank(tmp_path):
    bank = MemoryBank(1, 2, 3, 64, storage="disk", directory=str(tmp_path), dtype="int8")
    bank.write(*torch.randn(2, 1, 2, 10, 3))
    assert bank.ring.chunk_keys[0, :, :2].any()
    assert len(mappings(str(tmp_path))) == 4  # keys, values, scales, chunk keys
    assert list(tmp_path.iterdir()) == []  # a killed process leaves nothing either
    del bank
    gc.collect()
    assert mappings(str(tmp_path)) == []
