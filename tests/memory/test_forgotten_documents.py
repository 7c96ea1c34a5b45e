"""A forgotten document leaves the bank as if it had never been written."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem_fairseq.memory import MemoryBank, forget_document
from tests.helpers.examples import examples

HEAD_DIM, SEARCH_DIM = 3, 2
NAMES = ("a", "b", "c")


def bank_of(documents, search, chunk_size, heads, index):
    """A bank of one stream in which all of these fit: (name, keys, values, ids, search keys)."""
    hidden = {"search": "hidden", "search_dim": SEARCH_DIM} if search == "hidden" else {}
    sizes = {"memory_size": 96, "chunk_size": chunk_size, "k": 12}
    bank = MemoryBank(1, heads, HEAD_DIM, index=index, **sizes, **hidden)
    for document in documents:
        add(bank, *document)
    return bank


def add(bank, name, keys, values, ids, search):
    bank.begin_document(0, name, offset=-1)
    search = search if bank.layout.reads_successors else None
    bank.write(keys, values, token_ids=ids, search_keys=search)


@settings(max_examples=examples(60))
@given(
    lengths=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 7)), min_size=1, max_size=7),
    kind=st.sampled_from([("hidden", 1), *(("attention", size) for size in (1, 2, 3))]),
    index=st.sampled_from(["torch", "flat", "Flat"]),
    heads=st.integers(1, 2),
)
def test_forgotten_is_as_never_written(lengths, kind, index, heads):
    search, chunk_size = kind
    generator = torch.Generator().manual_seed(1)
    documents = []
    for name, length in [*lengths, ("d", 5)]:
        keys, values = torch.randn(2, 1, heads, length, HEAD_DIM, generator=generator)
        ids = torch.randint(0, 999, (1, length), generator=generator)
        documents.append((name, keys, values, ids, torch.randn(1, length, SEARCH_DIM)))
    *documents, later = documents
    shape = (search, chunk_size, heads, index)
    for name in NAMES:
        bank = bank_of(documents, *shape)
        held = sum(document[3].size(1) for document in documents if document[0] == name)
        if search == "hidden":
            held -= sum(document[0] == name for document in documents)
        assert forget_document(bank, name) == held
        never = bank_of([document for document in documents if document[0] != name], *shape)
        for again in range(2):
            assert_same_bank(bank, never)
            for each in (bank, never) if again == 0 else ():
                add(each, *later)


def assert_same_bank(bank, expected):
    for name in ("num_written", "num_pending"):
        assert getattr(bank, name) == getattr(expected, name)
    assert bank.documents(0) == expected.documents(0)
    stored = range(bank.num_chunks[0])
    assert [bank.locate(0, s) for s in stored] == [expected.locate(0, s) for s in stored]
    state, other = bank.state_dict(), expected.state_dict()
    left = bank.num_pending[0]
    for name in ("chunk_keys", "keys", "values", "token_ids"):
        assert torch.equal(state[name], other[name])
    for name in ("pending_keys", "pending_values", "pending_search"):
        assert torch.equal(state[name][..., :left, :], other[name][..., :left, :])
    heads, dim = bank.layout.search_heads, bank.layout.key_dim
    queries = torch.randn(1, heads, 3, dim, generator=torch.Generator().manual_seed(2))
    found, wanted = bank.retrieve(queries), expected.retrieve(queries)
    assert (found is None) == (wanted is None)
    if found is not None:
        assert torch.equal(found.chunks, wanted.chunks)
        for mine, others in zip(found.tokens(), wanted.tokens(), strict=True):
            assert torch.equal(mine, others)
