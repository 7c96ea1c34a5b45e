"""One self-contained HTML page of an :class:`Inspection`; nothing in the texts is executed."""

import json
import re
from html import escape
from importlib.resources import files
from typing import Dict, List

import numpy as np

from longmem_fairseq.inspector.inspection import Bar, Inspection, gain_by_distance

# of the plot, in units of its own
WIDTH, ROW, LABEL, VALUE = 440, 26, 118, 104


def make_page(inspection: Inspection, title: str, memory: str) -> str:
    """The page.

    Args:
        title: of the text
        memory: a sentence on the memory
    """
    log_probs, gain = inspection.log_probs, inspection.gain
    without = log_probs - gain
    data = json.dumps(_data(inspection), ensure_ascii=False, separators=(",", ":"))
    values = {
        "title": escape(title),
        "memory": escape(memory),
        "count": f"{len(gain):,}",
        "with": f"{np.exp(-log_probs.mean()):,.2f}",
        "without": f"{np.exp(-without.mean()):,.2f}",
        "gain": f"{gain.mean():+.3f}",
        "plot": _plot(gain_by_distance(inspection)),
        # so that no text can end the element that holds it
        "data": data.replace("<", "\\u003c"),
    }
    template = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _data(inspection: Inspection) -> Dict:
    """The data of the page's script: every passage and every document name once.

    readings: of every token [head, passage, weight, head, passage, weight, ...]
    gates: of every head; pointer: the weight of a pointer, which differs from token to token (or null)
    """
    numbers, documents, readings = {}, {}, []
    gates, pointer = {}, []
    for _, passages in inspection.readings:
        reading = []
        pointer.append(round(passages[0].gate, 3) if passages else 0)
        for passage in passages:
            gates.setdefault(passage.head, set()).add(round(passage.gate, 3))
            document = documents.setdefault(passage.document, len(documents))
            place = (document, passage.offset, passage.before, passage.text, passage.after)
            number = numbers.setdefault(place, len(numbers))
            reading += [passage.head, number, round(passage.weight, 3)]
        readings.append(reading)
    return {
        "tokens": [reading.token for reading in inspection.readings],
        "logProbs": [round(float(value), 3) for value in inspection.log_probs],
        "gains": [round(float(value), 3) for value in inspection.gain],
        "gates": {head: max(values) for head, values in gates.items()},
        "pointer": pointer if any(len(values) > 1 for values in gates.values()) else None,
        "documents": list(documents),
        "passages": list(numbers),
        "readings": readings,
    }


def _plot(bars: List[Bar]) -> str:
    """Horizontal bars with their standard errors, as SVG."""
    low = min(0.0, *(bar.mean - bar.error for bar in bars))
    high = max(0.0, *(bar.mean + bar.error for bar in bars))
    scale = (WIDTH - LABEL - VALUE) / (high - low or 1)

    def x(value: float) -> str:
        return f"{LABEL + (value - low) * scale:.1f}"

    rows = []
    for i, bar in enumerate(bars):
        middle = ROW * i + ROW / 2
        left, width = x(min(0, bar.mean)), abs(bar.mean) * scale
        kind = "up" if bar.mean >= 0 else "down"
        rows.append(
            f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>'
            f'<rect class="{kind}" x="{left}" y="{middle - 8}" width="{width:.1f}" height="16"/>'
            f'<line x1="{x(bar.mean - bar.error)}" x2="{x(bar.mean + bar.error)}" '
            f'y1="{middle}" y2="{middle}"/>'
            f'<text x="{WIDTH - VALUE + 10}" y="{middle + 4}">{bar.mean:+.3f} ({bar.count:,})</text>'
        )
    height = ROW * len(bars)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="plot-title">{"".join(rows)}'
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{height}"/></svg>'
    )
