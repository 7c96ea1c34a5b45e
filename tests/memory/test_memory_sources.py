"""Where stored tokens came from, and banks appended to banks: MemoryBank.locate and extend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem_fairseq.memory import (
    MemoryBank,
    Source,
    extend_bank,
)
from longmem_fairseq.memory.memory_file import read_memory_file
from tests.helpers.examples import examples
from tests.helpers.filled_banks import assert_same, snapshot


class Oracle:
    """A bank of one stream and a list of what was written: (number, (document, offset) or None)."""

    def __init__(self, chunk_size, slots, first_number=0, **options):
        sizes = {"memory_size": slots * chunk_size, "chunk_size": chunk_size, "k": chunk_size}
        self.bank = MemoryBank(1, 1, 1, **sizes, **options)
        self.chunk_size, self.slots = chunk_size, slots
        self.tokens, self.document, self.next_number = [], None, first_number

    def begin(self, name, offset):
        self.bank.begin_document(0, name, offset)
        self.document = (name, offset)

    def write(self, count):
        numbers = range(self.next_number, self.next_number + count)
        keys = torch.tensor([*numbers], dtype=torch.float).view(1, 1, count, 1)
        self.bank.write(keys, -keys, token_ids=torch.tensor([[*numbers]]))
        for number in numbers:
            self.tokens.append((number, self.document))
            if self.document is not None:
                self.document = (self.document[0], self.document[1] + 1)
        self.next_number += count

    @property
    def held(self):
        """Tokens that are stored or wait for their chunk to be full, oldest first."""
        whole = len(self.tokens) // self.chunk_size
        return self.tokens[max(0, whole - self.slots) * self.chunk_size :]

    def check(self):
        bank, size = self.bank, self.chunk_size
        whole = len(self.tokens) // size
        assert bank.num_written == [whole] and bank.num_pending == [len(self.tokens) % size]
        waiting = [number for number, _ in self.tokens[whole * size :]]
        assert bank.pending.keys[0, 0, : len(waiting), 0].tolist() == waiting
        held = bank.held(0)
        assert held == range(max(0, whole - self.slots) * size, len(self.tokens))
        ids = bank.logs[0].read(held)
        assert ids.tolist() == [number for number, _ in self.held]
        for number in range(max(0, whole - self.slots), whole):
            slot, tokens = number % self.slots, self.tokens[number * size : (number + 1) * size]
            keys, values = bank.ring.store.gather(torch.tensor([slot]))
            assert keys.flatten().tolist() == [number for number, _ in tokens]
            assert torch.equal(values, -keys)
            document = tokens[0][1]
            expected = None if document is None else Source(number * size, *document)
            assert bank.locate(0, slot) == expected


CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 9)),
        st.tuples(st.just("begin"), st.sampled_from("abc"), st.integers(0, 5)),
    ),
    max_size=12,
)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))  # tokens of a chunk, slots


def call(oracle, calls):
    for name, *arguments in calls:
        getattr(oracle, name)(*arguments)


@settings(max_examples=examples(100))
@given(sizes=SIZES, calls=CALLS, more=CALLS)
def test_locate_against_a_list(sizes, calls, more):
    """Evictions, documents that begin inside a chunk, and several that begin at one token."""
    oracle = Oracle(*sizes)
    call(oracle, calls)
    oracle.check()
    oracle.bank.reset()
    oracle.tokens, oracle.document = [], None
    call(oracle, more)
    oracle.check()


@settings(max_examples=examples(100))
@given(sizes=SIZES, other_sizes=SIZES, calls=CALLS, others=CALLS, more=CALLS)
def test_extend_against_a_list(sizes, other_sizes, calls, others, more):
    """Rings that have wrapped, tokens that wait, chunks of another size, tokens of no document."""
    oracle, other = Oracle(*sizes), Oracle(*other_sizes, first_number=1000)
    call(oracle, calls)
    call(other, others)
    extend_bank(oracle.bank, other.bank)
    other.check()  # is as it was
    if other.held:
        oracle.tokens += other.held
        oracle.document = other.document
    oracle.check()
    call(oracle, more)
    oracle.check()


def test_locate_by_hand():
    oracle = Oracle(2, 3)
    oracle.write(3)  # nobody said of what
    oracle.begin("a", 10)
    oracle.write(6)  # the last one waits
    assert oracle.bank.num_written == [4]  # chunk 3 is in slot 0
    found = [oracle.bank.locate(0, slot) for slot in range(3)]
    assert found == [Source(6, "a", 13), None, Source(4, "a", 11)]
    for slot in (-1, 3):
        with pytest.raises(ValueError) as error:
            oracle.bank.locate(0, slot)
        assert str(error.value) == f"slot {slot} of a bank that holds 3 chunks"


def test_streams_have_their_own_documents():
    bank = MemoryBank(2, 1, 1, memory_size=8, chunk_size=2, k=2)
    bank.begin_document(0, "a")
    bank.begin_document(1, "b", offset=7)
    bank.write(*torch.randn(2, 2, 1, 4, 1))
    assert bank.locate(0, 1) == Source(2, "a", 2) and bank.locate(1, 1) == Source(2, "b", 9)
    bank.reset(torch.tensor([True, False]))
    bank.write(*torch.randn(2, 1, 1, 4, 1))
    assert bank.locate(0, 1) is None and bank.locate(1, 1) == Source(2, "b", 9)


def test_many_chunks_are_extended_in_order():
    """More than are read at a time, from a ring that has wrapped, into one that evicts."""
    oracle, other = Oracle(1, 9000), Oracle(1, 9000, first_number=5000)
    oracle.begin("a", 0)
    oracle.write(5000)
    other.begin("b", 100)
    other.write(9000 + 1234)
    extend_bank(oracle.bank, other.bank)
    oracle.tokens += other.held
    keys = oracle.bank.ring.store.keys.flatten().tolist()
    assert sorted(keys) == [float(number) for number, _ in oracle.held]
    assert oracle.bank.locate(0, 4999) == Source(13999, "b", 100 + 1234 + 8999)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_extending_by_a_bank_of_another_type(dtype):
    """The tokens are those that the other bank gives back."""
    torch.manual_seed(1)
    bank = MemoryBank(2, 2, 3, memory_size=16, chunk_size=2, k=16)
    other = MemoryBank(2, 2, 3, memory_size=8, chunk_size=4, k=4, dtype=dtype)
    other.write(*torch.randn(2, 2, 2, 13, 3))
    extend_bank(bank, other)
    assert bank.num_tokens == [8, 8] and bank.num_pending == [1, 1]
    expected, _ = other.ring.store.gather(torch.arange(8))  # 2 streams x 2 heads x 2 slots
    expected = expected.float().view(2, 2, 2, 4, 3).roll(-1, dims=2)  # oldest first
    found = bank.ring.store.keys[:, :, :4]
    assert torch.equal(found.reshape(2, 2, 2, 4, 3), expected)
    assert torch.equal(bank.pending.keys[:, :, :1], other.pending.keys[:, :, :1].float())


def test_an_extended_bank_of_an_approximate_index_finds_what_was_appended():
    torch.manual_seed(1)
    sizes = {"memory_size": 400, "chunk_size": 1, "k": 4}
    bank = MemoryBank(1, 1, 8, **sizes, index="IVF4,Flat", index_parameters="nprobe=4")
    other = MemoryBank(1, 1, 8, **sizes)
    bank.write(*torch.randn(2, 1, 1, 250, 8))
    other.write(*torch.randn(2, 1, 1, 300, 8))
    extend_bank(bank, other)
    queries = torch.randn(1, 1, 9, 8)
    scores = queries[0, 0] @ bank.ring.chunk_keys[0, 0].t()
    assert torch.equal(bank.retrieve(queries).chunks[0, 0], scores.topk(4).indices)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"fingerprint": "b" * 64},
            "a memory holds keys of the backbone bbbbbbbbbbbbbbbb, not of aaaaaaaaaaaaaaaa: encode the "
            "documents again with this backbone",
        ),
        ({"num_streams": 2}, "a memory with num streams 2 does not fit one with 1"),
        ({"num_heads": 2}, "a memory with num heads 2 does not fit one with 1"),
        ({"head_dim": 3}, "a memory with head dim 3 does not fit one with 2"),
        ({"scope": "batch"}, "a memory with scope batch does not fit one with stream"),
        (None, "a memory cannot be extended by itself"),
    ],
)
def test_banks_that_do_not_go_together(options, message):
    sizes = {"num_streams": 1, "num_heads": 1, "head_dim": 2, "memory_size": 64, "k": 4}
    sizes["fingerprint"] = "a" * 64
    bank = MemoryBank(**sizes)
    bank.write(*torch.randn(2, 1, 1, 9, 2))
    bank.begin_document(0, "a")
    other = bank
    if options is not None:
        other = MemoryBank(**{**sizes, **options})
        other.write(
            *torch.randn(
                2, other.layout.num_streams, other.layout.num_heads, 9, other.layout.head_dim
            )
        )
    before = snapshot(bank)
    with pytest.raises(ValueError) as error:
        extend_bank(bank, other)
    assert str(error.value) == message
    assert_same(snapshot(bank), before)


def test_an_unknown_backbone_goes_with_any():
    bank = MemoryBank(1, 1, 1, 64, k=4, fingerprint="a" * 64)
    other = MemoryBank(1, 1, 1, 64, k=4)
    other.write(*torch.randn(2, 1, 1, 9, 1))
    extend_bank(bank, other)
    assert bank.num_tokens == [8] and bank.layout.fingerprint == "a" * 64


def test_tokens_of_no_document_outlive_a_file(tmp_path):
    oracle, other = Oracle(1, 9), Oracle(1, 9, first_number=100)
    oracle.begin("a", 0)
    oracle.write(2)
    other.write(3)
    extend_bank(oracle.bank, other.bank)
    oracle.tokens += other.held
    path = str(tmp_path / "memory.safetensors")
    oracle.bank.save(path)
    assert read_memory_file(path)[0]["sources"] == [[[0, "a", 0], [2, None, 0]]]
    oracle.bank = MemoryBank.load(path)
    oracle.check()
