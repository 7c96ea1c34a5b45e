"""MemoryBank against the slow obvious version: lists of tokens."""

import json
import tempfile

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.testing import assert_close

from longmem_fairseq.memory import (
    MemoryBank,
    forget_document,
    select_banks,
)
from tests.helpers.examples import examples
from tests.helpers.token_lists import ListOfTokens

HEAD_DIM = 3


class BankAgainstLists(RuleBasedStateMachine):
    """The first channel of a value is the number of its token, so that what is found has a name."""

    @initialize(
        streams=st.integers(1, 3),
        heads=st.integers(1, 2),
        chunk_size=st.integers(1, 4),
        slots=st.integers(1, 6),
        scope=st.sampled_from(["stream", "batch"]),
        index=st.sampled_from(["flat", "torch", "Flat"]),  # the last one is kept by faiss
        storage=st.sampled_from(["device", "disk"]),
        data=st.data(),
    )
    def make(self, streams, heads, chunk_size, slots, scope, index, storage, data):
        self.streams, self.heads, self.chunk_size = streams, heads, chunk_size
        self.num_retrieved = data.draw(st.integers(1, slots), label="chunks per query")
        self.scope = scope
        self.arguments = dict(
            memory_size=slots * chunk_size,
            chunk_size=chunk_size,
            k=self.num_retrieved * chunk_size,
            scope=scope,
            index=index,
            storage=storage,
        )
        self.bank = self.new_bank()
        self.oracles = [
            ListOfTokens(chunk_size, slots) for _ in range(streams if scope == "stream" else 1)
        ]
        self.random = torch.Generator().manual_seed(1)
        self.by_number = []  # (keys, values) of all tokens ever written

    def new_bank(self):
        return MemoryBank(self.streams, self.heads, HEAD_DIM, **self.arguments)

    def oracle(self, row):
        return self.oracles[row if self.scope == "stream" else 0]

    def normal(self, tokens, rows=None):
        shape = (rows or self.streams, self.heads, tokens, HEAD_DIM)
        return torch.randn(shape, generator=self.random)

    def some_rows(self, data):
        """The last streams may have run out of documents."""
        return data.draw(st.integers(1, self.streams), label="rows")

    @rule(tokens=st.integers(0, 30), data=st.data())
    def write(self, tokens, data):
        num_rows = self.some_rows(data)
        keys, values = self.normal(tokens, num_rows), self.normal(tokens, num_rows)
        numbers = torch.arange(num_rows * tokens).view(num_rows, 1, tokens)
        values[..., 0] = numbers + len(self.by_number)
        for row in range(num_rows):
            self.by_number += [(keys[row, :, t], values[row, :, t]) for t in range(tokens)]
        mask = None
        if data.draw(st.booleans(), label="padded"):
            row_mask = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
            rows = st.lists(row_mask, min_size=num_rows, max_size=num_rows)
            mask = torch.tensor(data.draw(rows, label="mask"), dtype=torch.bool)
            mask = mask.view(num_rows, tokens)
        ids = torch.randint(0, 9999, (num_rows, tokens), generator=self.random)
        known = data.draw(st.booleans(), label="known ids")
        self.bank.write(keys, values, mask, ids if known else None)
        for row in range(num_rows):
            for t in range(tokens):
                if mask is None or mask[row, t]:
                    token = keys[row, :, t], values[row, :, t], int(ids[row, t]) if known else -1
                    self.oracle(row).append(None, *token)

    @rule(name=st.sampled_from("abc"), data=st.data())
    def begin_document(self, name, data):
        row = data.draw(st.integers(0, self.streams - 1), label="row")
        self.bank.begin_document(row, name)
        self.oracle(row).next = name, 0

    @rule(name=st.sampled_from("abc"))
    def forget(self, name):
        expected = sum(oracle.documents().get(name, 0) for oracle in self.oracles)
        assert forget_document(self.bank, name) == expected
        for oracle in self.oracles if expected > 0 else ():
            oracle.forget(name, oracle.held)

    @rule(data=st.data())
    def reset_rows(self, data):
        rows = st.lists(st.booleans(), min_size=1, max_size=self.streams)
        rows = data.draw(rows, label="rows")
        self.bank.reset(torch.tensor(rows))
        if self.scope == "stream":
            for oracle, forgotten in zip(self.oracles, rows, strict=False):
                if forgotten:
                    oracle.clear()
        elif all(rows):
            self.oracles[0].clear()

    @rule()
    def reset_all(self):
        self.bank.reset()
        for oracle in self.oracles:
            oracle.clear()

    @rule()
    def save_and_load(self):
        """Into a bank that already holds something else."""
        header, state = json.loads(json.dumps(self.bank.header())), self.bank.state_dict()
        other = self.new_bank()
        other.write(self.normal(13), self.normal(13))
        other.load_state_dict(header, state)
        self.bank.write(self.normal(7), self.normal(7))  # what was loaded is a copy
        self.bank = other

    @rule()
    def save_and_map(self):
        with tempfile.TemporaryDirectory() as folder:
            self.bank.save(f"{folder}/memory")
            self.bank = MemoryBank.load(f"{folder}/memory", memory_map=True, **self.arguments)
        assert self.bank.ring.in_place

    @rule()
    def copy(self):
        if self.scope == "stream":
            self.bank = select_banks(self.bank, range(self.streams))

    @rule(tokens=st.integers(1, 3), data=st.data())
    def retrieve(self, tokens, data):
        rows = self.some_rows(data)
        queries = self.normal(tokens, rows)
        found = self.bank.retrieve(queries)
        if not any(self.oracle(row).chunks for row in range(rows)):
            assert found is None
            return
        shape = (rows, self.heads, tokens, self.num_retrieved)
        assert found.chunks.shape == found.rows.shape == shape
        assert found.valid.shape == (*shape[:3], self.num_retrieved * self.chunk_size)
        tokens_of_all = found.tokens()
        for row in range(rows):
            for head in range(self.heads):
                for t in range(tokens):
                    place = (row, head, t)
                    keys, values = (tensor[place] for tensor in tokens_of_all)
                    self.check(found, keys, values, *place, queries[place])

    def check(self, found, found_keys, found_values, row, head, t, query):
        oracle = self.oracle(row)
        scores = oracle.scores(query, head)
        expected = min(self.num_retrieved, len(scores))
        valid = found.valid[row, head, t]
        assert valid.tolist() == [i < expected * self.chunk_size for i in range(len(valid))]
        chunks = found.chunks[row, head, t]
        assert (chunks >= 0).sum() == expected and (chunks[expected:] == -1).all()
        stored = [[int(token.values[0, 0]) for token in chunk] for chunk in oracle.chunks]
        numbers = [int(n) for n in found_values[valid, 0]]
        size = self.chunk_size
        numbers = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        places = [stored.index(chunk) for chunk in numbers]  # ValueError: not a stored chunk
        assert len(set(places)) == expected
        best = sorted(scores, reverse=True)[:expected]
        assert_close([scores[place] for place in places], best, rtol=0, atol=1e-5)
        for i, number in enumerate(n for chunk in numbers for n in chunk):
            keys, values = self.by_number[number]
            assert torch.equal(found_keys[i], keys[head])
            assert torch.equal(found_values[i], values[head])

    @invariant()
    def counts(self):
        if not hasattr(self, "bank"):
            return
        written = [len(oracle.tokens) for oracle in self.oracles]
        stored = [len(oracle.chunks) for oracle in self.oracles]
        assert self.bank.num_written == [tokens // self.chunk_size for tokens in written]
        assert self.bank.num_pending == [tokens % self.chunk_size for tokens in written]
        assert self.bank.num_chunks == stored
        assert self.bank.num_tokens == [chunks * self.chunk_size for chunks in stored]
        for bank, oracle in enumerate(self.oracles):
            held = self.bank.held(bank)
            stored = len(oracle.chunks) * self.chunk_size
            assert held.stop == len(oracle.tokens)
            assert held.start == held.stop - stored - held.stop % self.chunk_size
            found = self.bank.logs[bank].read(held).tolist()
            assert found == [token.number for token in oracle.tokens[held.start :]]
            assert self.bank.documents(bank) == oracle.documents()


TestBankAgainstLists = BankAgainstLists.TestCase
TestBankAgainstLists.settings = settings(max_examples=examples(60), stateful_step_count=15)
