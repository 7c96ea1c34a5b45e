"""The lines of a file of results that count, and their labels."""

import json
from collections import defaultdict
from typing import Any, Callable, Dict, List, Sequence

# conditions of a measurement, besides the options of the memory and the rest of the setting
CONDITIONS = (
    *("tokens_per_sample", "segment_overlap", "compute_dtype", "hardware"),
    *("data", "split", "limit", "memory", "memory_writer", "excerpts", "words_only"),
)
COUNTS = ("examples", "tokens")


def told_apart(lines: List[Dict], shown: Sequence[str]) -> List[Dict]:
    """The lines that count, in the order of their first appearance, with their "label".

    The label is the name, followed by the settings in which lines of that name differ and that the
    table omits. A field that a line lacks, as older lines do, is no difference. Of lines with the same
    label, seed and settings in the table the last one counts.

    Args:
        shown: fields that the table shows beside the label; none for perplexities
    """
    lines = [{**line, "label": str(line["name"])} for line in lines]

    def place(line: Dict) -> List:
        fields = {**line, **line.get("setting", {})}
        return [line["label"], *(fields.get(field) for field in shown), line.get("seed")]

    def conditions(line: Dict) -> Dict:
        fields = {field: line[field] for field in CONDITIONS if field in line}
        if "memory_options" in line:
            fields.update(line["memory_options"] or {"memory_size": 0})
        fields.update((f, v) for f, v in line.get("setting", {}).items() if f not in shown)
        # other benchmarks average over seeds
        return fields if shown else {**fields, "seed": line.get("seed")}

    _add_differences(lines, lambda line: line["label"], conditions)
    _add_differences(lines, place, lambda line: {f: line[f] for f in COUNTS if f in line})
    return list({json.dumps(place(line)): line for line in lines}.values())


def _add_differences(
    lines: List[Dict], group_of: Callable[[Dict], Any], fields_of: Callable[[Dict], Dict]
) -> None:
    """Adds to the labels the fields that differ within a group of lines."""
    values = defaultdict(set)
    for line in lines:
        for field, value in fields_of(line).items():
            values[json.dumps(group_of(line)), field].add(json.dumps(value))
    for line in lines:
        group = json.dumps(group_of(line))
        differing = [
            f"{field} {_short(value)}"
            for field, value in fields_of(line).items()
            if len(values[group, field]) > 1
        ]
        if differing:
            line["label"] += f" ({', '.join(differing)})"


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return len(value)  # depths
    return "none" if value in (None, "") else value
