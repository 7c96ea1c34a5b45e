"""Storage of a frozen linear layer's matrix: a byte per number, by columns, or in oneDNN's order.

O rows (outputs), I columns (inputs).
"""

from typing import Container

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.utils.processor import has_instructions


class Int8Linear(nn.Module):
    """``nn.Linear`` with a scale per row, its largest absolute value being 127.

    Only storage is quantized: the products are computed in *dtype*, in which whole numbers up to 127
    are exact, and scaled afterwards. The matrix in *dtype* lives as long as the product takes. Inputs
    are divided by 128 first: a sum in float16 may reach 65,504. That is exact too, except in float16
    for inputs below 128 * 6.1e-5, which become subnormal and lose their last bits.

    Args:
        linear: with the weights to keep
        dtype: of the products
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        weight = linear.weight.detach().float()  # O x I
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.dtype = dtype
        self.out_features = linear.out_features
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.view(-1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """... x I: ... x O, in *dtype*."""
        products = F.linear(x.to(self.dtype) / 128, self.weight.to(self.dtype))
        products = products * (128 * self.scale)
        return (products if self.bias is None else products + self.bias).to(self.dtype)


def quantize(module: nn.Module, dtype: torch.dtype) -> None:
    """Replaces every ``nn.Linear`` inside *module*; see :class:`Int8Linear`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child, dtype))
        else:
            quantize(child, dtype)


class PackedLinear(nn.Linear):
    """``nn.Linear`` whose matrix lies in the order that oneDNN multiplies it in, with the same results.

    PyTorch orders the matrix anew for every product: of one token that takes longer than the product.
    Ordered once, at the first product, the matrix replaces *weight*, which comes back where something
    else needs it: a gradient, another device, a copy, a state dict.

    Args:
        linear: with the weights to keep; bfloat16 by the time of the first product
        keep_weight: keep *weight* too, for a matrix that is shared or takes part in gradients
    """

    def __init__(self, linear: nn.Linear, keep_weight: bool = False):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.keep_weight = keep_weight
        self._packed = None

    def forward(self, x: Tensor) -> Tensor:
        """... x I: ... x O."""
        if x.device.type != "cpu" or x.requires_grad:
            self._unpack()
            return super().forward(x)
        if self._packed is None:
            with torch.inference_mode(False), torch.no_grad():  # it may serve a training later
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.weight = self.weight if self.keep_weight else None
        x = x.to(torch.bfloat16)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    def _unpack(self) -> None:
        if self.weight is None:
            self.weight = nn.Parameter(self._packed.to_dense(), requires_grad=False)
            self._packed = None

    def _apply(self, fn, recurse: bool = True):
        self._unpack()
        self._packed = None
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args) -> None:
        self._unpack()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args) -> None:
        self._unpack()
        self._packed = None
        super()._load_from_state_dict(*args)

    def __getstate__(self):
        self._unpack()
        return {**self.__dict__, "_packed": None}


def packing_pays(dtype: torch.dtype) -> bool:
    """Whether a :class:`PackedLinear` is faster in *dtype*, and this PyTorch can pack."""
    fast = dtype == torch.bfloat16 and has_instructions("avx512_bf16")
    return fast and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(module: nn.Module, dtype: torch.dtype, keep_weight: Container[str] = ()) -> None:
    """Replaces every ``nn.Linear`` inside *module* where that pays; see :class:`PackedLinear`.

    Args:
        dtype: of the products
        keep_weight: names of layers that keep their weight too
    """
    if not packing_pays(dtype):
        return
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child, name in keep_weight))
        else:
            pack(child, dtype, keep_weight)


def store_by_inputs(linear: nn.Linear) -> None:
    """Lays a matrix with many more rows than columns out column by column; its values stay.

    One token's product with it then adds up long columns instead of multiplying short rows: 9.4 ms
    instead of 16.7 with 49,152 x 576 numbers (docs/performance.md). That of many tokens takes as long
    as before.
    """
    weight = linear.weight
    if weight.size(0) >= 2 * weight.size(1):
        weight.data = weight.data.t().contiguous().t()
