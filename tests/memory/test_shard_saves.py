"""Saving a split memory over an older one: whole or not at all, and without what the older one left."""

import os
import resource

import pytest
import torch
import torch.distributed as dist

from longmem_fairseq.memory import MemoryBank, ShardedBank, memory_file, sharded_bank
from tests.helpers.shard_processes import run

HEADS, HEAD_DIM, TOKENS = 2, 8, 4000
SIZES = {"memory_size": 4096, "chunk_size": 2, "k": 6}

# beside a memory called "w.memory"; none of them is a part of it
STRANGERS = [
    ".w.memory.0-of-2",
    "w.memory.0-of-1",
    "w.memory.0-of-2.bak",
    "w.memory.00-of-2",
    "w.memory.0-of-02",
    "w.memory.2-of-2",
    "w.memory.\N{ARABIC-INDIC DIGIT ONE}-of-2",
    "w.memory.json",
    "w.memory2.0-of-2",
    "wxmemory.0-of-2",
]


def filled(bank, seed, tokens=TOKENS):
    bank.write(*torch.randn(2, 1, HEADS, tokens, HEAD_DIM, generator=seeded(seed)))
    return bank


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def one_bank(seed, tokens=TOKENS):
    return filled(MemoryBank(1, HEADS, HEAD_DIM, **SIZES), seed, tokens)


def assert_holds(bank, expected):
    """*bank* finds what the bank *expected* does."""
    assert (bank.num_written, bank.num_pending) == (expected.num_written, expected.num_pending)
    found, wanted = (b.retrieve(torch.ones(1, HEADS, 1, HEAD_DIM)) for b in (bank, expected))
    for tensor, reference in zip(found.tokens(), wanted.tokens(), strict=True):
        assert torch.equal(tensor, reference)


def contents(folder):
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and "meeting" not in p.name
    }


def save_small(folder):
    filled(ShardedBank(1, HEADS, HEAD_DIM, **SIZES), 1, 9).save(str(folder / "two"))


def save_on_a_full_disk(folder):
    """The second process has no room, the first one has."""
    bank = filled(ShardedBank(1, HEADS, HEAD_DIM, **SIZES), 2)
    reason = "another process could not save its part"
    if bank.ring.shard == 1:
        reason = "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    for name in ("two", "one"):
        with pytest.raises(OSError) as error:
            bank.save(str(folder / name))
        file = folder / f"{name}.{bank.ring.shard}-of-2"
        assert str(error.value).startswith(f"{file}: cannot be written (")
        assert reason in str(error.value)


def test_a_full_disk_of_one_process_leaves_the_memory_whole(tmp_path):
    run(2, save_small, tmp_path)
    one_bank(1, 9).save(str(tmp_path / "one"))
    before = contents(tmp_path)
    assert sorted(before) == ["one", "two.0-of-2", "two.1-of-2"]
    run(2, save_on_a_full_disk, tmp_path)
    assert contents(tmp_path) == before
    assert_holds(MemoryBank.load(str(tmp_path / "two")), one_bank(1, 9))


def save_without_the_last_rename(folder):
    """As if the second process were killed when the first one has put its file in place."""
    bank = filled(ShardedBank(1, HEADS, HEAD_DIM, **SIZES), 2, 9)

    def killed(part, path):
        raise OSError("killed")

    if bank.ring.shard == 1:
        sharded_bank.put_in_place = killed
    for name in ("two", "one"):
        message = "killed" if bank.ring.shard else "another process could not save its part"
        with pytest.raises(OSError, match=message):
            bank.save(str(folder / name))


def test_parts_of_two_saves_are_refused(tmp_path):
    """As docs/scaling.md promises for a kill; and no older file is removed before all are new."""
    run(2, save_small, tmp_path)
    one_bank(1, 9).save(str(tmp_path / "one"))
    before = contents(tmp_path)
    run(2, save_without_the_last_rename, tmp_path)
    after = contents(tmp_path)
    assert sorted(after) == ["one", "one.0-of-2", "two.0-of-2", "two.1-of-2"]
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"one.0-of-2", "two.0-of-2"}
    with pytest.raises(ValueError, match="two: its 2 files were not saved together"):
        MemoryBank.load(str(tmp_path / "two"))
    with pytest.raises(ValueError, match=r"one was saved by different numbers of shards \(1, 2\)"):
        MemoryBank.load(str(tmp_path / "one"))


def save_again_and_again(folder):
    """By 4, 2, 1, 4, 1 and 2 processes, each time something else, read at once by all of them."""
    pair = dist.new_group([0, 1])
    path, rank = str(folder / "w.memory"), dist.get_rank()
    mapped = []
    for seed, shards in enumerate((4, 2, 1, 4, 1, 2)):
        if shards == 1 and rank == 0:
            one_bank(seed).save(path)
            mapped.append((seed, MemoryBank.load(path, memory_map=True)))
        elif shards > 1 and rank < shards:
            group = dist.group.WORLD if shards == 4 else pair
            bank = filled(ShardedBank(1, HEADS, HEAD_DIM, **SIZES, group=group), seed)
            bank.save(path)
            # the first process has removed the older files, or the second would find both
            many = ShardedBank.load(path, memory_map=True, group=group)
            assert_holds(many, one_bank(seed))
        dist.barrier()
        assert_holds(MemoryBank.load(path), one_bank(seed))
        names = {f"w.memory.{i}-of-{shards}" for i in range(shards)}
        assert set(contents(folder)) == {*STRANGERS} | (names if shards > 1 else {"w.memory"})
        dist.barrier()
    assert not os.path.exists(path)
    for seed, bank in mapped:  # files that are gone
        assert_holds(bank, one_bank(seed))


def test_what_other_numbers_of_processes_saved_is_removed_and_nothing_else(tmp_path):
    for name in STRANGERS:
        (tmp_path / name).write_text(name)
    (tmp_path / "w.memory.0-of-3").mkdir()
    (tmp_path / "w.memory.0-of-3" / "file").touch()
    run(4, save_again_and_again, tmp_path)
    assert all((tmp_path / name).read_text() == name for name in STRANGERS)
    assert (tmp_path / "w.memory.0-of-3" / "file").exists()


def test_older_parts_stay_until_the_new_file_is_there(tmp_path, monkeypatch):
    run(2, save_small, tmp_path)
    before, path = contents(tmp_path), str(tmp_path / "two")
    bank = MemoryBank.load(path)

    def no_room(part, path, replaces):
        assert os.path.getsize(part) > 0
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(memory_file, "put_in_place", no_room)
        with pytest.raises(OSError, match=r"two: cannot be written \(\[Errno 28\] No space"):
            bank.save(path)
    assert contents(tmp_path) == before
    bank.save(path)
    assert sorted(contents(tmp_path)) == ["two"]
    assert_holds(MemoryBank.load(path), one_bank(1, 9))
