"""Places after the same words against a look at every place."""

import pytest
import torch

from longmem_fairseq.memory.literal_places import LiteralPlaces


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 4, 50])
@pytest.mark.parametrize("first", [0, 1000])
def test_the_latest_places_are_found(num_tokens, first):
    """Few kinds of tokens, some of which are unknown, and the largest ids that there are."""
    generator = torch.Generator().manual_seed(num_tokens)
    kinds = torch.tensor([-1, 0, 7, 2**21 - 1])
    ids = kinds[torch.randint(4, (num_tokens,), generator=generator)]
    contexts = kinds[torch.randint(4, (30, 5), generator=generator)]
    found = LiteralPlaces(ids.int(), first).latest(contexts, 2)
    assert found.shape == (30, 4)
    for context, places in zip(contexts.tolist(), found.tolist(), strict=True):
        expected = []
        for length in (3, 2):
            same = [
                first + place
                for place in range(length, num_tokens)
                if min(context[:length]) >= 0
                and ids[place - length : place].flip(0).tolist() == context[:length]
            ]
            expected += [*same[::-1], -1, -1][:2]
        assert places == expected


def test_a_context_shorter_than_the_words():
    """Is no context."""
    contexts = torch.tensor([[5, -1, -1], [5, 5, -1]])
    found = LiteralPlaces(torch.tensor([5, 5, 5, 5]), 0).latest(contexts, 1)
    assert found.tolist() == [[-1, -1], [-1, 3]]
