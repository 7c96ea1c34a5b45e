"""Frozen linear layers in int8, against their rounded float32 weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from longmem_fairseq.modules import Int8Linear


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


@pytest.mark.parametrize("bias_too", [False, True])
def test_int8_rows_are_rounded_to_a_127th_of_their_largest(bias_too):
    linear, x = nn.Linear(30, 9, bias=bias_too), torch.randn(4, 30, requires_grad=True)
    with torch.no_grad():
        linear.weight[3] *= 100
        linear.weight[5] = 0
    quantized = Int8Linear(linear, torch.float32)
    assert quantized.weight.dtype == torch.int8 and list(quantized.parameters()) == []
    step = linear.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    rounded = (linear.weight / step).round() * step
    expected = F.linear(x, rounded, linear.bias)
    output = quantized(x)
    assert_close(output, expected)
    assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (output, expected)))


def test_int8_sums_of_float16_stay_finite():
    linear, x = nn.Linear(64, 1, bias=False), torch.full((1, 64), 10.0)
    nn.init.constant_(linear.weight, 0.1)
    assert_close(Int8Linear(linear, torch.float16)(x).float(), linear(x), rtol=2e-3, atol=0)
