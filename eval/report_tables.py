"""Markdown tables of result lines, a function for each kind of benchmark, with the paper's numbers."""

import statistics
from typing import Dict, Iterable, List, Optional, Sequence

import paper_numbers
from results import decimal


def markdown(rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table whose first row is the header; all columns but the first are numbers."""
    header, *rest = rows
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *rest]
    return ["| " + " | ".join(row) + " |" for row in rows]


def perplexities(results: Dict[str, Dict], baseline: str) -> List[str]:
    """Perplexities, their ratio to the baseline's of as many tokens, recall where there are questions.

    Args:
        results: the line of each label
        baseline: its name
    """
    header = ["model", "tokens", "ppl", "per word"]
    base = {line["tokens"]: line["ppl"] for line in results.values() if line["name"] == baseline}
    header += [f"ppl / {baseline}"] if base else []
    asks = any("recall" in result for result in results.values())
    if asks:
        header += ["recall within", "beyond the window"]
    rows = [header]
    for name, result in results.items():
        tokens, ppl = result["tokens"], result["ppl"]
        row = [name, f"{tokens:,}", decimal(ppl, 3), decimal(result["word_ppl"], 2)]
        row += [ratio(ppl, base.get(tokens))] if base else []
        if asks:
            recall = result.get("recall", {})
            row += [percent(recall.get(where)) for where in ("within", "beyond")]
        rows.append(row)
    if _benchmark(results) == "arxiv":
        for name, ppl in paper_numbers.ARXIV.items():
            row = [name, "", f"{ppl:.2f}", ""]
            row += [ratio(ppl, paper_numbers.ARXIV[paper_numbers.BACKBONE])] if base else []
            rows.append(row + [""] * (len(header) - len(row)))
    return markdown(rows)


def lengths(results: Dict[str, Dict]) -> List[str]:
    """Perplexity per token (and per word) by length of the document; the paper's for books."""
    starts = {b["from"]: b["to"] for r in results.values() for b in r["by_length"]}
    order = sorted(starts)
    header = ["document of"] + [length_name(start, starts[start]) for start in order]
    rows, before = [header], None
    for name, result in results.items():
        found = {bucket["from"]: bucket for bucket in result["by_length"]}
        counts = [f"{found[s]['documents']:,}" if s in found else "" for s in order]
        if counts != before:  # of the rows that follow
            rows.append(["documents", *counts])
            before = counts
        cells = [
            f"{decimal(found[s]['ppl'], 2)} ({decimal(found[s]['word_ppl'], 1)})"
            if s in found
            else ""
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
        key = (
            line["label"],
            setting["scoring"],
            setting["shots"],
            setting["memory_demonstrations"],
        )
        groups.setdefault(key, {}).setdefault(setting["task"], []).append(100 * line["accuracy"])
    rows = [["model", "scoring", "in context", "in memory", *tasks, "mean"]]
    for (name, scoring, shots, memory), found in groups.items():
        cells = [mean_and_deviation(found.get(task, [])) for task in tasks]
        means = [statistics.mean(found[task]) for task in tasks if task in found]
        mean = f"{statistics.mean(means):.1f}" if len(means) == len(tasks) else ""
        rows.append([name, scoring, f"{shots:,}", f"{memory:,}", *cells, mean])
    majority: Dict[str, Dict[str, None]] = {}  # several where the number of examples differs
    for line in lines:
        majority.setdefault(line["setting"]["task"], {})[percent(line["majority"])] = None
    cells = [" / ".join(majority[task]) for task in tasks]
    rows.append(["the most frequent label", "", "", "", *cells, ""])
    for name, mean in paper_numbers.ICL_20_SHOTS.items():
        memory = "2,000" if name == paper_numbers.LONGMEM else "0"
        rows.append([name, "argmax", "20", memory, *[""] * len(tasks), f"{mean:.1f}"])
    return markdown(rows)


def chapterbreak(lines: List[Dict]) -> List[str]:
    """Accuracy (%) by tokens of context."""
    contexts = sorted({line["setting"]["context"] for line in lines})
    rows = [["model", "split", "suffix", "items", *(f"{context:,} tokens" for context in contexts)]]
    found: Dict[tuple, Dict[int, float]] = {}
    for line in lines:
        setting = line["setting"]
        key = (line["label"], setting["split"], setting["suffix"], line["items"])
        found.setdefault(key, {})[setting["context"]] = line["accuracy"]
    for (name, split, suffix, items), by_context in found.items():
        cells = [percent(by_context.get(context)) for context in contexts]
        rows.append([name, split, f"{suffix:,}", f"{items:,}", *cells])
    chances = dict.fromkeys((line["setting"]["split"], percent(line["chance"])) for line in lines)
    for split, chance in chances:
        rows.append(["chance", split, "", "", *[chance] * len(contexts)])
    for name, by_context in paper_numbers.CHAPTERBREAK_AO3.items():
        cells = [f"{by_context[c]:.1f}%" if c in by_context else "" for c in contexts]
        rows.append([name, "ao3", "", "", *cells])
    return markdown(rows)


def squad(lines: List[Dict]) -> List[str]:
    """Exact match and F1 (%), mean and standard deviation over the seeds."""
    groups: Dict[tuple, List[Dict]] = {}
    for line in lines:
        key = (
            line["label"],
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
    columns = sorted({length for line in lines for length in line["setting"]["lengths"]})
    rows = [["model", "format", *(f"{length:,}" for length in columns)]]
    found: Dict[tuple, Dict[int, float]] = {}
    for line in lines:
        by_length = found.setdefault((line["label"], line["setting"]["format"]), {})
        for length, shares in zip(
            line["setting"]["lengths"], zip(*line["grid"], strict=True), strict=True
        ):
            by_length[length] = statistics.mean(shares)
    for (name, form), by_length in found.items():
        rows.append([name, form, *(percent(by_length.get(length)) for length in columns)])
    chances = dict.fromkeys((line["setting"]["format"], line["chance"]) for line in lines)
    for form, chance in chances:
        rows.append(["chance", form, *[f"{100 * chance:.3g}%"] * len(columns)])
    return markdown(rows)


def efficiency(lines: List[Dict]) -> List[str]:
    """Tokens/s and GB of peak memory by tokens of context, with the ratio to the backbone's."""

    def place(line: Dict) -> tuple:
        setting = line["setting"]
        return setting["context"], setting["preset"], line["compute_dtype"], line["hardware"]

    def measured(line: Dict) -> tuple:
        peak = line["peak_bytes"]
        return line["tokens_per_second"], None if peak is None else peak / 1e9

    found: Dict[str, Dict[int, List[str]]] = {}
    base = {place(line): measured(line) for line in lines if line["name"] == "backbone"}
    for line in lines:
        of = None if line["name"] == "backbone" else base.get(place(line))
        by_context = found.setdefault(line["label"], {})
        by_context[line["setting"]["context"]] = _compared(measured(line), of)
    backbone = paper_numbers.EFFICIENCY[paper_numbers.BACKBONE]
    for name, by_context in paper_numbers.EFFICIENCY.items():
        of = {} if by_context is backbone else backbone
        found[name] = {c: _compared(pair, of.get(c)) for c, pair in by_context.items()}
    contexts = sorted({line["setting"]["context"] for line in lines})
    columns = [f"{what}, {context:,}" for context in contexts for what in ("tokens/s", "GB")]
    rows = [["model", *columns]]
    for name, by_context in found.items():
        rows.append([name, *(cell for c in contexts for cell in by_context.get(c, ["", ""]))])
    return markdown(rows)


def _compared(measured: Sequence, base: Optional[Sequence]) -> List[str]:
    """Tokens/s and GB, with their ratios to *base* in brackets."""
    cells = []
    for i, (value, form) in enumerate(zip(measured, (",.0f", ".3g"), strict=True)):
        cell = "-" if value is None else f"{value:{form}}"
        compares = base is not None and None not in (value, base[i])
        cells.append(f"{cell} ({value / base[i]:.2f})" if compares else cell)
    return cells


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


def length_name(start: int, stop: Optional[int]) -> str:
    """A bucket of lengths in words, such as 10k-100k tokens."""

    def short(count: int) -> str:
        return f"{count // 1_000_000}M" if count >= 1_000_000 else f"{count // 1000}k"

    if stop is None:
        return f"> {short(start)}"
    return f"{short(start)}-{short(stop)}" if start else f"< {short(stop)}"


def _benchmark(results: Dict[str, Dict]) -> str:
    return next(iter(results.values())).get("benchmark", "")
