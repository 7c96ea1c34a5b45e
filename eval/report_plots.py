"""Plots of result lines, one function for each kind of benchmark."""

from pathlib import Path
from typing import Dict, List

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of what draws)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def perplexities(results: Dict[str, Dict], path: Path) -> None:
    """Recall by distance where there are questions, else perplexity by position."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, result in results.items():
        if "recall_by_distance" in result:
            buckets = result["recall_by_distance"]
            values = [100 * bucket["recall"] for bucket in buckets]
            axes.set(xlabel="tokens since the fact was last mentioned", ylabel="answers right (%)")
        else:
            buckets = [bucket for bucket in result["by_position"] if bucket["ppl"] is not None]
            values = [bucket["ppl"] for bucket in buckets]
            axes.set(xlabel="position in the document (tokens)", ylabel="perplexity")
        axes.plot([bucket["to"] for bucket in buckets], values, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def icl(lines: List[Dict], path: Path) -> None:
    """Accuracy by demonstrations in memory, mean over tasks and seeds."""
    series: Dict[str, Dict[int, List[float]]] = {}
    for line in lines:
        setting = line["setting"]
        label = f"{line['label']}, {setting['shots']} in context ({setting['scoring']})"
        by_memory = series.setdefault(label, {})
        by_memory.setdefault(setting["memory_demonstrations"], []).append(100 * line["accuracy"])
    _lines(
        {label: {m: sum(v) / len(v) for m, v in found.items()} for label, found in series.items()},
        ("demonstrations in memory", "accuracy (%), mean of tasks and seeds"),
        path,
    )


def chapterbreak(lines: List[Dict], path: Path) -> None:
    """Accuracy by tokens of context."""
    series: Dict[str, Dict[int, float]] = {}
    for line in lines:
        setting = line["setting"]
        what = f"{setting['split']}, {line['items']} items"
        label = f"{line['label']} ({what}, suffix {setting['suffix']})"
        series.setdefault(label, {})[setting["context"]] = 100 * line["accuracy"]
        series.setdefault(f"chance ({what})", {})[setting["context"]] = 100 * line["chance"]
    _lines(series, ("tokens of context", "accuracy (%)"), path)


def _lines(series: Dict[str, Dict[int, float]], labels, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5))
    _draw(axes, series, labels)
    _save(figure, path)


def _draw(axes, series: Dict[str, Dict[int, float]], labels) -> None:
    for label, points in series.items():
        chance = label.startswith("chance")
        style = {"color": "grey", "linestyle": ":"} if chance else {"marker": "o"}
        places = sorted(points)
        axes.plot(places, [points[place] for place in places], label=label, **style)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.legend()


def efficiency(lines: List[Dict], path: Path) -> None:
    """Tokens/s and peak memory by tokens of context, a panel each."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    for axes, field, unit, what in (
        (panels[0], "tokens_per_second", 1, "tokens/s"),
        (panels[1], "peak_bytes", 1e9, "peak memory (GB)"),
    ):
        series: Dict[str, Dict[int, float]] = {}
        for line in lines:
            if line[field] is not None:
                by_context = series.setdefault(line["label"], {})
                by_context[line["setting"]["context"]] = line[field] / unit
        _draw(axes, series, ("tokens of context", what))
    _save(figure, path)


def squad(lines: List[Dict], path: Path) -> None:
    """Exact match and F1, a pair of bars for every line."""
    names = [
        f"{line['label']}\n{line['setting']['shots']} in context, seed {line['seed']}\n"
        f"{line['setting']['memory_demonstrations']} in memory"
        for line in lines
    ]
    figure, axes = plt.subplots(figsize=(2 + 1.2 * len(lines), 4.5))
    for place, metric in enumerate(("exact_match", "f1")):
        places = [i + 0.4 * place for i in range(len(lines))]
        bars = axes.bar(places, [line[metric] for line in lines], width=0.4, label=metric)
        axes.bar_label(bars, fmt="{:.1f}")
    axes.set_xticks([i + 0.2 for i in range(len(lines))], names)
    axes.set(ylabel="%")
    axes.legend()
    _save(figure, path)


def needle(lines: List[Dict], path: Path) -> None:
    """A heat map for every model: depth by tokens in memory."""
    figure, panels = plt.subplots(
        len(lines), 1, figsize=(9, 1 + 3.4 * len(lines)), squeeze=False, sharex=False
    )
    for axes, line in zip(panels[:, 0], lines, strict=True):
        lengths, depths = line["setting"]["lengths"], line["setting"]["depths"]
        picture = axes.imshow(
            [[100 * share for share in row] for row in line["grid"]],
            aspect="auto",
            cmap="viridis",
            vmin=0,
            vmax=100,
        )
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=30)
        axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f}%" for depth in depths])
        chance = f"chance {100 * line['chance']:.3g}%"
        axes.set(
            title=f"{line['label']}, {line['setting']['format']} ({chance})",
            xlabel="tokens in memory",
            ylabel="depth of the needle",
        )
        figure.colorbar(picture, ax=axes, label="found (%)")
    _save(figure, path)
