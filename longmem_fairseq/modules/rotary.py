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
        cos, sin = cos_sin(self, positions, x.device)
        half = self.num_channels // 2
        first, second = x[..., :half], x[..., half : self.num_channels]
        turned = [first * cos - second * sin, second * cos + first * sin]  # float32 or beyond
        return torch.cat([*turned, x[..., self.num_channels :]], dim=-1).to(x.dtype)


@functools.lru_cache(maxsize=8)  # a forward asks for at most six, and for each many times
def cos_sin(rotary: Rotary, positions: range, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Of the angles by which *rotary* turns, T x n/2 each; with YaRN and LongRoPE also the factor by
    which queries and keys grow."""
    rule = parse_scaling(rotary.scaling)
    length = length_that_counts(rule, positions.stop)
    with torch.inference_mode(False):  # they may serve a training later
        tokens = torch.arange(positions.start, positions.stop, positions.step, device=device)
        angles = tokens.float().view(-1, 1) * frequencies_on(rotary, length, device)
        factor = rule.get("attention_factor", 1.0)
        return angles.cos() * factor, angles.sin() * factor


@functools.lru_cache(maxsize=64)  # copying them makes the CPU wait for the GPU
def frequencies_on(rotary: Rotary, num_tokens: int, device: torch.device) -> Tensor:
    """Those of *rotary*: computed on the CPU, so that they are the same numbers on every device."""
    return rotary.frequencies(num_tokens).to(device)
