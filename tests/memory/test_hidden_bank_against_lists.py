"""MemoryBank of search ``hidden`` against the slow obvious version: lists of tokens.

A token of a document is stored with the search key of its predecessor there; the first never is.
"""

import json
import tempfile

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.testing import assert_close

from longmem_fairseq.memory import (
    MemoryBank,
    extend_bank,
    forget_document,
    literal_places,
    select_banks,
    token_log,
)
from longmem_fairseq.memory.token_log import Source
from tests.helpers.examples import examples
from tests.helpers.token_lists import ListOfTokens

HEAD_DIM, SEARCH_DIM = 3, 2
PER_QUERY = 2  # so that few chunks a query are enough for places after the same words
NAMES = ("a", "b", "c")


class HiddenBankAgainstLists(RuleBasedStateMachine):
    @initialize(
        streams=st.integers(1, 3),
        heads=st.integers(0, 2),
        chunk_size=st.integers(1, 3),
        slots=st.integers(1, 6),
        scope=st.sampled_from(["stream", "batch"]),
        index=st.sampled_from(["flat", "torch", "Flat"]),  # the last one is kept by faiss
        storage=st.sampled_from(["device", "host", "disk"]),
        dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
        data=st.data(),
    )
    def make(self, streams, heads, chunk_size, slots, scope, index, storage, dtype, data):
        token_log.PER_QUERY = PER_QUERY
        self.streams, self.heads, self.chunk_size = streams, heads, chunk_size
        self.num_retrieved = data.draw(st.integers(1, slots), label="chunks per query")
        self.scope, self.dtype = scope, dtype
        self.arguments = dict(
            memory_size=slots * chunk_size,
            chunk_size=chunk_size,
            k=self.num_retrieved * chunk_size,
            scope=scope,
            index=index,
            storage=storage,
            dtype=dtype,
            search="hidden",
            search_dim=SEARCH_DIM,
        )
        self.bank, self.oracles, self.last = self.new_bank(), self.new_oracles(slots), {}
        self.slots, self.moves = slots, 0
        self.random = torch.Generator().manual_seed(1)

    def teardown(self):
        token_log.PER_QUERY = literal_places.PER_QUERY

    def new_bank(self):
        return MemoryBank(self.streams, self.heads, HEAD_DIM, **self.arguments)

    def new_oracles(self, slots):
        count = self.streams if self.scope == "stream" else 1
        return [ListOfTokens(self.chunk_size, slots) for _ in range(count)]

    def number_of(self, row):
        return row if self.scope == "stream" else 0

    def segment(self, rows, tokens):
        """Keys, values, ids, and search keys."""
        shape = (rows, self.heads, tokens, HEAD_DIM)
        keys, values = (torch.randn(shape, generator=self.random) for _ in range(2))
        ids = torch.randint(0, 3, (rows, tokens), generator=self.random)
        search = torch.randn(rows, tokens, SEARCH_DIM, generator=self.random)
        return keys, values, ids, search

    @rule(tokens=st.integers(0, 20), data=st.data())
    def write(self, tokens, data):
        rows = data.draw(st.integers(1, self.streams), label="rows")
        keys, values, ids, search = self.segment(rows, tokens)
        mask = None
        if data.draw(st.booleans(), label="padded"):
            row_mask = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
            mask = data.draw(st.lists(row_mask, min_size=rows, max_size=rows), label="mask")
            mask = torch.tensor(mask, dtype=torch.bool).view(rows, tokens)
        known = data.draw(st.booleans(), label="known ids")
        self.bank.write(keys, values, mask, ids if known else None, search)
        for row in range(rows):
            for t in range(tokens):
                if mask is None or mask[row, t]:
                    before, self.last[row] = self.last.get(row), search[row, t]
                    if before is not None:
                        token = (
                            keys[row, :, t],
                            values[row, :, t],
                            int(ids[row, t]) if known else -1,
                        )
                        self.oracles[self.number_of(row)].append(before, *token)

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def begin_document(self, name, data):
        row = data.draw(st.integers(0, self.streams - 1), label="row")
        self.bank.begin_document(row, name, offset=-1)
        self.last[row] = None
        self.oracles[self.number_of(row)].next = name, 0

    @rule(data=st.data())
    def reset_rows(self, data):
        marked = st.lists(st.booleans(), min_size=1, max_size=self.streams)
        rows = data.draw(marked, label="rows")
        self.bank.reset(torch.tensor(rows))
        for row, forgotten in enumerate(rows):
            if forgotten:
                self.last[row] = None
                if self.scope == "stream" or all(rows):
                    self.oracles[self.number_of(row)].clear()

    @rule()
    def reset_all(self):
        self.bank.reset()
        self.last = {}
        for oracle in self.oracles:
            oracle.clear()

    @rule()
    def save_and_load(self):
        """Into a bank that already holds something else."""
        header, state = json.loads(json.dumps(self.bank.header())), self.bank.state_dict()
        other = self.new_bank()
        for bank in (other, self.bank):  # what is loaded is a copy
            if bank is self.bank:
                other.load_state_dict(header, state)
            keys, values, _, search = self.segment(self.streams, 11)
            bank.write(keys, values, search_keys=search)
        self.bank = other

    @rule(memory_map=st.booleans())
    def save_to_a_file(self, memory_map):
        with tempfile.TemporaryDirectory() as folder:
            self.bank.save(f"{folder}/memory")
            options = {**self.arguments, "memory_map": memory_map}
            self.bank = MemoryBank.load(f"{folder}/memory", **options)
        assert self.bank.ring.in_place == memory_map

    @rule()
    def select(self):
        if self.scope == "stream":
            self.bank = select_banks(self.bank, range(self.streams))

    @rule(tokens=st.integers(0, 9))
    def extend(self, tokens):
        other, others = self.new_bank(), self.new_oracles(self.slots)
        keys, values, ids, search = self.segment(self.streams, tokens)
        other.begin_document(0, "c", offset=-1)
        others[0].next = "c", 0
        other.write(keys, values, token_ids=ids, search_keys=search)
        for row in range(self.streams):
            for t in range(1, tokens):
                token = keys[row, :, t], values[row, :, t], int(ids[row, t])
                others[self.number_of(row)].append(search[row, t - 1], *token)
        extend_bank(self.bank, other)
        self.moves += 1
        for oracle, more in zip(self.oracles, others, strict=True):
            if more.tokens:
                oracle.tokens, oracle.next = oracle.tokens + more.moved(), more.next

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name):
        expected = sum(oracle.documents().get(name, 0) for oracle in self.oracles)
        assert forget_document(self.bank, name) == expected
        if expected == 0:
            return
        self.moves += 1
        for number, oracle in enumerate(self.oracles):
            is_last = oracle.next[0] == name
            oracle.forget(name, oracle.moved())
            if is_last:
                rows = range(self.streams) if self.scope == "batch" else [number]
                self.last.update(dict.fromkeys(rows))

    @rule(tokens=st.integers(1, 3), data=st.data())
    def retrieve(self, tokens, data):
        banks = None
        if data.draw(st.booleans(), label="of any banks"):
            some = st.lists(st.integers(0, len(self.oracles) - 1), min_size=1, max_size=4)
            banks = data.draw(some, label="banks")
        asked = banks or [self.number_of(row) for row in range(self.streams)]
        queries = torch.randn(len(asked), 1, tokens, SEARCH_DIM, generator=self.random)
        contexts = torch.randint(-1, 3, (len(asked), tokens, 4), generator=self.random)
        found = self.bank.retrieve(queries, banks, contexts)
        if not any(self.oracles[bank].chunks for bank in asked):
            assert found is None
            return
        size, shape = self.chunk_size, (len(asked), 1, tokens, self.num_retrieved)
        assert found.chunks.shape == shape
        assert found.rows.shape == (shape[0], self.heads, *shape[2:])
        assert found.scores.shape == (shape[0], *shape[2:])
        assert found.token_ids.shape == (shape[0], tokens, self.num_retrieved * size)
        keys, values = found.tokens()  # b x H x T x K x D
        for row, bank in enumerate(asked):
            for t in range(tokens):
                contents = keys[row, :, t], values[row, :, t]
                parts = found.chunks[row, 0, t], found.scores[row, t], found.token_ids[row, t]
                self.check(bank, queries[row, 0, t], contexts[row, t].tolist(), *parts, *contents)
                first = [self.bank.first_token(bank, int(s)) if s >= 0 else None for s in parts[0]]
                numbers = [None if n is None else n + i for n in first for i in range(size)]
                lengths = [self.match_length(bank, n, contexts[row, t].tolist()) for n in numbers]
                assert found.matches[row, t].tolist() == lengths

    def check(self, bank, query, context, slots, scores, ids, keys, values):
        oracle, size = self.oracles[bank], self.chunk_size
        literal = self.literal_chunks(bank, context)
        best = self.num_retrieved - len(literal)
        expected = sorted(oracle.scores(query), reverse=True)[:best]
        count = len(expected)
        assert (slots[:count] >= 0).all() and (slots[count:best] == -1).all()
        found = [self.bank.first_token(bank, s) // size for s in slots[:count].tolist()]
        assert len(set(found)) == count
        assert_close(scores[:count].double(), torch.tensor(expected).double(), rtol=0, atol=1e-5)
        for slot, chunk in zip(slots[best:].tolist(), literal, strict=True):
            if chunk is None or chunk in found:
                assert slot == -1
            else:
                assert self.bank.first_token(bank, slot) == chunk * size
                found.append(chunk)
        for i, slot in enumerate(slots.tolist()):
            if slot < 0:
                assert scores[i].isneginf() and (ids[i * size : (i + 1) * size] == -1).all()
                continue
            first = self.bank.first_token(bank, slot)
            chunk = oracle.tokens[first : first + size]
            chunk_score = torch.stack([token.search for token in chunk]).mean(0) @ query
            assert_close(scores[i], chunk_score, rtol=0, atol=1e-5)
            place = slice(i * size, (i + 1) * size)
            assert ids[place].tolist() == [token.number for token in chunk]
            self.check_stored(keys[:, place], [token.keys for token in chunk])
            self.check_stored(values[:, place], [token.values for token in chunk])

    def literal_chunks(self, bank, context):
        """Of the latest places after the same three tokens, then after the same two, the chunks; None
        where there are fewer of each kind than are asked for."""
        count, chunks = self.num_retrieved // PER_QUERY, []
        oracle, held = self.oracles[bank], self.bank.held(bank)
        stored = range(held.start, held.start + self.bank.num_tokens[bank])
        for length in (3, 2):
            places = [
                place
                for place in stored[length:]
                if min(context[:length]) >= 0
                and [t.number for t in oracle.tokens[place - length : place]][::-1]
                == context[:length]
            ]
            latest = [place // self.chunk_size for place in places[::-1][:count]]
            chunks += latest + [None] * (count - len(latest))
        return chunks

    def match_length(self, bank, number, context):
        """How many tokens before that of a *number* are those of the context."""
        if number is None:
            return 0
        tokens, oldest = self.oracles[bank].tokens, self.bank.held(bank).start
        before = [token.number for token in tokens[oldest:number]][::-1]
        same = [a == b >= 0 for a, b in zip(before, context, strict=False)]
        return [*same, False].index(False)

    def check_stored(self, found, tokens):
        expected = torch.stack(tokens, dim=1)  # H x c x D
        if self.dtype == "int8":  # each time a chunk is written it loses half of a 127th
            assert_close(found, expected, rtol=0, atol=0.021 * (1 + self.moves))
        else:
            kept = expected.to(getattr(torch, self.dtype))
            assert found.dtype == kept.dtype and torch.equal(found, kept)

    @invariant()
    def counts(self):
        if not hasattr(self, "bank"):
            return
        size = self.chunk_size
        assert self.bank.num_written == [len(o.tokens) // size for o in self.oracles]
        assert self.bank.num_pending == [len(o.tokens) % size for o in self.oracles]
        assert self.bank.num_chunks == [len(o.chunks) for o in self.oracles]
        assert self.bank.pending.in_document == [
            self.last.get(row) is not None for row in range(self.streams)
        ]
        for bank, oracle in enumerate(self.oracles):
            held = self.bank.held(bank)
            assert held == range(len(oracle.tokens) - len(oracle.held), len(oracle.tokens))
            ids = self.bank.logs[bank].read(held).tolist()
            assert ids == [token.number for token in oracle.held]
            assert self.bank.documents(bank) == oracle.documents()
            for slot in range(len(oracle.chunks)):
                first = self.bank.first_token(bank, slot)
                token, located = oracle.tokens[first], self.bank.locate(bank, slot)
                expected = None
                if token.document is not None:
                    expected = Source(first, token.document, token.offset)
                assert located == expected


TestHiddenBankAgainstLists = HiddenBankAgainstLists.TestCase
TestHiddenBankAgainstLists.settings = settings(max_examples=examples(60), stateful_step_count=15)
