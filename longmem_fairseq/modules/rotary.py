"""Rotary positions (Su et al., arXiv 2104.09864), with the rules that stretch them.

B streams, T tokens, H heads, D head_dim, n channels that are rotated.
"""

import functools
import json
import math
from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor

SCALINGS = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


@dataclass(frozen=True)
class Rotary:
    """Turns pairs of channels (i, i + n/2) of queries and keys by their position.

    A score then depends on the distance of query and key alone. It holds no tensors: layers whose
    rotaries are equal share what :func:`cos_sin` computes from the positions.

    Args:
        num_channels: n, the first channels of a head; the others stay as they are
        base: wavelengths go from 2 pi to 2 pi * base
        scaling: "", or in JSON the rule by which a model was stretched to longer texts, with the names
            of Hugging Face's rope_scaling: ``{"rope_type": "linear", "factor": 8}``, or llama3 with
            factor, low_freq_factor, high_freq_factor and original_max_position_embeddings

    Raises:
        ValueError: an odd number of channels, or another rule
    """

    num_channels: int
    base: float = 10000.0
    scaling: str = ""

    def __post_init__(self):
        if self.num_channels < 2 or self.num_channels % 2 != 0:
            raise ValueError(f"--rotary-dim ({self.num_channels}) must be even, and at least 2")
        parse_scaling(self.scaling)

    def frequencies(self) -> Tensor:
        """Radians per token of every pair, n/2."""
        channels = torch.arange(0, self.num_channels, 2, device="cpu").float()
        frequencies = 1.0 / (self.base ** (channels / self.num_channels))
        rule = parse_scaling(self.scaling)
        if rule.get("rope_type") == "linear":
            return frequencies / rule["factor"]
        if rule.get("rope_type") == "llama3":
            # https://arxiv.org/abs/2407.21783: long waves are stretched, short ones kept, and those in
            # between partly
            low, high = rule["low_freq_factor"], rule["high_freq_factor"]
            waves = rule["original_max_position_embeddings"] * frequencies / (2 * math.pi)
            kept = ((waves - low) / (high - low)).clamp(0, 1)
            return (1 - kept) * frequencies / rule["factor"] + kept * frequencies
        return frequencies

    def __call__(self, x: Tensor, positions: range) -> Tensor:
        """B x H x T x D, turned to *positions* (T, or 1 for all the same), in the type of *x*."""
        cos, sin = cos_sin(self, positions, x.device)
        half = self.num_channels // 2
        first, second = x[..., :half], x[..., half : self.num_channels]
        turned = [first * cos - second * sin, second * cos + first * sin]  # float32 or beyond
        return torch.cat([*turned, x[..., self.num_channels :]], dim=-1).to(x.dtype)


@functools.lru_cache(maxsize=4)  # a forward asks for at most three, and for each many times
def cos_sin(rotary: Rotary, positions: range, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Of the angles by which *rotary* turns, T x n/2 each."""
    with torch.inference_mode(False):  # they may serve a training later
        tokens = torch.arange(positions.start, positions.stop, positions.step, device=device)
        angles = tokens.float().view(-1, 1) * frequencies_on(rotary, device)
        return angles.cos(), angles.sin()


@functools.cache  # copying them makes the CPU wait for the GPU
def frequencies_on(rotary: Rotary, device: torch.device) -> Tensor:
    """Those of *rotary*: computed on the CPU, so that they are the same numbers on every device."""
    return rotary.frequencies().to(device)


def parse_scaling(text: str) -> dict:
    """The rule in *text*, {} for ""; see :class:`Rotary`.

    Raises:
        ValueError: not a rule that is known here
    """
    if not text:
        return {}
    try:
        rule = json.loads(text)
        numbers = {name: float(rule[name]) for name in SCALINGS[rule["rope_type"]]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--rotary-scaling ({text}) must be JSON with a rope_type of {', '.join(SCALINGS)} and its "
            "numbers"
        ) from None
    return {"rope_type": rule["rope_type"], **numbers}
