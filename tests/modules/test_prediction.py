"""The blocked loss against all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from longmem_fairseq.modules import prediction
from longmem_fairseq.modules.prediction import predict

STREAMS, TOKENS, EMBED_DIM, VOCABULARY, PAD = 2, 7, 6, 23, 1


@pytest.fixture(params=[1, 3 * VOCABULARY, 10**6])
def rows_at_once(request, monkeypatch):
    """Blocks of one token, of three, and one block."""
    monkeypatch.setitem(prediction.LOGITS_AT_ONCE, "cpu", request.param)


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    target = torch.randint(2, VOCABULARY, (STREAMS, TOKENS))
    target[1, 4:] = PAD
    ids = torch.randint(VOCABULARY, (STREAMS, TOKENS, 4))
    return torch.randn(STREAMS, TOKENS, EMBED_DIM), target, ids


def softcapped(weight):
    return lambda features: 3 * torch.tanh(F.linear(features, weight) / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_those_of_all_logits(rows_at_once, inputs, dtype):
    features, target, ids = inputs
    head = softcapped(torch.randn(VOCABULARY, EMBED_DIM).to(dtype))
    features = features.to(dtype).requires_grad_()
    logits = head(features).float()
    expected = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=PAD, reduction="none")
    found = predict(head, VOCABULARY, features, target, ids, PAD)
    assert found.logits is None and found.losses.dtype == torch.float32
    assert_close(found.losses, expected)
    assert_close(found.log_probs, logits.log_softmax(dim=-1).gather(-1, ids))
    assert not found.log_probs.requires_grad

    weights = torch.rand(STREAMS, TOKENS)
    (own,) = torch.autograd.grad((found.losses * weights).sum(), features)
    (its,) = torch.autograd.grad((expected * weights).sum(), features)
    tolerance = (
        {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    )
    assert_close(own, its, **tolerance)
    assert own[1, 4:].eq(0).all() and own[0].ne(0).any()


def test_without_targets_there_are_logits(inputs):
    features, _, ids = inputs
    head = softcapped(torch.randn(VOCABULARY, EMBED_DIM))
    found = predict(head, VOCABULARY, features, ids=ids)
    assert torch.equal(found.logits, head(features)) and found.losses is None
    assert_close(found.log_probs, found.logits.log_softmax(dim=-1).gather(-1, ids))
    assert predict(head, VOCABULARY, features).log_probs is None


def test_a_trained_head_gets_its_gradient(inputs):
    features, target, _ = inputs
    weight = torch.randn(VOCABULARY, EMBED_DIM, requires_grad=True)
    found = predict(softcapped(weight), VOCABULARY, features, target, None, PAD, True)
    expected = predict(softcapped(weight.detach()), VOCABULARY, features, target, None, PAD)
    assert_close(found.losses, expected.losses)
    found.losses.sum().backward()
    assert weight.grad is not None


def test_nothing_to_predict(inputs):
    features, target, ids = (tensor[:, :0] for tensor in inputs)
    head = softcapped(torch.randn(VOCABULARY, EMBED_DIM))
    found = predict(head, VOCABULARY, features, target, ids, PAD)
    assert found.losses.shape == (STREAMS, 0) and found.log_probs.shape == (STREAMS, 0, 4)
