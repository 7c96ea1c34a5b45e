"""The pointer against the naive dense mixture, and its gradients against autograd's of that."""

import math
from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.modules import ConstantPointer, Pointer, TrainedPointer, log_probs_of
from longmem_fairseq.modules.places import (
    IN_WINDOW,
    MATCH_LENGTHS,
    NEAREST,
    Places,
    contexts_of,
    places_in_window,
)
from longmem_fairseq.modules.pointer import PointerValues, share_of_token
from tests.helpers.slow_pointer import in_window

PAD, VOCABULARY, EMBED_DIM = 1, 11, 5
VALUES = PointerValues()
STREAMS, TOKENS, PLACES = 2, 4, 6


def places(missing="some"):
    """Six places for each of 2 x 4 tokens, many of them of the same token of the vocabulary.

    Args:
        missing: ``some``: token 0 of stream 0 has none, others fewer; ``all``, or ``none``
    """
    generator = torch.Generator().manual_seed(1)
    shape = (STREAMS, TOKENS, PLACES)
    similarities = torch.rand(shape, generator=generator)
    ids = torch.randint(4, 7, shape, generator=generator)
    match_classes = torch.randint(0, len(VALUES.match), shape, generator=generator)
    near = torch.rand(shape, generator=generator) < 0.3
    gone = torch.full(shape, missing == "all")
    if missing == "some":
        gone[0, 0] = gone[1, 2, 2:] = gone[0, 3, 4] = True
    return Places(similarities.masked_fill(gone, -math.inf), ids, match_classes, near)


