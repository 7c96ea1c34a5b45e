"""The effect of memory on every token of a text."""

from typing import Dict, List, NamedTuple, Optional

import numpy as np

from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.api.reading import THIS_TEXT, TokenReading

SHORTEST = 64  # tokens; nearer passages are counted together
NOTHING, ELSEWHERE = "nothing read", "another document"


class Inspection(NamedTuple):
    """A text of T tokens, read with and without memory.

    gain: T, log-probability (nats) with memory less that without
    log_probs: T, with memory
    readings: T, the tokens and the passages that were read to predict them
    """

    gain: np.ndarray
    log_probs: np.ndarray
    readings: List[TokenReading]


class Bar(NamedTuple):
    """The tokens of one distance: mean gain, its standard error (0 for a single token), and count."""

    label: str
    mean: float
    error: float
    count: int


def inspect_text(
    lm: LongMem,
    text: str,
    per_head: int = 3,
    progress: bool = False,
    special_tokens: bool = False,
) -> Inspection:
    """Reads a text with memory, without, and once more to see the passages that are read.

    Args:
        per_head: so many passages of each head, those with the largest weights
        progress: show bars
        special_tokens: read those that the text spells out; otherwise they are text

    Raises:
        ValueError: the text is empty, or the model has no memory
    """
    readings = lm.retrieved(text, per_head, progress, special_tokens)
    log_probs = lm.score(text, True, progress, special_tokens).log_probs.numpy()
    without = lm.score(text, False, progress, special_tokens).log_probs.numpy()
    return Inspection(log_probs - without, log_probs, readings)


def gain_by_distance(inspection: Inspection) -> List[Bar]:
    """Mean gain of tokens, by how many tokens before them the passage that they read most begins.

    That is known for passages of the text itself; others, and tokens for which nothing was read, are
    bars of their own. The distances of a bar are those from a power of two to the next.
    """
    gains: Dict[Optional[int], List[float]] = {}
    for position, (gain, reading) in enumerate(
        zip(inspection.gain, inspection.readings, strict=True)
    ):
        gains.setdefault(_distance(position, reading), []).append(float(gain))
    return [_bar(distance, gains[distance]) for distance in sorted(gains)]


def _distance(position: int, reading: TokenReading) -> int:
    """The power of two below the distance, 0 for less than SHORTEST; -1 for nothing, 2**62 for
    another document."""
    if not reading.passages:
        return -1
    most = max(reading.passages, key=lambda passage: passage.gate * passage.weight)
    if most.document != THIS_TEXT:
        return 2**62
    distance = position - most.offset
    return 0 if distance < SHORTEST else 2 ** (distance.bit_length() - 1)


def _bar(distance: int, gains: List[float]) -> Bar:
    label = {-1: NOTHING, 0: f"under {SHORTEST}", 2**62: ELSEWHERE}.get(
        distance, f"{distance:,} to {2 * distance - 1:,}"
    )
    error = float(np.std(gains, ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return Bar(label, float(np.mean(gains)), error, len(gains))
