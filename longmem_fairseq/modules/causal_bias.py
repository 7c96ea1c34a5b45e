"""The additive attention mask: no future, no further back than a window, ALiBi positions.

T tokens, H heads.
"""

import functools
import math
from typing import List, Optional

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> List[float]:
    """Slopes of *num_heads* heads (Press et al., arXiv 2108.12409): 2^(-8h/H), H a power of two.

    Otherwise those of the next lower power of two, followed by every other one of the next higher
    (the extension of the authors' code, section 3 of the paper).
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    if power < num_heads:
        slopes += alibi_slopes(2 * power)[0::2][: num_heads - power]
    return slopes


class CausalBias:
    """-inf for future keys, else slope * (key - query); without ALiBi the slope is 0.

    No module: fairseq looks for the first module whose output is infinite where a loss is NaN.

    Args:
        num_heads: H with ALiBi, whose penalty differs between heads; 0 without
        slope_scale: factor of the slopes (Falcon divides them by the square root of head_dim)
        window: keys that a query sees, its own one included; 0 for all
    """

    def __init__(self, num_heads: int = 0, slope_scale: float = 1.0, window: int = 0):
        self.slopes = [s * slope_scale for s in alibi_slopes(num_heads)] if num_heads else None
        self.window = window
        self._bias = None  # of the longest segment so far: the last one of a document is shorter

    def __call__(
        self, num_tokens: int, dtype: torch.dtype, device: torch.device, num_before: int = 0
    ) -> Optional[Tensor]:
        """Returns H x T x (P + T) (1 instead of H without ALiBi), for T tokens after P = *num_before*
        others; None where nothing but the future is to be hidden, which needs no mask."""
        num_tokens += num_before
        if self.slopes is None and not 0 < self.window < num_tokens:
            return None
        bias = self._bias
        if (
            bias is None
            or bias.size(1) < num_tokens
            or bias.dtype != dtype
            or bias.device != device
        ):
            with torch.inference_mode(False):  # it may serve a training later
                bias = self._computed(num_tokens, device).to(dtype)
            self._bias = bias
        return bias[:, num_before:num_tokens, :num_tokens]

    def _computed(self, num_tokens: int, device: torch.device) -> Tensor:
        """H (or 1) x T x T."""
        positions = torch.arange(num_tokens, device=device)
        distance = positions.view(1, -1) - positions.view(-1, 1)  # T x T, key minus query
        slopes = torch.tensor(self.slopes or [0.0], device=device).view(-1, 1, 1)
        hidden = distance > 0
        if self.window > 0:
            hidden |= distance <= -self.window
        return (slopes * distance).masked_fill(hidden, float("-inf"))


@functools.lru_cache(maxsize=4)  # the layers of a forward share it
def causal_mask(queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf for future keys, else 0, for the last *queries* of *keys* tokens: queries x keys."""
    with torch.inference_mode(False):  # it may serve a training later
        hidden = torch.full((queries, keys), float("-inf"), dtype=dtype, device=device)
        return hidden.triu(diagonal=keys - queries + 1)
