"""Memory files of another backbone or other sizes are refused by name, and what is there stays."""

import pytest
import torch

from longmem_fairseq.memory import ExternalMemory, MemoryBank
from tests.helpers.filled_banks import HEAD_DIM, HEADS, SIZES, STREAMS, filled


@pytest.fixture
def saved(tmp_path):
    """A good file."""
    path = tmp_path / "memory.safetensors"
    filled(fingerprint="a" * 64).save(str(path))
    return path


def external(path):
    """A model's memory, in the middle of its documents."""
    memory = ExternalMemory(HEADS, HEAD_DIM, **SIZES)
    memory.banks[True] = MemoryBank.load(str(path))
    return memory


def check_none_loads(memory, path, message, **options):
    """Neither a memory that asks for *options* nor a bank."""
    before = memory.banks[True]
    for load in (
        lambda: memory.load(str(path)),
        lambda: MemoryBank.load(str(path), **options),
        lambda: MemoryBank.load(str(path), memory_map=True, **options),
    ):
        with pytest.raises(ValueError) as error:
            load()
        assert str(error.value) == f"{path} holds {message}"
    assert memory.banks[True] is before


def test_memory_of_another_backbone_is_refused(saved):
    memory = external(saved)
    memory.options["fingerprint"] = "b" * 64
    message = (
        "keys of the backbone aaaaaaaaaaaaaaaa, not of bbbbbbbbbbbbbbbb: encode the documents again "
        "with this backbone"
    )
    check_none_loads(memory, saved, message, fingerprint="b" * 64)
    memory.options["fingerprint"] = "a" * 64
    memory.load(str(saved))
    assert MemoryBank.load(str(saved)).layout.fingerprint == "a" * 64


@pytest.mark.parametrize(
    "name, value, found",
    [
        ("num_heads", 1, 2),
        ("head_dim", 4, 8),
        ("memory_size", 16, 24),
        ("memory_size", 4, 24),  # less than k, too
        ("chunk_size", 1, 2),
        ("scope", "batch", "stream"),
        ("dtype", "int8", "float32"),
    ],
)
def test_memory_of_other_sizes_is_refused_by_name(saved, name, value, found):
    memory = external(saved)
    if name in ("num_heads", "head_dim"):
        setattr(memory, name, value)
    else:
        memory.options[name] = value
    message = (
        f"a memory with {name.replace('_', ' ')} {found}, not {value}: give the options that it was "
        "saved with"
    )
    check_none_loads(memory, saved, message, **{name: value})


def test_another_k_is_none_of_the_files_business(saved):
    assert MemoryBank.load(str(saved)).layout.k == 6
    for memory_map in (False, True):
        bank = MemoryBank.load(str(saved), memory_map=memory_map, k=2)
        assert bank.retrieve(torch.randn(STREAMS, HEADS, 1, HEAD_DIM)).valid.size(-1) == 2
