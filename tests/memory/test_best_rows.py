"""The rows of the largest scores, found by groups, against a sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem_fairseq.memory import search
from longmem_fairseq.memory.search import best_rows
from tests.helpers.examples import examples


def check_best_rows(scores, count):
    check_rows(scores, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "GROUPS_FROM", 0)  # groups of few scores too
        check_rows(scores, count)


def check_rows(scores, count):
    rows = best_rows(scores, count)  # h x q x count
    assert rows.shape == (scores.size(0), scores.size(2), count) and rows.dtype == torch.int64
    columns = scores.transpose(1, 2)
    # ties may be resolved either way, so it is scores that are compared
    expected = columns.topk(count, dim=-1).values
    assert torch.equal(columns.gather(-1, rows), expected)
    found = columns.gather(-1, best_rows(scores, count, sorted=False))
    assert torch.equal(found.sort(dim=-1, descending=True).values, expected)
    assert all(len(set(found)) == count for head in rows.tolist() for found in head)


@settings(max_examples=examples(100))
@given(
    heads=st.integers(1, 2),
    num_rows=st.integers(1, 400),
    queries=st.integers(0, 4),
    kinds=st.integers(1, 1000),  # few different scores: many ties
    data=st.data(),
)
def test_best_rows_are_those_of_a_sort(heads, num_rows, queries, kinds, data):
    count = data.draw(st.integers(1, min(num_rows, 20)), label="count")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    scores = torch.randint(kinds, (heads, num_rows, queries), generator=generator).float()
    check_best_rows(scores - kinds / 2, count)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_best_rows_around_the_size_from_which_there_are_groups(count):
    torch.manual_seed(count)
    for num_rows in range(31 * count, 34 * count + 3):  # groups of 8 from 32 * count on
        check_best_rows(torch.randn(2, num_rows, 3), count)


@pytest.mark.parametrize("count, num_rows", [(1, 100), (2, 51), (4, 1000), (16, 4097)])
def test_best_rows_of_sizes_that_groups_do_not_divide(count, num_rows):
    torch.manual_seed(count)
    for rest in range(20):
        check_best_rows(torch.randn(1, num_rows + rest, 3), count)


@pytest.mark.parametrize("num_rows", [1, 31, 200])
def test_best_rows_can_be_all_of_them(num_rows):
    check_best_rows(torch.randn(1, num_rows, 2), num_rows)


@pytest.mark.parametrize("stride", [1, 15, 125])
@pytest.mark.parametrize("start", [0, 500, 1000])
def test_best_rows_wherever_they_are(stride, start):
    """1003 rows are 125 groups of 8, whose members are 125 rows apart, and 3 rows without a group."""
    scores, count = torch.rand(1, 1003, 1) - 2, 4
    best = [(start + i * stride) % 1003 for i in range(count)]
    scores[:, best] += 1
    assert set(best_rows(scores, count).flatten().tolist()) == set(best)
    check_best_rows(scores, count)
