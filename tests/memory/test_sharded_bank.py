"""A bank split over 2 and 4 processes against one bank: the same tokens in, the same found."""

import random
import shutil

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from longmem_fairseq.memory import (
    DTYPES,
    MemoryBank,
    ShardedBank,
    extend_bank,
    select_banks,
)
from longmem_fairseq.memory.shard_files import part_path
from longmem_fairseq.modules import memory_attention, memory_weights
from tests.helpers.shard_processes import go_in_groups, run

HEADS, HEAD_DIM = 2, 5
SIZES = {"memory_size": 16, "chunk_size": 2, "k": 6}


def assert_same_found(one, many):
    """A query retrieves the same from one bank and from a sharded one."""
    if one is None:
        assert many is None
        return
    assert torch.equal(many.chunks, one.chunks) and many.chunks.dtype == torch.int64
    assert torch.equal(many.valid, one.valid)
    for found, expected in zip(many.tokens(), one.tokens(), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found[many.valid], expected[one.valid])


def assert_same_state(one, many):
    for name in ("num_written", "num_pending", "num_tokens", "sources", "layout"):
        assert getattr(many, name) == getattr(one, name)
    for bank, stored in enumerate(one.num_chunks):
        held = one.held(bank)
        assert many.held(bank) == held
        assert torch.equal(many.logs[bank].read(held), one.logs[bank].read(held))
        assert [many.locate(bank, s) for s in range(stored)] == [
            one.locate(bank, s) for s in range(stored)
        ]


class Case:
    """Both kinds of bank, of random options, that random things are done to."""

    def __init__(self, folder, seed, group):
        self.random, self.folder, self.group = random.Random(seed), folder, group
        self.num_shards = dist.get_world_size(group)
        self.generator = torch.Generator().manual_seed(seed)
        choose = self.random.choice
        index, parameters = choose(
            [("torch", ""), ("flat", ""), ("Flat", ""), ("IVF2,Flat", "nprobe=2")]
        )
        chunk_size = self.random.randint(1, 4)
        # to be trained IVF2 asks for 78 chunks in each part
        slots = self.num_shards * (80 if parameters else self.random.randint(1, 5))
        self.options = {
            "memory_size": slots * chunk_size,
            "chunk_size": chunk_size,
            "k": self.random.randint(1, min(slots, 12)) * chunk_size,
            "index": index,
            "index_parameters": parameters,
            "dtype": choose(list(DTYPES)),
            "storage": choose(["device", "host", "disk"]),
        }
        sizes = (self.random.randint(1, 3), HEADS, HEAD_DIM)
        scope = choose(["stream", "batch"])
        self.one = MemoryBank(*sizes, scope=scope, **self.options)
        self.many = ShardedBank(*sizes, scope=scope, group=group, **self.options)

    def normal(self, rows, tokens):
        return torch.randn(rows, HEADS, tokens, HEAD_DIM, generator=self.generator)

    def some_rows(self):
        return self.random.randint(1, self.one.layout.num_streams)

    def write(self):
        rows, tokens = self.some_rows(), self.random.randint(0, self.one.layout.memory_size)
        if self.random.random() < 0.5:
            tokens %= 7
        written = [self.normal(rows, tokens), self.normal(rows, tokens), None, None]
        if self.random.random() < 0.5:
            written[2] = torch.rand(rows, tokens, generator=self.generator) < 0.7
            written[3] = torch.randint(99, (rows, tokens), generator=self.generator)
        for bank in (self.one, self.many):
            bank.begin_document(rows - 1, f"document {tokens}")
            bank.write(*written)

    def reset(self):
        rows = torch.rand(self.some_rows(), generator=self.generator) < 0.7
        for bank in (self.one, self.many):
            bank.reset(rows)

    def retrieve(self):
        rows, banks = self.some_rows(), None
        if self.random.random() < 0.3:
            banks = self.random.choices(range(len(self.one.num_written)), k=rows)
        queries = self.normal(rows, self.random.randint(0, 3))
        assert_same_found(self.one.retrieve(queries, banks), self.many.retrieve(queries, banks))

    def select(self):
        banks = self.random.choices(range(len(self.one.num_written)), k=self.random.randint(1, 3))
        self.one, self.many = select_banks(self.one, banks), select_banks(self.many, banks)

    def extend(self):
        sizes = (self.one.layout.num_streams, HEADS, HEAD_DIM)
        other = MemoryBank(*sizes, scope=self.one.layout.scope, **self.options)
        other.write(self.normal(sizes[0], 5), self.normal(sizes[0], 5))
        for bank in (self.one, self.many):
            extend_bank(bank, other)

    def save_and_load(self):
        """By as many shards, from one to shards, and from shards to one."""
        path = str(self.folder / f"{self.random.random()}")
        options = {"storage": self.options["storage"], "index": self.options["index"]}
        options["index_parameters"] = self.options["index_parameters"]
        memory_map = self.random.random() < 0.3
        if self.random.random() < 0.5:
            self.many.save(path)
        elif self.many.ring.shard == 0:
            self.one.save(path)
        dist.barrier(self.group)
        many = ShardedBank.load(path, memory_map=memory_map, group=self.group, **options)
        one = MemoryBank.load(path, **options)
        assert_same_state(self.one, one)
        self.one, self.many = one, many

    def go(self, steps):
        done = [self.write] * 4 + [self.reset, self.select, self.extend, self.save_and_load]
        for _ in range(steps):
            self.random.choice(done)()
            self.check()
        self.check_end()

    def check(self):
        assert_same_state(self.one, self.many)
        self.retrieve()

    def check_end(self):
        assert self.many.ring.part.num_bytes * self.num_shards == self.one.ring.num_bytes


