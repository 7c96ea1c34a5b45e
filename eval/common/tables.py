"""Cells and lines of Markdown tables.

Rows of the paper's (arXiv 2306.07174) stand beside ours. Its models have 407M parameters (558M with
the SideNet) and read many billions of tokens: absolute numbers do not carry over to another tokenizer,
corpus or size. Compare ratios and directions. docs/reproducing.md lists the numbers that were checked
against a second source.
"""

import statistics
from typing import Iterable, List, Optional, Sequence

PAPER_BACKBONE, PAPER_LONGMEM = "paper: GPT-2*", "paper: LongMem"  # names of the rows


def markdown(rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table whose first row is the header; all columns but the first are numbers."""
    header, *rest = rows
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *rest]
    return ["| " + " | ".join(row) + " |" for row in rows]


def ratio(value: Optional[float], base: Optional[float]) -> str:
    """*value* / *base* with four digits; empty where one of them is missing."""
    return f"{value / base:.4f}" if value is not None and base is not None else ""


def percent(share: Optional[float]) -> str:
    """A share as a percentage; empty where it is missing."""
    return f"{100 * share:.1f}%" if share is not None else ""


def mean_and_deviation(values: Iterable[float], digits: int = 1) -> str:
    """Mean ± population standard deviation, as the paper reports several seeds."""
    values = list(values)
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.pstdev(values):.{digits}f}" if len(values) > 1 else mean


def decimal(value: Optional[float], digits: int) -> str:
    """A number for people; None, such as the perplexity of no words, is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
