"""Excerpts of a memory against a slow search of every run of tokens."""

import math

import pytest
import torch

from longmem_fairseq.memory import MemoryBank, find_excerpts
from longmem_fairseq.memory.excerpts import BLOCK, LENGTH, WEIGHTS, excerpt_scores


def slow_scores(ids, begins, query):
    """For each excerpt the sum, over the query's tokens, of the heaviest run that ends there."""
    n, scores = len(ids), []
    blocks = [ids[first : first + BLOCK] for first in range(0, n, BLOCK)]
    counts = {t: sum(t in block for block in blocks) for t in query}
    weight = {t: max(0.0, math.log((len(blocks) + 1) / (counts[t] + 0.5))) for t in query}
    runs = []  # of each token of the query, the weight of the run that ends at each token in memory
    for j in range(len(query)):
        of_token = []
        for place in range(n):
            total, back = 0.0, 0
            while back <= j and place - back >= 0 and ids[place - back] == query[j - back]:
                total += weight[query[j - back]]
                if begins[place - back]:
                    break
                back += 1
            of_token.append(total)
        runs.append(of_token)
    for first in range(0, n, BLOCK):
        weights = {p: WEIGHTS[(p - first) // BLOCK] for p in range(first, min(first + LENGTH, n))}
        scores.append(sum(max(w * run[p] for p, w in weights.items()) for run in runs))
    return scores


@pytest.mark.parametrize("length", [1, BLOCK, 97, 250])
def test_scores_are_those_of_a_slow_search(length):
    """For few kinds of tokens, so that runs are long, and for documents that begin anywhere."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, 9, (length,), generator=generator)
    begins = torch.rand(length, generator=generator) < 0.05
    begins[0] = True
    query = torch.randint(5, 10, (12,), generator=generator)
    slow = slow_scores(ids.tolist(), begins.tolist(), query.tolist())
    torch.testing.assert_close(excerpt_scores(ids, begins, query), torch.tensor(slow))


def bank_of(documents, memory_size=4096):
    """A bank that holds the token ids of some documents."""
    bank = MemoryBank(1, 1, 2, memory_size=memory_size, chunk_size=1, k=1)
    for name, ids in documents.items():
        bank.begin_document(0, name)
        nothing = torch.zeros(1, 1, len(ids), 2)
        bank.write(nothing, nothing, token_ids=torch.tensor([ids]))
    return bank


def test_a_rare_sentence_is_found_whole_and_placed():
    """Among thousands of common tokens, with its document and offset."""
    common = [10 + i % 7 for i in range(2000)]
    fact = [900, 901, 11, 902, 903]
    bank = bank_of({"a": common, "b": common[:700] + fact + common[:700]})
    (excerpt,) = find_excerpts(bank, 0, torch.tensor([10, 900, 901, 11]), LENGTH)
    read = bank.logs[0].read(excerpt.tokens).tolist()
    assert str(fact)[1:-1] in str(read)
    assert excerpt.source.name == "b" and excerpt.source.offset <= 700
    assert len(read) == LENGTH


def test_excerpts_end_with_their_document():
    """One that two documents share is cut in two."""
    bank = bank_of({"a": [10] * 40 + [900], "b": [901] + [11] * 40})
    excerpts = find_excerpts(bank, 0, torch.tensor([900, 901]), LENGTH)
    assert [(e.source.name, len(e.tokens)) for e in excerpts] == [("a", 41), ("b", 41)]


def test_evicted_tokens_are_not_found():
    """A ring of 100 tokens has forgotten the first ones."""
    bank = bank_of({"a": [900] * 50 + [10] * 100}, memory_size=100)
    assert find_excerpts(bank, 0, torch.tensor([900]), LENGTH) == []


@pytest.mark.parametrize("query", [[950], []])
def test_nothing_is_found_without_a_shared_token(query):
    """Nor in an empty memory."""
    query = torch.tensor(query, dtype=torch.long)
    assert find_excerpts(bank_of({"a": [10, 11, 12]}), 0, query, LENGTH) == []
    assert find_excerpts(bank_of({}), 0, query, LENGTH) == []


def test_no_more_tokens_than_asked_for():
    """However many places there are, and in their order."""
    bank = bank_of({"a": ([900] + [10] * 255) * 10})
    excerpts = find_excerpts(bank, 0, torch.tensor([900]), 3 * LENGTH + 50)
    assert [len(e.tokens) for e in excerpts] == [LENGTH] * 3
    assert [e.tokens.start for e in excerpts] == sorted(e.tokens.start for e in excerpts)


def test_of_equal_excerpts_the_latest_is_found():
    """It may correct the others."""
    bank = bank_of({"a": ([900] + [10] * 511) * 5})
    (excerpt,) = find_excerpts(bank, 0, torch.tensor([900]), LENGTH)
    assert 4 * 512 in excerpt.tokens


def test_tokens_that_are_the_same_word():
    """As a table says."""
    bank, query = bank_of({"a": [10] * 300 + [900] + [10] * 300}), torch.tensor([901])
    assert find_excerpts(bank, 0, query, LENGTH) == []
    words = torch.arange(1000)
    words[901] = 900
    (excerpt,) = find_excerpts(bank, 0, query, LENGTH, words)
    assert 300 in excerpt.tokens


def test_far_worse_excerpts_are_left_out():
    """A common word of the query is no reason to read 128 tokens."""
    bank = bank_of({"a": [11] + [10] * 299 + [900, 901, 902] + [10] * 300 + [11]})
    (excerpt,) = find_excerpts(bank, 0, torch.tensor([11, 900, 901, 902]), 10 * LENGTH)
    assert 300 in excerpt.tokens
