"""The rules by which models with rotary positions were stretched to longer texts.

n channels that are rotated. The names of rules and numbers are those of Hugging Face's rope_scaling.
"""

import functools
import json
import math
from typing import Any, Dict

import torch
from torch import Tensor

Rule = Dict[str, Any]

ORIGINAL = "original_max_position_embeddings"
SCALINGS = {  # rule: what it takes besides rope_type
    "linear": ("factor",),
    "dynamic": ("factor", ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL, "beta_fast", "beta_slow", "truncate", "attention_factor"),
    "longrope": ("short_factor", "long_factor", ORIGINAL, "attention_factor"),
}
_LISTS = ("short_factor", "long_factor")


@functools.lru_cache(maxsize=8)  # asked for with every layer
def parse_scaling(text: str) -> Rule:
    """The rule in *text*, {} for "".

    Raises:
        ValueError: not a rule that is known here
    """
    if not text:
        return {}
    try:
        rule = json.loads(text)
        numbers = {name: _number(name, rule[name]) for name in SCALINGS[rule["rope_type"]]}
    except (ValueError, KeyError, TypeError, OverflowError):
        raise ValueError(
            f"--rotary-scaling ({text}) must be JSON with a rope_type of {', '.join(SCALINGS)} and its "
            "numbers"
        ) from None
    return {"rope_type": rule["rope_type"], **numbers}


def _number(name: str, value: Any) -> Any:
    if name in _LISTS:
        return [_number("", part) for part in value]
    if not (math.isfinite(value) and (value > 0 or name == "truncate")):
        raise ValueError
    return float(value)


def length_that_counts(rule: Rule, num_tokens: int) -> int:
    """A length of text for which *rule* has the same frequencies as for *num_tokens*."""
    if rule.get("rope_type") not in ("dynamic", "longrope"):
        return 0
    original = int(rule[ORIGINAL])
    if rule["rope_type"] == "dynamic":
        return max(num_tokens, original)
    return original + (num_tokens > original)


def frequencies(rule: Rule, base: float, num_channels: int, num_tokens: int) -> Tensor:
    """Radians per token of every pair of channels, n/2, in a text of *num_tokens*."""
    kind = rule.get("rope_type")
    if kind == "dynamic":
        return _plain(_dynamic_base(rule, base, num_channels, num_tokens), num_channels)
    plain = _plain(base, num_channels)
    if kind == "linear":
        return plain / rule["factor"]
    if kind == "llama3":
        # https://arxiv.org/abs/2407.21783: long waves are stretched, short ones kept, and those in
        # between partly
        low, high = rule["low_freq_factor"], rule["high_freq_factor"]
        waves = rule[ORIGINAL] * plain / (2 * math.pi)
        return _mixed(plain, rule["factor"], ((waves - low) / (high - low)).clamp(0, 1))
    if kind == "yarn":
        return _mixed(plain, rule["factor"], _kept_by_yarn(rule, base, num_channels))
    if kind == "longrope":
        # https://arxiv.org/abs/2402.13753: a searched factor for every pair
        name = "long_factor" if num_tokens > rule[ORIGINAL] else "short_factor"
        return plain / torch.tensor(rule[name], device="cpu")
    return plain


def _plain(base: float, num_channels: int) -> Tensor:
    channels = torch.arange(0, num_channels, 2, device="cpu").float()
    return 1.0 / (base ** (channels / num_channels))


def _mixed(plain: Tensor, factor: float, kept: Tensor) -> Tensor:
    return (1 - kept) * plain / factor + kept * plain


def _dynamic_base(rule: Rule, base: float, num_channels: int, num_tokens: int) -> float:
    # https://arxiv.org/abs/2309.00071, section 3.4: the longer the text, the larger the base
    factor, original = rule["factor"], rule[ORIGINAL]
    ratio = factor * max(num_tokens, original) / original - (factor - 1)
    return base * ratio ** (num_channels / (num_channels - 2))


def _kept_by_yarn(rule: Rule, base: float, num_channels: int) -> Tensor:
    # https://arxiv.org/abs/2309.00071, section 3.2: how far each pair stays as it was; the ramp goes
    # from the pair that turns beta_fast times in the original length to the one of beta_slow
    def pair(turns: float) -> float:
        length = rule[ORIGINAL] / (turns * 2 * math.pi)
        return num_channels * math.log(length) / (2 * math.log(base))

    low, high = pair(rule["beta_fast"]), pair(rule["beta_slow"])
    if rule["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, num_channels - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(num_channels // 2, device="cpu").float()
    return 1 - ((pairs - low) / (high - low)).clamp(0, 1)
