#!/usr/bin/env python3
"""Table, plot and results.json from the JSON lines of eval/evaluate.py.

Example:
    python eval/report.py runs/quickstart/results.jsonl --plot runs/quickstart/results.png

The last line of each name counts. results.json beside the lines holds, per name, tokens, ppl,
word_ppl and, for a corpus with questions, recall within and beyond the window, questions, chance.
"""

import argparse
import json
from pathlib import Path
from typing import Dict, List

import matplotlib

from longmem_fairseq.cli import run
from stream_scoring import read_json_lines

KEPT = ("tokens", "ppl", "word_ppl", "memory", "recall", "questions", "chance")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("results", type=Path, help="file of JSON lines written by eval/evaluate.py")
    add("--plot", type=Path, help="PNG to write")
    add("--baseline", default="backbone", help="name that the others are compared with")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    results = {line["name"]: line for line in read_json_lines(args.results)}
    if not results:
        raise ValueError(f"{args.results} holds no results: run eval/evaluate.py first")
    summary = {
        name: {key: result[key] for key in KEPT if key in result}
        for name, result in results.items()
    }
    path = args.results.with_name("results.json")
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(results, args.baseline)))
    if args.plot:
        plot(results, args.plot)
        print(f"\n{path} and {args.plot} written")


def table(results: Dict[str, Dict], baseline: str) -> List[str]:
    """Markdown: perplexities and their ratio to the baseline's, recall where there are questions."""
    header = ["model", "tokens", "ppl", "per word", f"ppl / {baseline}"]
    asks = any("recall" in result for result in results.values())
    if asks:
        header += ["recall within", "beyond the window"]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name, result in results.items():
        row = [name, f"{result['tokens']:,}", f"{result['ppl']:.3f}", f"{result['word_ppl']:.2f}"]
        base = results.get(baseline)
        row.append(f"{result['ppl'] / base['ppl']:.4f}" if base else "")
        if asks:
            recall = result.get("recall", {})
            for where in ("within", "beyond"):
                share = recall.get(where)
                row.append(f"{100 * share:.1f}%" if share is not None else "")
        lines.append(row)
    return ["| " + " | ".join(line) + " |" for line in lines]


def plot(results: Dict[str, Dict], path: Path) -> None:
    """Recall by distance where there are questions, else perplexity by position."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, result in results.items():
        if "recall_by_distance" in result:
            buckets = result["recall_by_distance"]
            values = [100 * bucket["recall"] for bucket in buckets]
            axes.set(xlabel="tokens since the fact was last mentioned", ylabel="answers right (%)")
        else:
            buckets = [bucket for bucket in result["by_position"] if bucket["tokens"]]
            values = [bucket["ppl"] for bucket in buckets]
            axes.set(xlabel="position in the document (tokens)", ylabel="perplexity")
        axes.plot([bucket["to"] for bucket in buckets], values, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
