"""Scores of models by task and context length: a table, and a plot of their means."""

import statistics
from pathlib import Path
from typing import Dict, List, Sequence

from eval.common.tables import markdown


def score_table(
    lines: List[Dict], tasks: Sequence[str], lengths: Sequence, heading: str, of: Sequence[str]
) -> List[str]:
    """Scores (%) of every model and length by task, and their mean where all tasks in *of* are there.

    Args:
        lengths: the order of the rows
        heading: of the mean
    """
    by_row = _by_row(lines, lengths)
    columns = [task for task in tasks if any(task in scores for scores in by_row.values())]
    rows = [["model", "length", *columns, heading]]
    for (label, length), scores in by_row.items():
        mean = [f"{statistics.mean(scores[t] for t in of):.1f}" if {*of} <= {*scores} else ""]
        cells = [f"{scores[task]:.1f}" if task in scores else "" for task in columns]
        rows.append([label, f"{length:,}" if isinstance(length, int) else length, *cells, *mean])
    return markdown(rows)


def plot_means(lines: List[Dict], lengths: Sequence, path: Path) -> None:
    """The mean score of the tasks that a model was asked, by length."""
    from eval.common.plots import line_plot  # matplotlib, which takes a while

    series: Dict[str, Dict[int, float]] = {}
    for (label, length), scores in _by_row(lines, lengths).items():
        series.setdefault(label, {})[lengths.index(length)] = statistics.mean(scores.values())
    names = ", ".join(f"{i}: {length}" for i, length in enumerate(lengths))
    line_plot(series, (f"length ({names})", "mean score (%)"), path)


def _by_row(lines: List[Dict], lengths: Sequence) -> Dict[tuple, Dict[str, float]]:
    """Scores by task, of every label and length: labels as they come, lengths in their order."""
    labels = list(dict.fromkeys(line["label"] for line in lines))
    rows: Dict[tuple, Dict[str, float]] = {
        (label, length): {} for label in labels for length in lengths
    }
    for line in lines:
        setting = line["setting"]
        rows[line["label"], setting["length"]][setting["task"]] = line["score"]
    return {row: scores for row, scores in rows.items() if scores}