def inputs(seed=2, dtype=torch.float32):
    """Logits B x T x V and features B x T x C, which ask for gradients."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(STREAMS, TOKENS, VOCABULARY, dtype=dtype)
    features = torch.randn(STREAMS, TOKENS, EMBED_DIM, dtype=dtype)
    return logits.requires_grad_(), features.requires_grad_()


def asked(places, features, logits):
    """Arguments of a pointer."""
    return places, features, log_probs_of(logits, places.ids)


def trained(seed=3):
    """A pointer of which nothing is zero."""
    torch.manual_seed(seed)
    pointer = TrainedPointer(EMBED_DIM)
    with torch.no_grad():
        for parameter in pointer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return pointer


POINTERS = {"constant": ConstantPointer, "trained": trained}


def dense(pointer, logits):
    """(1 - l) p_model + l p_memory, one hit after another, in double precision; B x T x V."""
    model = logits.double().softmax(dim=-1)
    rows = []
    for b in range(model.size(0)):
        for t in range(model.size(1)):
            memory = torch.zeros(model.size(2), dtype=torch.double)
            for share, token in zip(pointer.shares[b, t], pointer.ids[b, t], strict=True):
                memory = memory + share.double() * torch.nn.functional.one_hot(token, model.size(2))
            weight, rest = pointer.log_weight[b, t].double(), pointer.log_rest[b, t].double()
            rows.append(rest.exp() * model[b, t] + weight.exp() * memory)
    return torch.stack(rows).view_as(model)


@pytest.mark.parametrize("missing", ["some", "none", "all"])
@pytest.mark.parametrize("kind", POINTERS)
def test_the_mixture_is_the_naive_one(kind, missing):
    logits, features = inputs()
    pointer = POINTERS[kind]()(*asked(places(missing), features, logits))
    mixed = pointer.mixed(logits)
    assert_close(mixed.exp().double(), dense(pointer, logits), rtol=1e-5, atol=1e-6)
    assert_close(mixed.double().exp().sum(-1), torch.ones(2, 4).double(), rtol=1e-5, atol=1e-5)
    if missing == "all":
        assert_close(mixed, logits.log_softmax(-1), rtol=0, atol=0)
        assert pointer.log_weight.exp().eq(0).all() and pointer.log_rest.eq(0).all()
    if missing == "some":
        nothing = logits.log_softmax(-1)[0, 0]
        assert_close(mixed[0, 0], nothing, rtol=0, atol=0)
        assert (mixed[1, 1] - logits.log_softmax(-1)[1, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("missing", ["some", "none", "all"])
@pytest.mark.parametrize("kind", POINTERS)
def test_losses_are_those_of_the_mixture(kind, missing):
    logits, features = inputs()
    pointer = POINTERS[kind]()(*asked(places(missing), features, logits))
    for seed in range(5):  # targets that were found, and others
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(2, VOCABULARY, (STREAMS, TOKENS), generator=generator)
        target[0, 1] = target[1, 2] = PAD
        own = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), reduction="none"
        )
        losses = pointer.losses(own.view(STREAMS, TOKENS), target, PAD)
        expected = -pointer.mixed(logits).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        assert losses[0, 1] == losses[1, 2] == 0
        assert_close(losses, expected.masked_fill(target == PAD, 0.0), rtol=1e-5, atol=1e-5)


def test_shares_and_weight_of_a_constant_pointer_by_hand():
    scores = torch.tensor([[[0.9, 0.4]]])
    ids = torch.tensor([[[4, 6]]])
    probs = torch.tensor([[[0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1]]])
    near = torch.tensor([[[False, True]]])
    one = Places(scores, ids, torch.tensor([[[2, 0]]]), near)
    pointer = ConstantPointer()(*asked(one, torch.zeros(1, 1, 2), probs.log()))
    parts = [
        math.exp(VALUES.sharpness * s + more) * p**VALUES.trust
        for s, p, more in ((0.9, 0.4, VALUES.match[2]), (0.4, 0.1, VALUES.near))
    ]
    shares = torch.tensor([[[parts[0] / sum(parts), parts[1] / sum(parts)]]])
    assert_close(pointer.shares, shares)
    odds = VALUES.bias + VALUES.slope * 0.9 + VALUES.agreement * shares[0, 0, 0].item()
    odds += VALUES.weight_match[2] + VALUES.weight_near * shares[0, 0, 1].item()
    weight = 1 / (1 + math.exp(-odds))
    assert_close(pointer.log_weight.exp(), torch.tensor([[weight]]))
    assert_close(pointer.log_rest.exp(), torch.tensor([[1 - weight]]))
    expected = (1 - weight) * probs
    expected[0, 0, 4] += weight * shares[0, 0, 0]
    expected[0, 0, 6] += weight * shares[0, 0, 1]
    assert_close(pointer.mixed(probs.log()).exp(), expected)


def test_equal_tokens_share():
    ids = torch.tensor([5, 3, 5, 7, 3, 5])
    shares = torch.tensor([0.1, 0.2, 0.15, 0.25, 0.05, 0.25])
    sums, repeated = share_of_token(ids, shares)
    assert_close(sums, torch.tensor([0.5, 0.25, 0.5, 0.25, 0.25, 0.5]))
    assert repeated.tolist() == [False, False, True, False, True, True]


def test_contexts_are_the_tokens_before():
    tokens, rest = torch.tensor([[7, 8, 9]]), MATCH_LENGTHS[-1] - 3
    expected = [[7, -1, -1], [8, 7, -1], [9, 8, 7]]
    assert contexts_of(tokens).tolist() == [[row + [-1] * rest for row in expected]]
    expected = [[7, 6, 5], [8, 7, 6], [9, 8, 7]]
    found = contexts_of(tokens, torch.tensor([[5, 6]]))
    assert found[:, :, :3].tolist() == [expected]


@pytest.mark.parametrize("num_new", [1, 30, 70])
def test_places_in_the_window_are_those_of_lists(num_new):
    torch.manual_seed(6)
    keys = torch.nn.functional.normalize(torch.randn(STREAMS, 70, 8), dim=-1)
    tokens = torch.randint(4, 7, (STREAMS, 70))
    places = places_in_window(keys, tokens, num_new)
    for row in range(STREAMS):
        for t in range(70 - num_new, 70):
            expected = in_window(keys[row], tokens[row].tolist(), t)
            parts = (part[row, t - 70 + num_new].tolist() for part in places)
            actual = [place for place in zip(*parts, strict=True) if place[0] > -math.inf]
            assert len(expected) == max(0, min(t - NEAREST, IN_WINDOW))
            assert_close([p[0] for p in actual], [p[0] for p in expected], rtol=1e-5, atol=1e-6)
            assert [p[1:] for p in actual] == [p[1:] for p in expected]


def test_places_in_memory_are_not_found_in_the_window_again():
    torch.manual_seed(6)
    length = NEAREST + 10
    keys, tokens = torch.randn(STREAMS, length, 8), torch.randint(4, 7, (STREAMS, length))
    every = places_in_window(keys, tokens, 10)
    some = places_in_window(keys, tokens, 10, torch.tensor([0, 4]))
    there = some.similarities.isfinite().sum(dim=-1)
    assert there.tolist() == [list(range(10)), [0] * 4 + list(range(1, 7))]
    assert torch.equal(some.similarities[0], every.similarities[0])


def test_a_trained_pointer_starts_as_the_constant_one():
    logits, features = inputs()
    for missing in ("some", "none", "all"):
        question = asked(places(missing), features, logits)
        start, constant = TrainedPointer(EMBED_DIM)(*question), ConstantPointer()(*question)
        for part, expected in zip(start, constant, strict=True):
            assert_close(part, expected)


def test_a_bias_moves_the_weight_alone():
    logits, features = inputs()
    question = asked(places("some"), features, logits)
    for make in (ConstantPointer, lambda *bias: TrainedPointer(EMBED_DIM, *bias)):
        plain, biased = make()(*question), make(1.5)(*question)
        assert_close(biased.shares, plain.shares)
        odds, expected = (p.log_weight - p.log_rest for p in (biased, plain))
        assert_close(odds, expected + 1.5)


# --- gradients ---


class Parts(NamedTuple):
    """The parts of a pointer, free to move: scores of shares, and the logit of its weight."""

    scores: torch.Tensor
    weight: torch.Tensor


def pointer_of(parts, ids):
    return Pointer(
        torch.nn.functional.logsigmoid(parts.weight),
        torch.nn.functional.logsigmoid(-parts.weight),
        parts.scores.softmax(dim=-1),
        ids,
    )


def free_parts():
    torch.manual_seed(4)
    shape = (STREAMS, TOKENS, PLACES)
    scores = torch.randn(shape, dtype=torch.double).requires_grad_()
    weight = torch.randn(shape[:2], dtype=torch.double).requires_grad_()
    return Parts(scores, weight)


def test_gradients_of_losses_in_double_precision():
    logits, _ = inputs(dtype=torch.double)
    ids = places("none").ids
    target = torch.randint(4, 8, (STREAMS, TOKENS), generator=torch.Generator().manual_seed(5))
    target[1, 1] = PAD

    def losses(logits, scores, weight):
        own = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="none"
        )
        pointer = pointer_of(Parts(scores, weight), ids)
        return pointer.losses(own.view(STREAMS, TOKENS), target, PAD)

    assert torch.autograd.gradcheck(losses, (logits, *free_parts()))


@pytest.mark.parametrize("missing", ["some", "none", "all"])
@pytest.mark.parametrize("kind", POINTERS)
@pytest.mark.parametrize("reading", ["losses", "mixed"])
def test_gradients_against_the_naive_mixture(kind, missing, reading):
    """Of logits, features and parameters, all in float32 as in training."""
    module, target = POINTERS[kind](), torch.tensor([[4, 5, 9, 6], [6, 4, 5, 4]])
    gradients = []
    for naive in (True, False):
        logits, features = inputs()
        pointer = module(*asked(places(missing), features, logits))
        if naive:
            log_probs = dense(pointer, logits).log()
        elif reading == "mixed":
            log_probs = pointer.mixed(logits)
        if naive or reading == "mixed":
            loss = -log_probs.gather(-1, target.unsqueeze(-1)).sum()
        else:
            own = -logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
            loss = pointer.losses(own, target, PAD).sum()
        wanted = [logits, *module.parameters()]
        if kind == "trained":
            wanted.append(features)
        gradients.append(torch.autograd.grad(loss, wanted, allow_unused=True))
    for expected, actual in zip(*gradients, strict=True):
        if expected is None:
            assert actual is None
            continue
        assert expected.isfinite().all() and actual.isfinite().all()
        assert_close(actual, expected, rtol=1e-4, atol=1e-5)