def random_cases(folder):
    go_in_groups(Case, folder, seeds=14, steps=10)


def test_it_finds_what_one_bank_finds(tmp_path):
    run(4, random_cases, tmp_path)


def ties(folder):
    """Whole numbers, many of them equal: which of equally good chunks is found is open, as it is in
    one bank, but it is the same on all processes."""
    generator = torch.Generator().manual_seed(1)
    one = MemoryBank(1, HEADS, HEAD_DIM, memory_size=64, chunk_size=1, k=8)
    many = ShardedBank(1, HEADS, HEAD_DIM, memory_size=64, chunk_size=1, k=8)
    for size in (5, 30, 60):
        keys = torch.randint(-1, 2, (1, HEADS, size, HEAD_DIM), generator=generator).float()
        queries = torch.randint(-1, 2, (1, HEADS, 9, HEAD_DIM), generator=generator).float()
        for bank in (one, many):
            bank.write(keys, torch.rand(keys.shape, generator=generator))
        found, expected = many.retrieve(queries), one.retrieve(queries)
        scores = [(queries.unsqueeze(3) * f.tokens()[0]).sum(-1) for f in (found, expected)]
        assert torch.equal(scores[0], scores[1])
        gathered = [torch.empty_like(found.chunks) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, found.chunks)
        assert all(torch.equal(chunks, found.chunks) for chunks in gathered)


def attention(folder):
    """Reading what travelled, and its gradient."""
    torch.manual_seed(1)
    one = MemoryBank(2, HEADS, HEAD_DIM, **SIZES, dtype="bfloat16")
    many = ShardedBank(2, HEADS, HEAD_DIM, **SIZES, dtype="bfloat16")
    keys, values = torch.randn(2, 2, HEADS, 21, HEAD_DIM)
    queries = torch.randn(2, HEADS, 7, HEAD_DIM)
    read = []
    for bank in (one, many):
        bank.write(keys, values)
        found, asked = bank.retrieve(queries), queries.clone().requires_grad_()
        attended = memory_attention(asked, found)
        attended.square().sum().backward()
        read.append((attended, asked.grad, *memory_weights(queries, found)))
    for found, expected in zip(*read, strict=True):
        assert torch.equal(found, expected)


def sent_once(folder):
    """A thousand queries that want the same chunks cost as much as one."""
    many = ShardedBank(1, 1, HEAD_DIM, memory_size=40, chunk_size=2, k=8)
    many.write(*torch.randn(2, 1, 1, 40, HEAD_DIM))
    found = many.retrieve(torch.ones(1, 1, 1000, HEAD_DIM))
    assert found.chunks.unique().numel() == 4
    assert found.store.keys.numel() <= dist.get_world_size() * 4 * 2 * HEAD_DIM


@pytest.mark.parametrize("check", [ties, attention, sent_once])
def test_two_processes(check, tmp_path):
    run(2, check, tmp_path)


