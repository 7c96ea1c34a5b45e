"""Memories that stay in their files do everything as memories that were read do.

test_bank_against_lists.py maps banks in the middle of everything else.
"""

import pytest
import torch

from longmem_fairseq.memory import (
    MemoryBank,
    MemoryFork,
    Source,
    extend_bank,
    select_banks,
)
from longmem_fairseq.memory.bank_copies import copy_bank
from tests.helpers.model_folders import TEXT, story

SIZES = {"memory_size": 64, "chunk_size": 2, "k": 4}


def tokens(first, count):
    """Keys, values and ids of tokens whose numbers they are."""
    numbers = torch.arange(first, first + count)
    keys = numbers.float().view(1, 1, -1, 1)
    return keys, -keys, numbers.view(1, -1)


@pytest.fixture
def path(tmp_path):
    """A memory of 16 tokens, 100 to 115, of the document "a"."""
    bank = MemoryBank(1, 1, 1, **SIZES)
    bank.begin_document(0, "a")
    keys, values, ids = tokens(100, 16)
    bank.write(keys, values, token_ids=ids)
    bank.save(str(tmp_path / "memory"))
    return str(tmp_path / "memory")


def mapped(path, **options):
    bank = MemoryBank.load(path, memory_map=True, **options)
    assert bank.ring.in_place and bank.ring.store.keys.shape == (1, 1, 8, 2, 1)
    assert bank.layout.memory_size == 64
    return bank


def check_holds(bank, numbers, stream=0):
    """Chunks of tokens with these numbers, searched by their means."""
    held = bank.held(stream)
    assert held == range(len(numbers))
    assert bank.logs[stream].read(held).tolist() == numbers
    stored = bank.num_chunks[stream]
    assert stored == len(numbers) // 2 and bank.layout.memory_size == 64
    keys = torch.tensor(numbers[: 2 * stored]).float().view(stored, 2)
    assert torch.equal(bank.ring.store.keys[stream, 0, :stored, :, 0], keys)
    assert torch.equal(bank.ring.store.values[stream, 0, :stored, :, 0], -keys)
    assert torch.equal(bank.ring.chunk_keys[stream, 0, :stored, 0], keys.mean(dim=1))


def test_what_is_read_after_a_mapped_memory_is_cited_as_it_is(path):
    bank = mapped(path)
    fork = MemoryFork(bank, 1, document="this text")
    assert fork.retrieve(torch.ones(1, 1, 1, 1)).chunks.tolist() == [[[[7, 6]]]]
    assert fork.bank is bank
    fork.write(*tokens(200, 12))
    check_holds(fork.bank, [*range(100, 116), *range(200, 212)])
    assert fork.bank.locate(0, 7) == Source(14, "a", 14)
    assert fork.bank.locate(0, 8) == Source(16, "this text", -1)
    check_holds(bank, [*range(100, 116)])
    assert bank.ring.in_place


@pytest.mark.parametrize("storage", ["device", "disk"])
def test_a_mapped_bank_that_is_written_leaves_its_file(path, storage):
    bank = mapped(path, storage=storage)
    with torch.inference_mode():
        bank.write(*tokens(300, 8)[:2], token_ids=tokens(300, 8)[2])
    numbers = [*range(100, 116), *range(300, 308)]
    check_holds(bank, numbers)
    assert not bank.ring.in_place and bank.ring.store.keys.shape == (1, 1, 32, 2, 1)
    check_holds(select_banks(bank, [0]), numbers)
    bank.write(*tokens(400, 2)[:2], token_ids=tokens(400, 2)[2])
    check_holds(bank, [*numbers, 400, 401])
    check_holds(MemoryBank.load(path), [*range(100, 116)])
    bank.save(path)
    check_holds(mapped_again := MemoryBank.load(path, memory_map=True), [*numbers, 400, 401])
    extend_bank(mapped_again, bank)
    check_holds(mapped_again, 2 * [*numbers, 400, 401])


