"""Damage to memory files of search ``hidden``."""

import json

import pytest
import torch
from safetensors import safe_open

from longmem_fairseq.memory import MemoryBank
from tests.helpers.damaged_files import write


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
