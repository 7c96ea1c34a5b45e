"""Memory files of formats 1 and 2, written here as they were laid out, and damage to format 3."""

import json

import pytest
import torch
from safetensors import safe_open

from longmem_fairseq.memory import MemoryBank
from tests.helpers.damaged_files import write

BANKS, HEADS, SLOTS, CHUNK, DIM = 2, 2, 3, 2, 4
OLD_HEADER = {
    "num_streams": BANKS,
    "num_heads": HEADS,
    "head_dim": DIM,
    "memory_size": SLOTS * CHUNK,
    "chunk_size": CHUNK,
    "k": 4,
    "scope": "stream",
    "dtype": "float32",
    "fingerprint": "ab" * 32 + " layer 3",
    "num_written": [4, 1],
    "num_pending": [1, 0],
    "sources": [[[0, "a", -1], [5, "b", -1]], []],
}


def old_tensors(version):
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "chunk_keys": (BANKS, HEADS, SLOTS, DIM),
        "keys": (BANKS, HEADS, SLOTS, CHUNK, DIM),
        "values": (BANKS, HEADS, SLOTS, CHUNK, DIM),
        "pending_keys": (BANKS, HEADS, CHUNK, DIM),
        "pending_values": (BANKS, HEADS, CHUNK, DIM),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if version == 2:
        tensors["token_ids"] = torch.arange(BANKS * 7, dtype=torch.int32).view(BANKS, 7)
    return tensors


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_older_files_are_read(tmp_path, version, memory_map):
    tensors = old_tensors(version)
    write(tmp_path / "old", {"format": version, **OLD_HEADER}, tensors)
    bank = MemoryBank.load(str(tmp_path / "old"), memory_map=memory_map)
    assert bank.layout.search == "attention" and bank.layout.search_dim == 0
    assert (bank.num_written, bank.num_pending) == ([4, 1], [1, 0])
    assert bank.pending.in_document == [False, False]
    for name in ("keys", "values"):
        stored = getattr(bank.ring.store, name)
        assert torch.equal(stored[0], tensors[name][0])
        assert torch.equal(stored[1, :, 0], tensors[name][1, :, 0])
    held = bank.held(0)
    assert held == range(2, 9)
    ids = tensors["token_ids"][0].tolist() if version == 2 else [-1] * 7
    assert bank.logs[0].read(held).tolist() == ids
    assert bank.documents(0) == {"a": 3, "b": 4}
    queries = torch.randn(BANKS, HEADS, 3, DIM, generator=torch.Generator().manual_seed(2))
    found = bank.retrieve(queries)
    best = (queries[0] @ tensors["chunk_keys"][0].transpose(1, 2)).topk(2, dim=-1).indices
    assert torch.equal(found.chunks[0], best) and found.scores is None
    # it goes on, and is saved in the format of today
    keys = torch.ones(BANKS, HEADS, 1, DIM)
    bank.write(keys, keys, token_ids=torch.full((BANKS, 1), 77))
    bank.save(str(tmp_path / "new"))
    with safe_open(tmp_path / "new", framework="pt") as file:
        assert json.loads(file.metadata()["longmem_memory"])["format"] == 3
    again = MemoryBank.load(str(tmp_path / "new"))
    assert again.header() == bank.header()
    for name, tensor in bank.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.fixture
def hidden(tmp_path):
    """A file of search ``hidden``: its header without checksums, and its tensors."""
    bank = MemoryBank(2, 1, 3, memory_size=8, chunk_size=2, k=4, search="hidden", search_dim=5)
    bank.begin_document(0, "a", -1)
    keys = torch.randn(2, 1, 8, 3)
    bank.write(keys, keys, token_ids=torch.ones(2, 8), search_keys=torch.randn(2, 8, 5))
    bank.save(str(tmp_path / "hidden"))
    with safe_open(tmp_path / "hidden", framework="pt") as file:
        header = json.loads(file.metadata()["longmem_memory"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["checksums"]
    return header, tensors


def test_the_file_that_is_damaged_below(hidden, tmp_path):
    write(tmp_path / "again", *hidden)
    assert MemoryBank.load(str(tmp_path / "again")).pending.in_document == [True, True]


HEADERS = {
    "search": [("hidden", 0), ("attention", 5), ("other", 5), (None, 5), ([], 5), ("hidden", -5)],
    "search_dim": [("hidden", 2**41), ("hidden", 5.0), ("hidden", True), ("hidden", "5")],
    "dimensions": [("hidden", 4)],
}


@pytest.mark.parametrize("search, dim", [pair for pairs in HEADERS.values() for pair in pairs])
def test_another_search_is_refused(hidden, tmp_path, search, dim):
    header, tensors = hidden
    write(tmp_path / "bad", {**header, "search": search, "search_dim": dim}, tensors)
    with pytest.raises(ValueError, match=r"bad is a damaged memory file \("):
        MemoryBank.load(str(tmp_path / "bad"))


@pytest.mark.parametrize(
    "in_document",
    [None, 1, "ab", [], [True], [True, 1], [True, None], [True] * 3, {"a": 1, "b": 2}],
)
def test_another_in_document_is_refused(hidden, tmp_path, in_document):
    header, tensors = hidden
    write(tmp_path / "bad", {**header, "in_document": in_document}, tensors)
    with pytest.raises(ValueError, match=r"bad is a damaged memory file \("):
        MemoryBank.load(str(tmp_path / "bad"))


@pytest.mark.parametrize("name", ["search", "search_dim", "in_document"])
def test_a_missing_field_is_refused(hidden, tmp_path, name):
    header, tensors = hidden
    del header[name]
    write(tmp_path / "bad", header, tensors)
    with pytest.raises(ValueError, match=r"bad is a damaged memory file \("):
        MemoryBank.load(str(tmp_path / "bad"))


@pytest.mark.parametrize("name", ["last_search", "pending_search", "chunk_keys", "token_ids"])
@pytest.mark.parametrize("change", ["missing", "longer", "double", "flipped"])
def test_another_tensor_is_refused(hidden, tmp_path, name, change):
    header, tensors = hidden
    if change == "missing":
        del tensors[name]
    elif change == "longer":
        tensors[name] = torch.cat([tensors[name]] * 2)
    elif change == "double":
        tensors[name] = tensors[name].double()
    write(tmp_path / "bad", header, tensors)
    if change == "flipped":
        content = bytearray((tmp_path / "bad").read_bytes())
        found = content.find(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
        content[found + 1] ^= 4
        (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad is a damaged memory file \("):
        MemoryBank.load(str(tmp_path / "bad"))
