"""Attention in blocks against attention written out for all tokens at once, with gradients."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.modules import causal_attention
from longmem_fairseq.modules.blocked_attention import BLOCK, blocked_attention
from longmem_fairseq.modules.causal_bias import CausalBias


def plain(queries, keys, values, bias=None):
    """One softmax over everything, for arguments of :func:`blocked_attention`."""
    group = queries.size(1) // keys.size(1)
    keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (keys, values))
    scores = queries @ keys.transpose(-2, -1) * queries.size(-1) ** -0.5
    if bias is None:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool)
        bias = torch.zeros(scores.shape[-2:])
        bias[hidden.triu(keys.size(2) - queries.size(2) + 1)] = -torch.inf
    return (scores + bias).softmax(dim=-1) @ values


def with_gradients(attend, *inputs, bias):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = attend(*inputs, bias)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(weights.to(output.dtype))
    return [output, *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (6, 2)])
@pytest.mark.parametrize("tokens, before", [(1, 0), (BLOCK, 0), (2 * BLOCK + 3, 0), (BLOCK + 1, 9)])
@pytest.mark.parametrize("kind", ["causal", "ALiBi", "window"])
def test_output_and_gradients_are_those_of_plain_attention(heads, kv_heads, tokens, before, kind):
    """In float32, where both have to agree."""
    torch.manual_seed(0)
    queries = torch.randn(2, tokens, heads, 8).transpose(1, 2)  # as a projection lays them out
    keys, values = torch.randn(2, 2, kv_heads, before + tokens, 8).unbind()
    bias = None
    if kind != "causal":
        make = CausalBias(heads) if kind == "ALiBi" else CausalBias(window=5)
        bias = make(tokens, torch.float32, queries.device, before)
    found = with_gradients(blocked_attention, queries, keys, values, bias=bias)
    expected = with_gradients(plain, queries, keys, values, bias=bias)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_bfloat16_errs_as_its_rounding_does(monkeypatch):
    """By 1% of the norm at most; inside an autocast, too."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 4, BLOCK + 60, 16) for _ in range(3)]
    exact = with_gradients(plain, *inputs, bias=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = with_gradients(blocked_attention, *(t.bfloat16() for t in inputs), bias=None)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("processor, expected", [("avx512_bf16", True), ("amx_bf16", False)])
def test_only_processors_that_gain_use_it(monkeypatch, processor, expected):
    """And there, many bfloat16 queries alone."""
    instructions = {"avx512_bf16", processor}
    monkeypatch.setattr(
        "longmem_fairseq.modules.blocked_attention.has_instructions", instructions.__contains__
    )
    queries = torch.zeros(1, 1, 32, 8)
    assert not causal_attention.blocks_pay(queries, queries)
    queries = queries.bfloat16()
    assert causal_attention.blocks_pay(queries, queries) == expected
    assert not causal_attention.blocks_pay(queries[:, :, :31], queries)
