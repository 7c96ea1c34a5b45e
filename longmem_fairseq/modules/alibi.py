"""ALiBi: positions as a penalty on attention scores (Press et al., arXiv 2108.12409).

T tokens, H heads.
"""

import math
from typing import List

import torch
from torch import Tensor, nn


def alibi_slopes(num_heads: int) -> List[float]:
    """Slopes of *num_heads* heads: 2^(-8h/H) for H a power of two.

    Otherwise those of the next lower power of two, followed by every other one of the next higher
    (the extension of the authors' code, section 3 of the paper).
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    if power < num_heads:
        slopes += alibi_slopes(2 * power)[0::2][: num_heads - power]
    return slopes


class CausalAlibiBias(nn.Module):
    """The additive attention mask of a segment: slope * (key - query), -inf for future keys."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(num_heads)), persistent=False)
        self._bias = None  # of the longest segment so far: the last one of a document is shorter

    def forward(
        self, num_tokens: int, dtype: torch.dtype, device: torch.device, num_before: int = 0
    ) -> Tensor:
        """Returns H x T x (P + T), for T tokens after P = *num_before* others."""
        num_tokens += num_before
        bias = self._bias
        if (
            bias is None
            or bias.size(1) < num_tokens
            or bias.dtype != dtype
            or bias.device != device
        ):
            positions = torch.arange(num_tokens, device=device)
            distance = positions.view(1, -1) - positions.view(-1, 1)  # T x T, key minus query
            # float32 slopes whatever the model is stored in: half precision shifts far keys
            bias = self.slopes.float().to(device).view(-1, 1, 1) * distance  # H x T x T
            bias = bias.masked_fill(distance > 0, float("-inf")).to(dtype)
            self._bias = bias
        return bias[:, num_before:num_tokens, :num_tokens]
