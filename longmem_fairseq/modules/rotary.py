"""Rotary positions (Su et al., arXiv 2104.09864).

B streams, T tokens, H heads, D head_dim, n channels that are rotated.
"""

import functools
from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor

from longmem_fairseq.modules.rotary_scaling import frequencies, length_that_counts, parse_scaling


@dataclass(frozen=True)
class Rotary:
    """Turns pairs of channels (i, i + n/2) of queries and keys by their position.

    A score then depends on the distance of query and key alone. It holds no tensors: layers whose
    rotaries are equal share what :func:`cos_sin` computes from the positions.

    Args:
        num_channels: n, the first channels of a head; the others stay as they are
        base: wavelengths go from 2 pi to 2 pi * base
        scaling: "", or in JSON the rule by which a model was stretched to longer texts, with the names
            of Hugging Face's rope_scaling: ``{"rope_type": "linear", "factor": 8}``, or dynamic,
            llama3, yarn or longrope with the numbers in :data:`SCALINGS`

    Raises:
        ValueError: an odd number of channels, or another rule
    """

    num_channels: int
    base: float = 10000.0
    scaling: str = ""

    def __post_init__(self):
        if self.num_channels < 2 or self.num_channels % 2 != 0:
            raise ValueError(f"--rotary-dim ({self.num_channels}) must be even, and at least 2")
        rule = parse_scaling(self.scaling)
        for name in ("short_factor", "long_factor"):
            if name in rule and len(rule[name]) != self.num_channels // 2:
                raise ValueError(
                    f"--rotary-scaling: {name} has {len(rule[name])} numbers, expected "
                    f"{self.num_channels // 2}, one for two channels of --rotary-dim"
                )
        if rule.get("rope_type") == "dynamic" and self.num_channels == 2:
            raise ValueError("--rotary-scaling dynamic needs a --rotary-dim of at least 4")
        if rule.get("rope_type") == "yarn" and not (self.base > 1 and rule["factor"] >= 1):
            raise ValueError("--rotary-scaling yarn needs a factor of at least 1 and a larger base")

    def frequencies(self, num_tokens: int = 0) -> Tensor:
        """Radians per token of every pair, n/2, in a text of *num_tokens*."""
        return frequencies(parse_scaling(self.scaling), self.base, self.num_channels, num_tokens)

    def __call__(self, x: Tensor, positions: range) -> Tensor:
        """B x H x T x D, turned to *positions* (T, or 1 for all the same), in the type of *x*.

        The text ends where the positions do: with the rules dynamic and longrope that matters.
        """
        cos, sin = cos_sin(self, positions, x.dtype, x.device)
        if x.requires_grad:
            return _Turned.apply(x, cos, sin, self.num_channels)
        return turned(x, cos, sin, self.num_channels)


def turned(x: Tensor, cos: Tensor, sin: Tensor, num_channels: int) -> Tensor:
    """B x H x T x D, turned by the angles of :func:`cos_sin`; no halves are joined."""
    half = num_channels // 2
    result = torch.empty_like(x)
    torch.mul(x[..., :num_channels], cos, out=result[..., :num_channels])
    result[..., :half].addcmul_(x[..., half:num_channels], sin, value=-1)
    result[..., half:num_channels].addcmul_(x[..., :half], sin)
    if num_channels < x.size(-1):
        result[..., num_channels:] = x[..., num_channels:]
    return result


class _Turned(torch.autograd.Function):
    """:func:`turned`, whose gradient is turned back."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, num_channels: int) -> Tensor:
        ctx.angles, ctx.num_channels = (cos, sin), num_channels
        return turned(x, cos, sin, num_channels)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.angles
        return turned(grad, cos, -sin, ctx.num_channels), None, None, None


@functools.lru_cache(maxsize=8)  # a forward asks for at most six, and for each many times
def cos_sin(
    rotary: Rotary, positions: range, dtype: torch.dtype, device: torch.device
) -> Tuple[Tensor, Tensor]:
    """Of the angles by which *rotary* turns: cosines, T x n (for both channels of a pair), and sines,
    T x n/2.

    With YaRN and LongRoPE they include the factor by which queries and keys grow. Angles are computed
    in float32.
    """
    rule = parse_scaling(rotary.scaling)
    length = length_that_counts(rule, positions.stop)
    with torch.inference_mode(False):  # they may serve a training later
        tokens = torch.arange(positions.start, positions.stop, positions.step, device=device)
        angles = tokens.float().view(-1, 1) * frequencies_on(rotary, length, device)
        factor = rule.get("attention_factor", 1.0)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return torch.cat([cos, cos], dim=-1).to(dtype), sin.to(dtype)


@functools.lru_cache(maxsize=64)  # copying them makes the CPU wait for the GPU
def frequencies_on(rotary: Rotary, num_tokens: int, device: torch.device) -> Tensor:
    """Frequencies of *rotary*, computed on the CPU, so that they are equal on every device."""
    return rotary.frequencies(num_tokens).to(device)
