"""Frozen linear layers: in int8 against their rounded float32 weights, packed against PyTorch's own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from longmem_fairseq.modules import Int8Linear, PackedLinear, pack, packing_pays

needs_packing = pytest.mark.skipif(
    not packing_pays(torch.bfloat16), reason="needs a processor with AVX-512-bf16"
)


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


def frozen(bias: bool) -> nn.Linear:
    return nn.Linear(40, 24, bias=bias).bfloat16().requires_grad_(False)


@needs_packing
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 3, 70])
def test_a_packed_matrix_gives_the_same_bits(bias, tokens):
    linear, x = frozen(bias), torch.randn(2, tokens, 40)
    packed = PackedLinear(linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            assert torch.equal(packed(x), linear(x))
    assert packed.weight is None


@needs_packing
@pytest.mark.parametrize(
    "use",
    [
        lambda packed: packed.state_dict()["weight"],
        lambda packed: copy.deepcopy(packed).weight,
        lambda packed: pickle.loads(pickle.dumps(packed)).weight,
        lambda packed: packed.float().weight.bfloat16(),
    ],
    ids=["state dict", "copy", "pickle", "other type"],
)
def test_a_packed_matrix_comes_back_where_it_is_needed(use):
    linear, x = frozen(bias=True), torch.randn(3, 40).bfloat16()
    packed = PackedLinear(linear)
    packed(x)
    assert torch.equal(use(packed), linear.weight)
    assert torch.equal(packed.bfloat16()(x), linear(x))


@needs_packing
@pytest.mark.parametrize("keep_weight", [False, True])
def test_gradients_pass_a_packed_matrix(keep_weight):
    linear, x = frozen(bias=True), torch.randn(3, 40).bfloat16().requires_grad_()
    packed = PackedLinear(linear, keep_weight)
    packed(x.detach())
    assert (packed.weight is not None) == keep_weight
    grads = [torch.autograd.grad(layer(x).sum(), x)[0] for layer in (packed, linear)]
    assert torch.equal(*grads)


@needs_packing
def test_loaded_weights_are_packed_anew():
    linear, x = frozen(bias=False), torch.randn(3, 40).bfloat16()
    packed = PackedLinear(frozen(bias=False), keep_weight=True)
    packed(x)
    packed.load_state_dict(linear.state_dict())
    assert torch.equal(packed(x), linear(x))


@pytest.mark.parametrize("pays", [True, False])
def test_linear_layers_are_packed_where_it_pays(pays, monkeypatch):
    monkeypatch.setattr("longmem_fairseq.modules.frozen_linear.has_instructions", lambda name: pays)
    linear = nn.Linear(2, 2)
    module = nn.ModuleDict({"head": linear, "block": nn.Sequential(linear, nn.ReLU())})
    module["int8"] = Int8Linear(linear, torch.bfloat16)
    pack(module, torch.bfloat16, keep_weight=("head",))
    kind = PackedLinear if pays else nn.Linear
    assert type(module["head"]) is type(module["block"][0]) is kind
    assert type(module["int8"]) is Int8Linear
    assert module["block"][0].weight is module["head"].weight is linear.weight
    if pays:
        assert module["head"].keep_weight and not module["block"][0].keep_weight
