"""Exact match and F1 of SQuAD v1.1, as its official script defines them."""

import re
import string
from collections import Counter
from typing import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    text = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, else 0."""
    return float(normalize_answer(prediction) in [normalize_answer(answer) for answer in answers])


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of words with the closest answer: the harmonic mean of precision and recall."""
    return max(_f1(prediction, answer) for answer in answers)


def _f1(prediction: str, answer: str) -> float:
    predicted, expected = (normalize_answer(text).split() for text in (prediction, answer))
    common = sum((Counter(predicted) & Counter(expected)).values())
    # 2PR / (P + R) with P = common / predicted, R = common / expected
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0
