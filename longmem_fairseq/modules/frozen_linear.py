"""Storage of a frozen linear layer's matrix: a byte per number, or column by column.

O rows (outputs), I columns (inputs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def store_by_inputs(linear: nn.Linear) -> None:
    """Lays a matrix with many more rows than columns out column by column; its values stay.

    One token's product with it then adds up long columns instead of multiplying short rows: 9.4 ms
    instead of 16.7 with 49,152 x 576 numbers (docs/performance.md). That of many tokens takes as long
    as before.
    """
    weight = linear.weight
    if weight.size(0) >= 2 * weight.size(1):
        weight.data = weight.data.t().contiguous().t()
