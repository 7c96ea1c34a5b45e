"""Norms against PyTorch's own."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.modules import RMSNorm


@pytest.mark.parametrize("scale", [0, 1e-6, 1, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_pytorch_with_and_without_a_gradient(scale, dtype):
    torch.manual_seed(0)
    norm = RMSNorm(30, eps=1e-5)
    norm.weight.data.uniform_(-2, 2)
    x = scale * torch.randn(2, 5, 30).to(dtype)
    expected = torch.nn.functional.rms_norm(x.float(), (30,), norm.weight, 1e-5)
    assert_close(norm(x), expected)
    with torch.no_grad():
        assert_close(norm(x), expected)
