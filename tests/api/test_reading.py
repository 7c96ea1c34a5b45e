"""The passages that a model reads are those of its heads and of its memory."""

import pytest
import torch
from torch.testing import assert_close

from tests.helpers.model_folders import (
    DOCUMENTS,
    TEXT,
    WINDOW,
    assert_same_memory,
    ids,
    memory_state,
    story,
)


def test_passages_are_what_the_heads_read(load_lm):
    lm = load_lm()
    lm.memorize(DOCUMENTS.values(), names=DOCUMENTS)
    before, readings = memory_state(lm), lm.retrieved(TEXT)
    assert [reading.token for reading in readings] == lm.score(TEXT).tokens
    assert_same_memory(lm, before)
    texts = {**DOCUMENTS, "this text": TEXT}
    tokens = {name: lm.tokenizer.indices(text).tolist() for name, text in texts.items()}
    read = set()
    for position, (_, passages) in enumerate(readings):
        for head in range(2):
            found = [p for p in passages if p.head == head]
            weights = [p.weight for p in found]
            assert len(found) == 4 and weights == sorted(weights, reverse=True)
            assert sum(weights) == pytest.approx(1, abs=1e-5)
            assert {p.gate for p in found} == {0.5}
        for p in passages:
            read.add(p.document)
            last = p.offset + (1 if p.offset == 0 and p.before == "" else 2)
            assert p.document != "this text" or p.offset + 1 < position // WINDOW * WINDOW
            at = slice(p.offset, p.offset + 2)
            expected = lm.tokenizer.decode(tokens[p.document][at])
            assert p.text in (expected, lm.tokenizer.decode(tokens[p.document][: last - p.offset]))
            start = max(0, p.offset - 8)
            assert lm.tokenizer.decode(tokens[p.document][start : p.offset]).endswith(p.before)
    assert read == set(texts)


def test_scores_and_weights_of_passages_by_hand(load_lm):
    """One segment, whose queries and the bank are at hand."""
    lm, asked = load_lm(), []
    lm.memorize(DOCUMENTS["a"], names="a")
    text, bank = story(4, seed=9), lm.memory.single_bank(lm.device)
    with torch.no_grad():
        lm.decoder.read(ids(lm, text)[:, :-1], lambda q: asked.append(q) or bank.retrieve(q))
    queries, stored = asked[0][0], bank.num_chunks[0]  # H x T x D
    readings = lm.retrieved(text)
    assert len(readings) == queries.size(1) < WINDOW
    for position, (_, passages) in enumerate(readings):
        for head in range(2):
            query, found = queries[head, position], [p for p in passages if p.head == head]
            scores, order = (bank.ring.chunk_keys[0, head, :stored] @ query).sort(descending=True)
            assert_close(
                sorted((p.score for p in found), reverse=True),
                scores[:4].tolist(),
                atol=1e-4,
                rtol=0,
            )
            keys = bank.ring.store.keys[0, head, order[:4]]  # 4 x c x D
            weights = (keys @ query * query.numel() ** -0.5).flatten().softmax(0).view(4, 2).sum(1)
            expected = weights.sort(descending=True).values.tolist()
            assert_close([p.weight for p in found], expected, atol=1e-5, rtol=0)
            offsets = [2 * int(order[i]) - 1 for i in weights.argsort(descending=True)]
            assert [p.offset for p in found] == [max(0, offset) for offset in offsets]
    few = lm.retrieved(text, per_head=2)
    for (_, passages), (_, all_passages) in zip(few, readings, strict=True):
        assert passages == [*all_passages[:2], *all_passages[4:6]]


def test_nothing_is_read_in_an_empty_memory(load_lm):
    readings = load_lm().retrieved(TEXT)
    assert [len(passages) for _, passages in readings[:WINDOW]] == [0] * WINDOW
    assert all(len(passages) == 8 for _, passages in readings[WINDOW:])
