#!/usr/bin/env python3
"""Tables, with the paper's numbers, plot and summary from the JSON lines of a benchmark.

Example:
    python -m eval.report runs/quickstart/results.jsonl --plot runs/quickstart/results.png

Where a measurement was repeated its last line counts. Lines of one name with different settings (memory
options, data, --limit, ...) are rows of their own, whose names say the difference. For perplexities,
results.json, beside results.jsonl, then holds by benchmark and name: tokens, ppl, word_ppl and, for a
corpus with questions, recall within and beyond the window, questions, chance.
"""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Dict, List, Optional

from eval import perplexities
from eval.common.labels import told_apart
from eval.common.results import check_results, read_json_lines
from longmem_fairseq.commands.options import check_writable
from longmem_fairseq.utils.cli import run, script_parser

# modules with a table and a plot of their own; the lines of all others are perplexities
BENCHMARKS = ("babilong", "chapterbreak", "efficiency", "icl", "needle", "ruler", "squad")
KEPT = ("tokens", "ppl", "word_ppl", "memory", "recall", "questions", "chance")


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("results", type=Path, help="file of JSON lines that a benchmark of eval/ wrote")
    add("--plot", type=Path, help="PNG to write")
    add("--baseline", default="backbone", help="name that the other perplexities are compared with")
    return parser


def by_benchmark(lines: List[Dict]) -> Dict[str, List[Dict]]:
    """The lines of every benchmark, in the order of their first appearance."""
    groups: Dict[str, List[Dict]] = {}
    for line in lines:
        groups.setdefault(str(line.get("benchmark", "perplexity")), []).append(line)
    return groups


def report_perplexities(args: argparse.Namespace, benchmark: str, lines: List[Dict]) -> Dict:
    """Prints the tables and draws the plot; returns the summary, by name."""
    results = {line["label"]: line for line in lines}
    print("\n".join(perplexities.table(results, args.baseline)))
    buckets = {b["from"] for line in lines for b in line.get("by_length", [])}
    # the paper's numbers for books are in this table alone
    if len(buckets) > 1 or benchmark == "books":
        print("\nPerplexity per token (per word) by length of the document, in tokens:\n")
        print("\n".join(perplexities.table_by_length(results)))
    if args.plot:
        perplexities.plot(results, args.plot)
    return {
        name: {key: result[key] for key in KEPT if key in result}
        for name, result in results.items()
    }


def report(args: argparse.Namespace, benchmark: str, lines: List[Dict]) -> Optional[Dict]:
    """Prints the table of one benchmark and draws its plot; returns the summary of perplexities.

    Raises:
        ValueError: the lines are not those of its script
    """
    try:
        if benchmark not in BENCHMARKS:
            return report_perplexities(args, benchmark, told_apart(lines, ()))
        module = import_module(f"eval.{benchmark}")
        lines = told_apart(lines, module.SHOWN)
        print("\n".join(module.table(lines)))
        if args.plot:
            module.plot(lines, args.plot)
        return None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{args.results}: a line is no result of the benchmark {benchmark} ({error!r})"
        ) from error


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_results("results", args.results)
    if args.plot:
        check_writable("--plot", args.plot)
    benchmarks = by_benchmark(read_json_lines(args.results))
    if not benchmarks:
        raise ValueError(f"{args.results} holds no results: run eval/evaluate.py first")
    if args.plot and len(benchmarks) > 1:
        raise ValueError(
            f"--plot ({args.plot}) is for one benchmark, but {args.results} has {', '.join(benchmarks)}"
        )
    summaries = {}
    for number, (benchmark, lines) in enumerate(benchmarks.items()):
        if len(benchmarks) > 1:
            print(("\n" if number else "") + f"## {benchmark}\n")
        summaries[benchmark] = report(args, benchmark, lines)
    summaries = {benchmark: summary for benchmark, summary in summaries.items() if summary}
    if summaries:
        path = args.results.with_suffix(".json")
        path.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
        print(f"\n{path} written")


if __name__ == "__main__":
    run(main)