def test_another_bank_in_the_place_of_a_mapped_one(path):
    other = MemoryBank(1, 1, 1, **SIZES)
    keys, values, ids = tokens(500, 40)
    other.write(keys, values, token_ids=ids)
    copied, loaded = mapped(path), mapped(path)
    copy_bank(copied, 0, other, 0)
    loaded.load_state_dict(other.header(), other.state_dict())
    for bank in (copied, loaded):
        check_holds(bank, [*range(500, 540)])
    check_holds(mapped(path), [*range(100, 116)])


def test_a_mapped_bank_for_which_there_is_no_room(path, tmp_path):
    bank = mapped(path, storage="disk", directory=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="^storage disk: cannot make a file of 256 bytes"):
        bank.write(*tokens(200, 1)[:2])
    check_holds(bank, [*range(100, 116)])
    assert bank.ring.in_place and bank.retrieve(torch.ones(1, 1, 1, 1)).chunks.tolist() == [
        [[[7, 6]]]
    ]


@pytest.mark.parametrize("index", ["IVF2,Flat", "HNSW8"])
def test_an_index_has_the_room_of_the_whole_memory(tmp_path, index):
    """It is trained when there are enough chunks, and can take as many as there is room for."""
    torch.manual_seed(1)
    path, options = str(tmp_path / "memory"), {"index": index}
    bank = MemoryBank(1, 1, 4, memory_size=200, chunk_size=1, k=3, **options)
    bank.write(*torch.randn(2, 1, 1, 50, 4))
    bank.save(path)
    other = MemoryBank.load(path, memory_map=True, **options)
    assert (0 in other.ring.index.indices) == (index == "HNSW8")
    more, queries = torch.randn(2, 1, 1, 150, 4), torch.randn(1, 1, 5, 4)
    for used in (bank, other):
        used.write(*more)
        assert [i.ntotal for i in used.ring.index.indices[0]] == [200]
    assert torch.equal(other.retrieve(queries).chunks, bank.retrieve(queries).chunks)


# --- the model's ---


@pytest.fixture
def saved(load_lm, tmp_path):
    lm = load_lm()
    lm.memorize(story(12, seed=1), "a")
    lm.save_memory(tmp_path / "memory")
    return tmp_path / "memory"


@pytest.fixture
def load_both(load_lm, saved):
    """A model that has read the memory, and one that has mapped it."""

    def load():
        models = load_lm(), load_lm()
        for memory_map, lm in enumerate(models):
            lm.load_memory(saved, memory_map=bool(memory_map))
        assert models[1].memory.banks[False].ring.in_place
        return models

    return load


def test_a_model_that_only_reads_leaves_the_memory_in_its_file(load_both):
    lm, other = load_both()
    bank, short = other.memory.banks[False], story(3, seed=4)
    assert len(lm.tokenizer.indices(short)) < lm.window
    assert other.generate(short, 3) == lm.generate(short, 3)
    for text in (short, TEXT):  # the second one is read after the memory, in a copy
        assert torch.equal(other.score(text).log_probs, lm.score(text).log_probs)
        assert other.retrieved(text) == lm.retrieved(text)
        with other.frozen_memory(), lm.frozen_memory():
            assert torch.equal(other.score(text).log_probs, lm.score(text).log_probs)
    assert other.memory.banks[False] is bank and bank.ring.in_place


def test_a_model_that_memorizes_more(load_both, load_lm, tmp_path):
    read, mapped = load_both()
    for lm in (read, mapped):
        lm.memorize(story(12, seed=2), "b")
    bank, expected = (lm.memory.single_bank(lm.device) for lm in (mapped, read))
    assert bank.header() == expected.header() and bank.layout.memory_size == 128
    assert len(bank.held(0)) == bank.held(0).stop > 40
    assert torch.equal(mapped.score(TEXT).log_probs, read.score(TEXT).log_probs)
    assert mapped.retrieved(TEXT) == read.retrieved(TEXT)
    mapped.save_memory(tmp_path / "more")
    again = load_lm()
    again.load_memory(tmp_path / "more")
    assert torch.equal(again.score(TEXT).log_probs, read.score(TEXT).log_probs)