def save_four(folder):
    """A bank of 4 shards and one of 2, and what one bank saves of the same."""
    for name, group in (("four", dist.group.WORLD), ("two", dist.new_group([0, 1]))):
        if dist.get_rank(group) < 0:
            continue
        torch.manual_seed(1)
        bank = ShardedBank(1, HEADS, HEAD_DIM, **SIZES, group=group)
        bank.begin_document(0, "a document")
        bank.write(*torch.randn(2, 1, HEADS, 23, HEAD_DIM))
        bank.save(str(folder / name))


def load_elsewhere(folder):
    """Files of 4 and 2 shards are loaded in 2 and 4; and every failure is one of all processes."""
    one = MemoryBank.load(str(folder / "four"))
    queries = torch.randn(1, HEADS, 9, HEAD_DIM, generator=torch.Generator().manual_seed(2))
    for name in ("two", "four"):
        many = ShardedBank.load(str(folder / name))
        assert_same_state(one, many)
        assert_same_found(one.retrieve(queries), many.retrieve(queries))
    with pytest.raises(ValueError, match=r"15 chunks, which num_shards \(2\) must divide"):
        ShardedBank.load(str(folder / "odd"))
    message = (
        "no such memory file" if dist.get_rank() else "another process could not read its part"
    )
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ShardedBank.load(str(folder / "missing"))
    with pytest.raises(ValueError, match="its files were not saved together"):
        ShardedBank.load(str(folder / "mixed"))
    message = "cannot be written" if dist.get_rank() else "another process could not save its part"
    path = folder / "full"
    if dist.get_rank() == 1:
        path = folder / "no folder" / "full"
    with pytest.raises(OSError, match=message):
        many.save(str(path))
    assert list(folder.glob("full*")) == []


def test_files(tmp_path):
    run(4, save_four, tmp_path)
    names = [f"four.{i}-of-4" for i in range(4)] + [f"two.{i}-of-2" for i in range(2)]
    assert sorted(path.name for path in tmp_path.glob("*-of-*")) == names
    one, again = (MemoryBank.load(str(tmp_path / name)) for name in ("four", "two"))
    assert_same_state(one, again)
    assert one.num_written == [11] and one.num_pending == [1] and one.sources[0][0].name
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    torch.manual_seed(1)
    expected = MemoryBank(1, HEADS, HEAD_DIM, **SIZES)
    expected.write(*torch.randn(2, 1, HEADS, 23, HEAD_DIM))
    assert_close(one.ring.store.keys, expected.ring.store.keys, rtol=0, atol=0)

    one.write(*torch.randn(2, 1, HEADS, 1, HEAD_DIM))
    MemoryBank(1, HEADS, HEAD_DIM, **{**SIZES, "memory_size": 30}).save(str(tmp_path / "odd"))
    shutil.copy(tmp_path / "two.0-of-2", tmp_path / "missing.0-of-2")
    shutil.copy(tmp_path / "two.0-of-2", tmp_path / "mixed.0-of-2")
    run(2, save_other, tmp_path)
    run(2, load_elsewhere, tmp_path)


def save_other(folder):
    """The second part of a memory of the same sizes and fill, but of another text."""
    bank = ShardedBank(1, HEADS, HEAD_DIM, **SIZES)
    bank.begin_document(0, "a document")
    bank.write(*torch.randn(2, 1, HEADS, 23, HEAD_DIM), token_ids=torch.ones(1, 23))
    bank.save(str(folder / "other"))
    if bank.ring.shard == 1:
        shutil.copy(folder / "other.1-of-2", folder / "mixed.1-of-2")


def test_files_that_do_not_belong_together(tmp_path):
    run(2, save_other, tmp_path)
    (tmp_path / "mixed.1-of-2").unlink()
    path = str(tmp_path / "other")
    assert part_path(path, 0, 1) == path
    files = [part_path(path, i, 2) for i in range(2)]
    assert MemoryBank.load(path).num_written == [11]
    shutil.copy(files[0], f"{path}.0-of-4")
    with pytest.raises(ValueError, match=r"different numbers of shards \(2, 4\): remove the files"):
        MemoryBank.load(path)
    shutil.move(f"{path}.0-of-4", files[1])
    with pytest.raises(ValueError, match=r"other.1-of-2 holds shard 0 of 2: it was renamed"):
        MemoryBank.load(path)
