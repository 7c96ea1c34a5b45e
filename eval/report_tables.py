"""Markdown tables of result lines, a function for each kind of benchmark, with the paper's numbers."""

import statistics
from typing import Dict, Iterable, List, Optional, Sequence

import paper_numbers


def markdown(rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table whose first row is the header; all columns but the first are numbers."""
    header, *rest = rows
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *rest]
    return ["| " + " | ".join(row) + " |" for row in rows]


def perplexities(results: Dict[str, Dict], baseline: str) -> List[str]:
    """Perplexities, their ratio to the baseline's if that is there, recall where there are questions.

    Args:
        results: the last line of each name
    """
    header = ["model", "tokens", "ppl", "per word"]
    base = results.get(baseline)
    header += [f"ppl / {baseline}"] if base else []
    asks = any("recall" in result for result in results.values())
    if asks:
        header += ["recall within", "beyond the window"]
    rows = [header]
    for name, result in results.items():
        row = [name, f"{result['tokens']:,}", f"{result['ppl']:.3f}", f"{result['word_ppl']:.2f}"]
        row += [f"{result['ppl'] / base['ppl']:.4f}"] if base else []
        if asks:
            recall = result.get("recall", {})
            row += [percent(recall.get(where)) for where in ("within", "beyond")]
        rows.append(row)
    if _benchmark(results) == "arxiv":
        for name, ppl in paper_numbers.ARXIV.items():
            ratio = ppl / paper_numbers.ARXIV[paper_numbers.BACKBONE]
            row = [name, "", f"{ppl:.2f}", "", *([f"{ratio:.4f}"] if base else [])]
            rows.append(row + [""] * (len(header) - len(row)))
    return markdown(rows)


def lengths(results: Dict[str, Dict]) -> List[str]:
    """Perplexity per token (and per word) by length of the document; the paper's for books."""
    starts = {b["from"]: b["to"] for r in results.values() for b in r["by_length"]}
    order = sorted(starts)
    header = ["document of"] + [length_name(start, starts[start]) for start in order]
    rows = [header]
    for name, result in results.items():
        found = {bucket["from"]: bucket for bucket in result["by_length"]}
        if len(rows) == 1:
            counts = [f"{found[s]['documents']:,}" if s in found else "" for s in order]
            rows.append(["documents", *counts])
        cells = [
            f"{found[s]['ppl']:.2f} ({found[s]['word_ppl']:.1f})" if s in found else ""
            for s in order
        ]
        rows.append([name, *cells])
    if _benchmark(results) == "books":
        for name, by_start in paper_numbers.BOOKS.items():
            rows.append([name, *(f"{by_start[s]:.2f}" if s in by_start else "" for s in order)])
    return markdown(rows)


def icl(lines: List[Dict]) -> List[str]:
    """Accuracy (%) by task, mean and standard deviation over the seeds, and the mean of the tasks."""
    tasks = list(dict.fromkeys(line["setting"]["task"] for line in lines))
    groups: Dict[tuple, Dict[str, List[float]]] = {}
    for line in lines:
        setting = line["setting"]
        key = (line["name"], setting["scoring"], setting["shots"], setting["memory_demonstrations"])
        groups.setdefault(key, {}).setdefault(setting["task"], []).append(100 * line["accuracy"])
    rows = [["model", "scoring", "in context", "in memory", *tasks, "mean"]]
    for (name, scoring, shots, memory), found in groups.items():
        cells = [mean_and_deviation(found.get(task, [])) for task in tasks]
        means = [statistics.mean(found[task]) for task in tasks if task in found]
        mean = f"{statistics.mean(means):.1f}" if len(means) == len(tasks) else ""
        rows.append([name, scoring, f"{shots:,}", f"{memory:,}", *cells, mean])
    majority = {line["setting"]["task"]: line["majority"] for line in lines}
    rows.append(["the most frequent label", "", "", "", *(percent(majority[t]) for t in tasks), ""])
    for name, mean in paper_numbers.ICL_20_SHOTS.items():
        memory = "2,000" if name == paper_numbers.LONGMEM else "0"
        rows.append([name, "argmax", "20", memory, *[""] * len(tasks), f"{mean:.1f}"])
    return markdown(rows)


def chapterbreak(lines: List[Dict]) -> List[str]:
    """Accuracy (%) by tokens of context."""
    contexts = sorted({line["setting"]["context"] for line in lines})
    rows = [["model", "items", *(f"{context:,} tokens" for context in contexts)]]
    found: Dict[str, Dict[int, Dict]] = {}
    for line in lines:
        found.setdefault(line["name"], {})[line["setting"]["context"]] = line
    for name, by_context in found.items():
        items = max(line["items"] for line in by_context.values())
        cells = [percent(by_context.get(c, {}).get("accuracy")) for c in contexts]
        rows.append([name, f"{items:,}", *cells])
    rows.append(["chance", "", *[percent(lines[-1]["chance"])] * len(contexts)])
    for name, by_context in paper_numbers.CHAPTERBREAK_AO3.items():
        cells = [f"{by_context[c]:.1f}%" if c in by_context else "" for c in contexts]
        rows.append([f"{name} (AO3)", "", *cells])
    return markdown(rows)


def squad(lines: List[Dict]) -> List[str]:
    """Exact match and F1 (%), mean and standard deviation over the seeds."""
    groups: Dict[tuple, List[Dict]] = {}
    for line in lines:
        key = (
            line["name"],
            line["setting"]["shots"],
            line["setting"]["memory_demonstrations"],
            line["questions"],
        )
        groups.setdefault(key, []).append(line)
    rows = [["model", "questions", "in context", "in memory", "exact match", "F1"]]
    for (name, shots, memory, questions), found in groups.items():
        metrics = [
            mean_and_deviation([line[metric] for line in found], digits=2)
            for metric in ("exact_match", "f1")
        ]
        rows.append([name, f"{questions:,}", f"{shots:,}", f"{memory:,}", *metrics])
    for name, metrics in paper_numbers.SQUAD.items():
        memory = "200" if name == paper_numbers.LONGMEM else "0"
        rows.append([name, "10,570", "3", memory, *(f"{metric:.2f}" for metric in metrics)])
    return markdown(rows)


def needle(lines: List[Dict]) -> List[str]:
    """Needles found (%) by tokens in memory, mean over the depths."""
    lengths_of = [line["setting"]["lengths"] for line in lines]
    columns = sorted(set().union(*lengths_of))
    rows = [["model", *(f"{length:,}" for length in columns)]]
    for line in lines:
        by_length = dict(
            zip(line["setting"]["lengths"], zip(*line["grid"], strict=True), strict=True)
        )
        cells = [
            percent(statistics.mean(by_length[length])) if length in by_length else ""
            for length in columns
        ]
        rows.append([line["name"], *cells])
    rows.append(["chance", *[f"{100 * lines[-1]['chance']:.3g}%"] * len(columns)])
    return markdown(rows)


def percent(share: Optional[float]) -> str:
    return f"{100 * share:.1f}%" if share is not None else ""


def mean_and_deviation(values: Iterable[float], digits: int = 1) -> str:
    """As the paper reports several seeds; its deviation is that of these values, not of a sample."""
    values = list(values)
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.pstdev(values):.{digits}f}" if len(values) > 1 else mean


def length_name(start: int, stop: Optional[int]) -> str:
    """A bucket of lengths in words, such as 10k-100k tokens."""

    def short(count: int) -> str:
        return f"{count // 1_000_000}M" if count >= 1_000_000 else f"{count // 1000}k"

    if stop is None:
        return f"> {short(start)}"
    return f"{short(start)}-{short(stop)}" if start else f"< {short(stop)}"


def _benchmark(results: Dict[str, Dict]) -> str:
    return next(iter(results.values())).get("benchmark", "")
