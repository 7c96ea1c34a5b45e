"""Which lines of a file of results count, and what to call them."""

import json
from collections import defaultdict
from typing import Any, Callable, Dict, List, Sequence

# how it was measured, besides the options of the memory and the rest of the setting
CONDITIONS = (
    *("tokens_per_sample", "segment_overlap", "compute_dtype", "hardware"),
    *("data", "split", "limit", "memory", "memory_writer"),
)
COUNTS = ("examples", "tokens")


def told_apart(lines: List[Dict], shown: Sequence[str]) -> List[Dict]:
    """The lines that count, in the order of their first appearance, with their "label".

    That is the name, and after it what the table does not show and lines of that name differ in. What
    a line does not say, as older ones do not, is no difference. Of lines that are alike in their label,
    in what the table shows of their setting, and in the seed the last counts.

    Args:
        shown: what the table shows of a line besides; nothing of perplexities
    """
    lines = [{**line, "label": str(line["name"])} for line in lines]

    def place(line: Dict) -> List:
        said = {**line, **line.get("setting", {})}
        return [line["label"], *(said.get(field) for field in shown), line.get("seed")]

    def conditions(line: Dict) -> Dict:
        found = {field: line[field] for field in CONDITIONS if field in line}
        if "memory_options" in line:
            found.update(line["memory_options"] or {"memory_size": 0})
        found.update((f, v) for f, v in line.get("setting", {}).items() if f not in shown)
        # seeds of other benchmarks are averaged
        return found if shown else {**found, "seed": line.get("seed")}

    _add_differences(lines, lambda line: line["label"], conditions)
    _add_differences(lines, place, lambda line: {f: line[f] for f in COUNTS if f in line})
    return list({json.dumps(place(line)): line for line in lines}.values())


def _add_differences(
    lines: List[Dict], group_of: Callable[[Dict], Any], fields_of: Callable[[Dict], Dict]
) -> None:
    """Adds to the labels the fields that differ within a group of lines."""
    said = defaultdict(set)
    for line in lines:
        for field, value in fields_of(line).items():
            said[json.dumps(group_of(line)), field].add(json.dumps(value))
    for line in lines:
        group = json.dumps(group_of(line))
        differing = [
            f"{field} {_short(value)}"
            for field, value in fields_of(line).items()
            if len(said[group, field]) > 1
        ]
        if differing:
            line["label"] += f" ({', '.join(differing)})"


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return len(value)  # depths
    return "none" if value in (None, "") else value
