"""Approximate search by faiss: exact where it claims to be, and never of a chunk that is gone."""

import numpy as np
import pytest
import torch

from longmem_fairseq.memory import (
    MemoryBank,
    extend_bank,
    faiss_index,
)
from longmem_fairseq.memory.faiss_index import FactoryIndex
from tests.helpers.filled_banks import assert_same, snapshot

HEADS, HEAD_DIM, NUM_CHUNKS = 2, 8, 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def make_bank(index, parameters="", num_slots=200, streams=1, **options):
    """A bank of chunks of one token, whose search keys are the tokens' keys."""
    options = {"chunk_size": 1, "k": NUM_CHUNKS, "index_parameters": parameters, **options}
    return MemoryBank(streams, HEADS, HEAD_DIM, num_slots, index=index, **options)


def write(bank, num_tokens, rows=None):
    """To all rows or the first of them."""
    keys = 2 * torch.rand(rows or bank.layout.num_streams, HEADS, num_tokens, HEAD_DIM) - 1
    bank.write(keys, -keys)


def clustered(num_chunks, clusters=40, spread=0.3):
    centers = torch.randn(clusters, HEAD_DIM)
    keys = centers[torch.randint(clusters, (1, HEADS, num_chunks))]
    return keys + spread * torch.randn_like(keys)


def exact(bank, queries):
    """Slots H x Q x R of the first bank, best first."""
    stored = bank.num_chunks[0]
    scores = queries[0] @ bank.ring.chunk_keys[0, :, :stored].transpose(1, 2)
    return scores.topk(min(NUM_CHUNKS, stored), dim=-1).indices


def found_slots(bank, queries):
    """Those of the search, H x Q x R; checks that they are stored chunks, none twice."""
    found = bank.retrieve(queries)
    slots = found.chunks[0]
    for row in slots.flatten(0, 1).tolist():
        real = [slot for slot in row if slot >= 0]
        assert len(set(real)) == len(real) and all(slot < bank.num_chunks[0] for slot in real)
    if bank.layout.chunk_size > 1:
        return slots
    keys, values = found.tokens()
    heads = torch.arange(HEADS).view(-1, 1, 1)
    expected = bank.ring.chunk_keys[0, heads, slots.clamp(min=0)]  # H x Q x R x D
    valid = found.valid[0]
    assert torch.equal(keys[0][valid], expected[valid])
    assert torch.equal(values[0][valid], -expected[valid])
    return slots


def recall(bank, queries):
    pairs = zip(
        found_slots(bank, queries).flatten(0, 1).tolist(),
        exact(bank, queries).flatten(0, 1).tolist(),
        strict=True,
    )
    return float(np.mean([len(set(found) & set(best)) / len(best) for found, best in pairs]))


def test_search_is_exact_until_the_index_is_trained():
    bank, queries = make_bank("IVF4,Flat", streams=2), torch.randn(2, HEADS, 9, HEAD_DIM)
    write(bank, 100)
    write(bank, 55, rows=1)  # one is missing
    assert bank.ring.index.indices == {} and recall(bank, queries) == 1
    write(bank, 1, rows=1)
    assert (
        list(bank.ring.index.indices) == [0] and recall(bank, queries) < 1
    )  # 1 of 4 lists is read
    assert (bank.retrieve(queries).chunks[1] >= 0).all()
    assert [index.ntotal for index in bank.ring.index.indices[0]] == [156, 156]


@pytest.mark.parametrize("nprobe, least", [(1, 0.3), (6, 0.9), (12, 0.97)])
def test_recall_on_clustered_keys(nprobe, least):
    bank = make_bank("IVF16,Flat", f"nprobe={nprobe}", num_slots=2000)
    keys = clustered(2000)
    bank.write(keys, -keys)
    queries = keys[:, :, ::40] + 0.1 * torch.randn(1, HEADS, 50, HEAD_DIM)
    found = recall(bank, queries)
    assert found >= least
    assert nprobe > 1 or found < 1  # else this would be no test of anything


