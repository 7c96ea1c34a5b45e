"""Perplexity and recall of documents: their summary, tables, plot, and the paper's numbers."""

from pathlib import Path
from typing import Dict, Iterator, List, Optional

import numpy as np

from eval.common.stream_scoring import mean_loss, perplexity
from eval.common.tables import PAPER_BACKBONE, PAPER_LONGMEM, decimal, markdown, percent, ratio

# in tokens: the paper's buckets (section 4.2), and one for shorter documents
LENGTHS = (0, 5_000, 10_000, 100_000, 500_000, 1_000_000, None)
# PG-22, perplexity per token by length of the book; the first token of each bucket
PAPER_BOOKS = {
    PAPER_BACKBONE: {5_000: 22.78, 10_000: 24.39, 100_000: 24.12, 500_000: 24.97, 1_000_000: 18.07},
    PAPER_LONGMEM: {5_000: 21.29, 10_000: 23.01, 100_000: 22.55, 500_000: 23.35, 1_000_000: 16.71},
}
PAPER_ARXIV = {PAPER_BACKBONE: 11.05, PAPER_LONGMEM: 10.05}  # perplexity per token


def summarize(records: List[Dict]) -> Dict:
    """Perplexity per token and per word, per document, by its length, and by position in it."""
    return {
        **perplexities(records),
        "by_length": by_length(records),
        "by_position": by_position(records),
        "documents": [
            {"name": r["name"], "tokens": r["tokens"], "ppl": perplexity(r["nll"], r["tokens"])}
            for r in records
        ],
    }


def perplexities(records: List[Dict]) -> Dict:
    """Tokens, words, loss (nats per token) and perplexities of all records together."""
    tokens, words, nll = (
        sum(record[key] for record in records) for key in ("tokens", "words", "nll")
    )
    return {
        "tokens": tokens,
        "words": words,
        "loss": mean_loss(nll, tokens),
        "ppl": perplexity(nll, tokens),
        "word_ppl": perplexity(nll, words),
    }


def by_length(records: List[Dict]) -> List[Dict]:
    """Perplexities of the documents in each of the paper's buckets that has any."""
    buckets = []
    for start, stop in zip(LENGTHS, LENGTHS[1:], strict=False):
        chosen = [r for r in records if start <= r["tokens"] < (stop or float("inf"))]
        if chosen:
            bucket = {"from": start, "to": stop, "documents": len(chosen)}
            buckets.append({**bucket, **perplexities(chosen)})
    return buckets


def positions(num_tokens: int) -> Iterator[slice]:
    """The tokens 0 to 1k, 1k to 2k, 2k to 4k, ... of a document; the last may be beyond its end."""
    start, stop = 0, 1024
    while start < num_tokens:
        yield slice(start, stop)
        start, stop = stop, 2 * stop


def by_position(records: List[Dict]) -> List[Dict]:
    """Perplexity of the tokens of all documents at each of :func:`positions`."""
    buckets = []
    for place, tokens_at in enumerate(positions(max(record["tokens"] for record in records))):
        parts = [r["by_position"][place] for r in records if place < len(r["by_position"])]
        tokens, nll = (sum(column) for column in zip(*parts, strict=True))
        bucket = {"from": tokens_at.start, "to": tokens_at.stop, "tokens": tokens}
        buckets.append({**bucket, "ppl": perplexity(nll, tokens)})
    return buckets


def recall(records: List[Dict], questions: List[Dict], segment: int, overlap: int = 0) -> Dict:
    """Share of the answers of which every token was the first choice.

    Args:
        questions: about these documents
        segment: tokens of a segment
        overlap: of these, tokens that the segment before has too
    """
    answers = {number: iter(record["answers"]) for number, record in enumerate(records)}
    right = np.array([next(answers[question["document"]]) for question in questions], dtype=bool)
    # target p is predicted by input p of the document; a mentioned token is input p + 1
    stride = segment - overlap
    visible = np.array(
        [q["mention"] + 1 >= q["position"] // stride * stride - overlap for q in questions],
        dtype=bool,
    )
    distance = np.array([q["distance"] for q in questions])
    beyond = distance > segment
    edges = [1, *(2**power for power in range(5, 1 + max(5, int(distance.max()).bit_length())))]
    by_distance = []
    for start, stop in zip(edges, edges[1:], strict=False):
        chosen = (distance >= start) & (distance < stop)
        if chosen.any():
            by_distance.append(
                {
                    "from": start,
                    "to": stop,
                    "questions": int(chosen.sum()),
                    "recall": float(right[chosen].mean()),
                }
            )
    return {
        "questions": {"within": int(visible.sum()), "beyond": int(beyond.sum())},
        "recall": {
            "within": float(right[visible].mean()) if visible.any() else None,
            "beyond": float(right[beyond].mean()) if beyond.any() else None,
        },
        "recall_by_distance": by_distance,
    }


def table(results: Dict[str, Dict], baseline: str) -> List[str]:
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
        for name, ppl in PAPER_ARXIV.items():
            row = [name, "", f"{ppl:.2f}", ""]
            row += [ratio(ppl, PAPER_ARXIV[PAPER_BACKBONE])] if base else []
            rows.append(row + [""] * (len(header) - len(row)))
    return markdown(rows)


def table_by_length(results: Dict[str, Dict]) -> List[str]:
    """Perplexity per token (and per word) by length of the document; the paper's for books."""
    starts = {b["from"]: b["to"] for r in results.values() for b in r["by_length"]}
    order = sorted(starts)
    header = ["document of"] + [length_name(start, starts[start]) for start in order]
    rows, before = [header], None
    for name, result in results.items():
        buckets = {bucket["from"]: bucket for bucket in result["by_length"]}
        counts = [f"{buckets[s]['documents']:,}" if s in buckets else "" for s in order]
        if counts != before:  # of the rows that follow
            rows.append(["documents", *counts])
            before = counts
        cells = [
            f"{decimal(buckets[s]['ppl'], 2)} ({decimal(buckets[s]['word_ppl'], 1)})"
            if s in buckets
            else ""
            for s in order
        ]
        rows.append([name, *cells])
    if _benchmark(results) == "books":
        for name, by_start in PAPER_BOOKS.items():
            rows.append([name, *(f"{by_start[s]:.2f}" if s in by_start else "" for s in order)])
    return markdown(rows)


def length_name(start: int, stop: Optional[int]) -> str:
    """A bucket of lengths in words, such as 10k-100k tokens."""

    def short(count: int) -> str:
        return f"{count // 1_000_000}M" if count >= 1_000_000 else f"{count // 1000}k"

    if stop is None:
        return f"> {short(start)}"
    return f"{short(start)}-{short(stop)}" if start else f"< {short(stop)}"


def _benchmark(results: Dict[str, Dict]) -> str:
    return next(iter(results.values())).get("benchmark", "")


def plot(results: Dict[str, Dict], path: Path) -> None:
    """Recall by distance where there are questions, else perplexity by position."""
    from eval.common.plots import plt, save  # matplotlib, which takes a while

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
    save(figure, path)
