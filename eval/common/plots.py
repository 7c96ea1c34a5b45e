"""Figures of result lines."""

from pathlib import Path
from typing import Dict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)


def save(figure, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def line_plot(
    series: Dict[str, Dict[int, float]], labels, path: Path, scale: str = "linear"
) -> None:
    """A line for each of *series*, whose points are y by x; *labels* and *scale* of x and y."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    draw(axes, series, labels)
    axes.set(xscale=scale, yscale=scale)
    save(figure, path)


def draw(axes, series: Dict[str, Dict[int, float]], labels) -> None:
    """Lines as those of :func:`line_plot`; a name that begins with "chance" is dotted."""
    for label, points in series.items():
        chance = label.startswith("chance")
        style = {"color": "gray", "linestyle": ":"} if chance else {"marker": "o"}
        places = sorted(points)
        axes.plot(places, [points[place] for place in places], label=label, **style)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.legend()
