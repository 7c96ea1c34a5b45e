"""Cells and lines of Markdown tables.

Rows of the paper's (arXiv 2306.07174) stand beside ours. Its models have 407M parameters (558M with
the SideNet) and read many billions of tokens: absolute numbers do not carry over to another tokenizer,
corpus or size. Compare ratios and directions. docs/reproducing.md says which of these numbers were
checked against a second source.
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
    return f"{value / base:.4f}" if value is not None and base is not None else ""


def percent(share: Optional[float]) -> str:
    return f"{100 * share:.1f}%" if share is not None else ""


def mean_and_deviation(values: Iterable[float], digits: int = 1) -> str:
    """As the paper reports several seeds; its deviation is that of these values, not of a sample."""
    values = list(values)
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.pstdev(values):.{digits}f}" if len(values) > 1 else mean


def decimal(value: Optional[float], digits: int) -> str:
    """A number for people; None, such as the perplexity of no words, is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
