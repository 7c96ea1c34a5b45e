"""A bank of search ``hidden`` split over 2 and 4 processes against one bank."""

import random

import pytest
import torch
import torch.distributed as dist

from longmem_fairseq.memory import (
    DTYPES,
    MemoryBank,
    ShardedBank,
    extend_bank,
    forget_document,
    token_log,
)
from tests.helpers.filled_banks import assert_same, snapshot
from tests.helpers.shard_processes import go_in_groups, run
from tests.memory.test_sharded_bank import Case, assert_same_found, assert_same_state

HEAD_DIM, SEARCH_DIM = 5, 4


class HiddenCase(Case):
    """Both kinds of bank, of random options, that random things are done to."""

    def __init__(self, folder, seed, group):
        self.random, self.folder, self.group = random.Random(seed), folder, group
        self.generator = torch.Generator().manual_seed(seed)
        choose = self.random.choice
        self.heads, chunk_size = choose([0, 0, 2]), self.random.randint(1, 3)
        slots = dist.get_world_size(group) * self.random.randint(1, 5)
        self.options = {
            "memory_size": slots * chunk_size,
            "chunk_size": chunk_size,
            "k": self.random.randint(1, slots) * chunk_size,
            "index": choose(["torch", "flat", "Flat"]),
            "index_parameters": "",
            "dtype": choose(list(DTYPES)),
            "storage": choose(["device", "host", "disk"]),
            "scope": choose(["stream", "batch"]),
            "search": "hidden",
            "search_dim": SEARCH_DIM,
        }
        sizes = (self.random.randint(1, 3), self.heads, HEAD_DIM)
        self.one = MemoryBank(*sizes, **self.options)
        self.many = ShardedBank(*sizes, group=group, **self.options)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def segment(self, rows, tokens):
        keys, values = (self.normal(rows, self.heads, tokens, HEAD_DIM) for _ in range(2))
        return {
            "keys": keys,
            "values": values,
            "search_keys": self.normal(rows, tokens, SEARCH_DIM),
        }

    def write(self):
        rows = self.random.randint(1, self.one.layout.num_streams)
        tokens = self.random.randint(0, self.one.layout.memory_size + 1)
        segment, begins = self.segment(rows, tokens), self.random.random() < 0.5
        if self.random.random() < 0.7:
            segment["valid"] = torch.rand(rows, tokens, generator=self.generator) < 0.7
            ids = torch.randint(3, (rows, tokens), generator=self.generator)
            segment["token_ids"] = ids
        for bank in (self.one, self.many):
            if begins:
                bank.begin_document(rows - 1, f"document {tokens}", -1)
            bank.write(**segment)

    def extend(self):
        options = {name: value for name, value in self.options.items() if name != "storage"}
        options["scope"] = self.one.layout.scope
        other = MemoryBank(self.one.layout.num_streams, self.heads, HEAD_DIM, **options)
        other.write(**self.segment(other.layout.num_streams, 5))
        for bank in (self.one, self.many):
            extend_bank(bank, other)

    def check(self):
        assert_same_state(self.one, self.many)
        assert self.many.pending.in_document == self.one.pending.in_document
        assert torch.equal(self.many.pending.last_search, self.one.pending.last_search)
        banks = self.random.choices(range(self.one.layout.num_banks), k=2)
        queries = self.normal(2, 1, self.random.randint(0, 3), SEARCH_DIM)
        contexts = torch.randint(-1, 3, (2, queries.size(2), 4), generator=self.generator)
        contexts = self.random.choice([None, contexts])
        one, many = (bank.retrieve(queries, banks, contexts) for bank in (self.one, self.many))
        assert (one is None) == (many is None)
        if one is not None:
            assert_same_found(one.for_heads(1), many.for_heads(1))
            assert torch.equal(many.chunks, one.chunks)
            assert torch.equal(many.token_ids, one.token_ids)
            assert torch.equal(many.scores, one.scores)

    def check_end(self):
        """A call that would read chunks of other processes is refused before it starts."""
        self.many.begin_document(0, "more", -1)
        more = self.segment(1, 2 * self.options["chunk_size"] + 1)
        self.many.write(**more)
        before = snapshot(self.many)
        message = "can neither forget a document nor be added to another: load it in one process"
        another = ShardedBank(**self.many.layout.header(), **self.many.placement)
        for change in (
            lambda: forget_document(self.many, "another"),
            lambda: extend_bank(another, self.many),
        ):
            with pytest.raises(ValueError, match=message):
                change()
        assert_same(snapshot(self.many), before)


def random_cases(folder):
    token_log.PER_QUERY = 2  # few chunks a query are enough for places after the same words
    go_in_groups(HiddenCase, folder, seeds=10, steps=10)


def test_it_finds_what_one_bank_finds(tmp_path):
    run(4, random_cases, tmp_path)
