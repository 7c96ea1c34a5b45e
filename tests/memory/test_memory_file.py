"""Memory files: loading gives the saved bank, and a file is either whole or not there."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from longmem_fairseq.memory import DTYPES, STORAGES, MemoryBank, Source, memory_file
from tests.helpers.filled_banks import HEAD_DIM, HEADS, SIZES, STREAMS, filled


def check_same(bank, other):
    """All that a bank can give, and what becomes of it when both go on."""
    for name in ("num_streams", "scope", "chunk_size", "dtype", "fingerprint"):
        assert getattr(other.layout, name) == getattr(bank.layout, name)
    assert other.sources == bank.sources
    assert other.num_written == bank.num_written and other.num_pending == bank.num_pending
    for number, waiting in enumerate(bank.num_pending):
        for name in ("keys", "values"):
            found, expected = (getattr(b.pending, name)[number, :, :waiting] for b in (other, bank))
            assert torch.equal(found, expected)
    for number, stored in enumerate(bank.num_chunks):
        for name, buffer in bank.ring.store.buffers().items():
            found = other.ring.store.buffers()[name][number, :, :stored]
            assert torch.equal(found, buffer[number, :, :stored])
        assert [other.locate(number, s) for s in range(stored)] == [
            bank.locate(number, s) for s in range(stored)
        ]
        held = bank.held(number)
        assert other.held(number) == held
        ids, expected = (b.logs[number].read(held) for b in (other, bank))
        assert torch.equal(ids, expected)
    check_same_search(bank, other)


def check_same_search(bank, other):
    queries = torch.randn(STREAMS, HEADS, 5, HEAD_DIM)
    found, expected = other.retrieve(queries), bank.retrieve(queries)
    assert torch.equal(found.chunks, expected.chunks)
    for tensor, reference in zip(found.tokens(), expected.tokens(), strict=True):
        assert torch.equal(tensor[found.valid], reference[expected.valid])


def go_on(*banks):
    tokens = torch.randn(2, STREAMS, HEADS, 11, HEAD_DIM)
    for bank in banks:
        bank.write(*tokens)
        bank.begin_document(1, "third")


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_bank_comes_back(dtype, storage, memory_map, tmp_path):
    path = str(tmp_path / "memory.safetensors")
    bank = filled(dtype=dtype, storage=storage, fingerprint="a" * 64)
    assert bank.num_written == [27, 4, 0] and bank.num_pending == [1, 1, 0]
    bank.save(path)
    loaded = MemoryBank.load(path, fingerprint="a" * 64, memory_map=memory_map, storage=storage)
    check_same(bank, loaded)
    assert loaded.layout.memory_size == 24 and loaded.layout.k == 6
    go_on(bank, loaded)
    check_same(bank, loaded)


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("scope", ["stream", "batch"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_rings_and_scopes_come_back(scope, wrapped, memory_map, tmp_path):
    path = str(tmp_path / "memory.safetensors")
    bank = filled(scope, wrapped)
    bank.save(path)
    loaded = MemoryBank.load(path, memory_map=memory_map)
    check_same(bank, loaded)
    assert loaded.layout.memory_size == 24
    loaded.save(str(tmp_path / "again.safetensors"))
    check_same(bank, MemoryBank.load(str(tmp_path / "again.safetensors")))


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_a_bank_of_hardly_anything_comes_back(tokens, memory_map, tmp_path):
    """Fewer than the k tokens that a query asks for."""
    path = str(tmp_path / "memory.safetensors")
    bank = MemoryBank(1, HEADS, HEAD_DIM, **SIZES)
    keys, values = torch.randn(2, 1, HEADS, tokens, HEAD_DIM)
    bank.write(keys, values)
    bank.save(path)
    loaded = MemoryBank.load(path, memory_map=memory_map)
    assert loaded.num_tokens == [tokens // 2 * 2] and loaded.num_pending == [tokens % 2]
    for other in (bank, loaded):
        other.write(*torch.ones(2, 1, HEADS, 40, HEAD_DIM))
    assert loaded.num_tokens == [24]


def test_only_what_is_stored_is_written(tmp_path):
    path = tmp_path / "memory.safetensors"
    bank = MemoryBank(1, 1, 1, memory_size=4 * 10**6, k=4)
    bank.write(*torch.randn(2, 1, 1, 9, 1))
    bank.save(str(path))
    assert path.stat().st_size < 4096
    assert MemoryBank.load(str(path)).layout.memory_size == 4 * 10**6


APPROXIMATE = [
    ("IVF4,Flat", "nprobe=2"),
    ("IVF4,SQ8", "nprobe=2"),
    ("PCA8,IVF4,Flat", ""),
    ("HNSW8", ""),
    ("Flat", ""),
]


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("index, parameters", APPROXIMATE)
def test_a_trained_index_finds_the_same_after_loading(index, parameters, memory_map, tmp_path):
    path = str(tmp_path / "memory.safetensors")
    options = {"index": index, "index_parameters": parameters}
    bank = filled(memory_size=800, wrapped=index != "HNSW8", **options)
    assert 0 in bank.ring.index.indices
    bank.save(path)
    loaded = MemoryBank.load(path, memory_map=memory_map, **options)
    check_same(bank, loaded)
    if index != "HNSW8":
        go_on(bank, loaded)
        check_same(bank, loaded)
    bank.reset(torch.tensor([True, False, False]))
    bank.save(path)
    check_same(bank, MemoryBank.load(path, **options))  # empty, but trained


def test_the_parameters_of_a_search_are_those_asked_for(tmp_path):
    path = str(tmp_path / "memory.safetensors")
    bank = filled(memory_size=800, index="IVF4,Flat", index_parameters="nprobe=2")
    bank.save(path)
    loaded = MemoryBank.load(path, index="IVF4,Flat", index_parameters="nprobe=4")
    exact = MemoryBank.load(path)  # with the default index
    check_same_search(exact, loaded)
    with pytest.raises(AssertionError):
        check_same_search(exact, bank)


@pytest.mark.parametrize("saved, loaded", [("torch", "IVF4,Flat"), ("IVF4,SQ8", "IVF4,Flat")])
def test_another_index_is_built_of_the_chunks(saved, loaded, tmp_path):
    path = str(tmp_path / "memory.safetensors")
    bank = filled(memory_size=800, index=saved)
    bank.save(path)
    other = MemoryBank.load(path, index=loaded, index_parameters="nprobe=4")
    assert type(other.ring.index.indices[0][0]).__name__ == "IndexIVFFlat"
    check_same_search(MemoryBank.load(path), other)


def test_what_is_written_to_a_mapped_bank_does_not_reach_the_file(tmp_path):
    path = tmp_path / "memory.safetensors"
    bank = filled()
    bank.save(str(path))
    content = path.read_bytes()
    mapped = MemoryBank.load(str(path), memory_map=True)
    go_on(bank, mapped)
    mapped.reset(torch.tensor([False, True, False]))
    bank.reset(torch.tensor([False, True, False]))
    check_same(bank, mapped)
    assert path.read_bytes() == content
    mapped.save(str(path))  # over the file that it reads
    go_on(bank, mapped)
    check_same(bank, mapped)
    bank = MemoryBank.load(str(path))
    assert bank.num_written[1] == 0 and path.read_bytes() != content


def test_names_of_documents_come_back(tmp_path):
    path = str(tmp_path / "memory.safetensors")
    bank = MemoryBank(1, 1, 1, **SIZES)
    name = 'a "quoted"\nname \N{SNOWMAN}'
    bank.begin_document(0, name, 12)
    bank.write(*torch.randn(2, 1, 1, 4, 1))
    bank.save(path)
    assert MemoryBank.load(path).locate(0, 1) == Source(2, name, 14)


def test_a_file_of_format_1_has_no_token_ids(tmp_path, monkeypatch):
    path = str(tmp_path / "memory.safetensors")
    bank = filled()
    monkeypatch.setattr(memory_file, "FORMAT", 1)
    state = bank.state_dict()
    for younger in ("token_ids", "pending_search", "last_search"):
        del state[younger]
    memory_file.write_memory_file(path, bank.header(), state)
    for memory_map in (False, True):
        loaded = MemoryBank.load(path, memory_map=memory_map)
        check_same_search(bank, loaded)
        held = loaded.held(0)
        assert held == bank.held(0)
        assert loaded.logs[0].read(held).tolist() == [-1] * len(held)


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize(
    "raised, expected",
    [
        (OSError(28, "No space left on device"), OSError),
        (SafetensorError("I/O error: No space left on device"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (PowerCut(), PowerCut),
    ],
)
@pytest.mark.parametrize("existed", [True, False])
def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch, raised, expected, existed):
    path = tmp_path / "memory.safetensors"
    if existed:
        filled().save(str(path))
    content = path.read_bytes() if existed else None

    def fail(tensors, name, metadata):
        whole = save(tensors, metadata)
        Path(name).write_bytes(whole[: len(whole) // 2])
        raise raised

    monkeypatch.setattr(memory_file, "save_file", fail)
    with pytest.raises(expected) as error:
        filled(seed=2).save(str(path))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == (["memory.safetensors"] if existed else [])
    assert not existed or path.read_bytes() == content


def test_a_folder_that_cannot_be_written_to(tmp_path):
    path = tmp_path / "missing" / "memory.safetensors"
    with pytest.raises(OSError) as error:
        filled().save(str(path))
    assert str(error.value).startswith(f"{path}: cannot be written (") and "\n" not in str(
        error.value
    )


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank = filled()
    bank.save("memory.safetensors")
    assert os.listdir(tmp_path) == ["memory.safetensors"]
    check_same(bank, MemoryBank.load("memory.safetensors"))