@pytest.mark.parametrize(
    "index, parameters, least",
    [
        ("Flat", "", 1),
        ("IVF4,Flat", "nprobe=4", 1),
        ("IVF4,SQ8", "nprobe=4", 0.95),
        ("IVF4_HNSW8,Flat", "nprobe=4", 1),
        ("PCA8,IVF4,Flat", "nprobe=4", 0.9),
        ("RR8,IVF4,Flat", "nprobe=4", 1),
        ("HNSW8", "efSearch=64", 0.9),
        ("IDMap,Flat", "", 1),
        ("IVF4,SQ8,RFlat", "k_factor_rf=4", 0.3),
    ],
)
def test_indices_of_many_kinds(index, parameters, least):
    bank, queries = make_bank(index, parameters), torch.randn(1, HEADS, 30, HEAD_DIM)
    for num_chunks in (3, 150, 40, 7):  # alone, to be trained with, after that, and full
        write(bank, num_chunks)
        assert recall(bank, queries) >= (
            1 if bank.num_chunks[0] < 156 and "IVF" in index else least
        )
    assert bank.ring.index.indices.keys() == {0}


def test_a_product_quantizer(monkeypatch):
    monkeypatch.setattr(faiss_index, "POINTS_PER_CENTROID", 4)  # 39 take seconds to train with
    bank = make_bank("IVF4,PQ4", "nprobe=4", num_slots=1200)
    for num_chunks in (1023, 1, 100, 300):  # the last ones evict
        assert (bank.num_written[0] >= 1024) == bool(bank.ring.index.indices)
        write(bank, num_chunks)
    assert bank.ring.index.num_needed == 4 * 256
    queries = torch.randn(1, HEADS, 30, HEAD_DIM)
    scores = queries[0] @ bank.ring.chunk_keys[0].transpose(1, 2)
    best = scores.topk(5 * NUM_CHUNKS, dim=-1).indices
    found = found_slots(bank, queries)
    assert (found.unsqueeze(-1) == best.unsqueeze(-2)).any(-1).float().mean() > 0.9


@pytest.mark.parametrize(
    "index, parameters",
    [
        ("Flat", ""),
        ("IVF4,Flat", "nprobe=4"),
        ("IVF4,SQ8", "nprobe=4"),
        ("RR8,IVF4,Flat", "nprobe=4"),
    ],
)
def test_a_ring_that_wraps_many_times(index, parameters):
    """Writes smaller and larger than the bank, which fill it, wrap, or end at its last slot."""
    bank = make_bank(index, parameters)
    sizes = [150, 50, 1, 199, 200, 7, 450, 201, 93, 107, 12, 0, 399, 188, 30, 30, 30]
    for num_chunks in sizes:
        write(bank, num_chunks)
        queries = torch.randn(1, HEADS, 5, HEAD_DIM)
        found, best = found_slots(bank, queries), exact(bank, queries)
        if "SQ8" not in index:
            assert torch.equal(found.sort(-1).values, best.sort(-1).values)
        if bank.ring.index.indices:
            check_index_holds_the_chunks(bank)
    assert bank.num_written == [sum(sizes)]


@pytest.mark.parametrize("before", [0, 60, 190])
@pytest.mark.parametrize("num_chunks", [9, 10, 11, 140, 200, 205, 395, 400, 410])
def test_a_write_of_any_size_into_a_bank_that_fills(before, num_chunks):
    bank, queries = make_bank("Flat"), torch.randn(1, HEADS, 5, HEAD_DIM)
    write(bank, before)
    write(bank, num_chunks)
    check_index_holds_the_chunks(bank)
    assert torch.equal(found_slots(bank, queries), exact(bank, queries))


def check_index_holds_the_chunks(bank):
    """Every stored slot once, with the score of the key that is there now."""
    stored = bank.num_chunks[0]
    query = torch.randn(1, HEAD_DIM)
    for head, index in enumerate(bank.ring.index.indices[0]):
        scores, slots = index.search(query.numpy(), stored + 5)
        assert sorted(slots[0]) == [-1] * 5 + list(range(stored)) and index.ntotal == stored
        keys = bank.ring.chunk_keys[0, head, torch.from_numpy(slots[0, :stored])]
        error = (torch.from_numpy(scores[0, :stored]) - keys @ query[0]).abs()
        # a scalar quantizer clips what lies outside of the range that it was trained with
        assert error.mean() < 0.05 if "SQ8" in bank.ring.index.description else error.max() < 1e-4


def test_a_reset_empties_the_index_and_leaves_it_trained():
    bank, queries = make_bank("IVF4,Flat", "nprobe=4", streams=2), torch.randn(1, HEADS, 5, 8)
    write(bank, 180)
    trained = bank.ring.index.indices[0]
    kept = bank.retrieve(torch.cat([queries, queries])).chunks[1]
    bank.reset(torch.tensor([True, False]))
    assert bank.retrieve(queries) is None
    assert torch.equal(bank.retrieve(torch.cat([queries, queries])).chunks[1], kept)
    assert bank.ring.index.indices[0] is trained
    assert all(index.is_trained and index.ntotal == 0 for index in trained)
    for num_chunks in (2, 30, 200):
        write(bank, num_chunks, rows=1)
        found, best = found_slots(bank, queries), exact(bank, queries)
        real = best.size(-1)
        assert torch.equal(found[..., :real].sort(-1).values, best.sort(-1).values)
        assert (found[..., real:] == -1).all()


FULL = (
    "this index cannot forget chunks, and the bank of {} tokens is full: raise memory_size, "
    "or choose an index that can (torch, IVF...)"
)


@pytest.mark.parametrize("scope", ["stream", "batch"])
def test_an_index_that_cannot_forget_refuses_when_full(scope):
    """With nothing written at all, also where other rows still had room."""
    bank = make_bank("HNSW8", num_slots=40, streams=2, scope=scope, chunk_size=2, k=2 * NUM_CHUNKS)
    tokens = torch.randn(2, 2, HEADS, 17, HEAD_DIM)
    valid = torch.ones(2, 17, dtype=torch.bool)
    valid[0, 5:] = False  # row 0 has room where row 1 has none
    bank.write(*tokens, valid)
    assert bank.num_pending == ([1, 1] if scope == "stream" else [0])
    before = snapshot(bank)
    more = torch.randn(2, 2, HEADS, 26, HEAD_DIM)
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            bank.write(*more)
        assert str(error.value) == FULL.format(40)
        assert_same(snapshot(bank), before)
    if scope == "stream":
        bank.write(*more[:, :, :, :23])  # 17 + 23 tokens fill row 1
        assert bank.num_tokens == [28, 40]
    else:
        bank.write(*more[:, :, :, :9])  # 22 + 18
        assert bank.num_tokens == [40]
    if scope == "stream":
        bank.write(*more[:, :, :, :1])  # these wait outside, and the next ones would fill a chunk
    before = snapshot(bank)
    with pytest.raises(ValueError):
        bank.write(*more[:, :, :, :1])
    assert_same(snapshot(bank), before)
    bank.reset()
    bank.write(*more[:, :, :, :20])
    assert recall(bank, torch.randn(2, HEADS, 5, HEAD_DIM)) > 0.9


def test_a_bank_that_cannot_forget_is_not_extended_beyond_its_size():
    bank, other = (make_bank("HNSW8", num_slots=20) for _ in range(2))
    write(bank, 12)
    write(other, 9)
    other.begin_document(0, "other")
    before = snapshot(bank)
    with pytest.raises(ValueError) as error:
        extend_bank(bank, other)
    assert str(error.value) == FULL.format(20)
    assert_same(snapshot(bank), before)


@pytest.mark.parametrize("description", ["IVF4,Flat", "HNSW8", "Flat"])
def test_no_queries_and_no_chunks(description):
    bank = make_bank(description, streams=2)
    queries = torch.randn(2, HEADS, 3, HEAD_DIM)
    assert bank.retrieve(queries) is None
    write(bank, 180)
    assert bank.retrieve(queries[:, :, :0]).chunks.shape == (2, HEADS, 0, NUM_CHUNKS)
    assert bank.retrieve(queries[:0]) is None
    assert torch.equal(bank.retrieve(queries[:1]).chunks, bank.retrieve(queries).chunks[:1])


def test_every_chunk_is_in_the_sample_when_there_are_just_enough(monkeypatch):
    seen = []
    monkeypatch.setattr(FactoryIndex, "_train", lambda self, index, keys: seen.append(keys))
    monkeypatch.setattr(FactoryIndex, "_add", lambda *arguments: None)
    bank = make_bank("IVF4,Flat")
    write(bank, 156)
    assert [keys.shape for keys in seen] == [(156, HEAD_DIM)] * HEADS
    assert torch.equal(torch.stack(seen), bank.ring.chunk_keys[0, :, :156])
