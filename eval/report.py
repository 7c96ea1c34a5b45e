#!/usr/bin/env python3
"""Tables, with the paper's numbers, plot and summary from the JSON lines of a benchmark.

Example:
    python eval/report.py runs/quickstart/results.jsonl --plot runs/quickstart/results.png

Of lines with the same benchmark, name, setting and seed the last one counts. Of perplexities
results.json (beside results.jsonl) holds, per name, tokens, ppl, word_ppl and, for a corpus with
questions, recall within and beyond the window, questions, chance.
"""

import argparse
import json
from pathlib import Path
from typing import Dict, List

import report_plots
import report_tables
from longmem_fairseq.cli import run
from results import check_output, check_results, read_json_lines

KEPT = ("tokens", "ppl", "word_ppl", "memory", "recall", "questions", "chance")
KINDS = ("icl", "chapterbreak", "squad", "needle")  # any other benchmark's lines are perplexities


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("results", type=Path, help="file of JSON lines that a benchmark of eval/ wrote")
    add("--plot", type=Path, help="PNG to write")
    add("--baseline", default="backbone", help="name that the other perplexities are compared with")
    return parser


def by_benchmark(lines: List[Dict]) -> Dict[str, List[Dict]]:
    """Of every benchmark the lines that count, in the order of their first appearance."""
    chosen: Dict[str, Dict[str, Dict]] = {}
    for line in lines:
        benchmark = str(line.get("benchmark", "perplexity"))
        # perplexities of several seeds are told apart by their names
        parts = [line.get("name")]
        if benchmark in KINDS:
            parts += [line.get("setting"), line.get("seed")]
        chosen.setdefault(benchmark, {})[json.dumps(parts)] = line
    return {benchmark: list(found.values()) for benchmark, found in chosen.items()}


def report_perplexities(args: argparse.Namespace, lines: List[Dict]) -> None:
    """Prints the tables, draws the plot and writes the summary."""
    results = {line["name"]: line for line in lines}
    print("\n".join(report_tables.perplexities(results, args.baseline)))
    several = {b["from"] for line in lines for b in line.get("by_length", [])}
    if len(several) > 1:
        print("\nPerplexity per token (per word) by length of the document, in tokens:\n")
        print("\n".join(report_tables.lengths(results)))
    summary = {
        name: {key: result[key] for key in KEPT if key in result}
        for name, result in results.items()
    }
    path = args.results.with_suffix(".json")
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        report_plots.perplexities(results, args.plot)
        print(f"\n{path} and {args.plot} written")


def report(args: argparse.Namespace, benchmark: str, lines: List[Dict]) -> None:
    """Prints and draws what the lines of one benchmark say.

    Raises:
        ValueError: they are not what its script writes
    """
    try:
        if benchmark not in KINDS:
            report_perplexities(args, lines)
            return
        print("\n".join(getattr(report_tables, benchmark)(lines)))
        if args.plot:
            getattr(report_plots, benchmark)(lines, args.plot)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{args.results}: a line is no result of the benchmark {benchmark} ({error!r})"
        ) from error


def main() -> None:
    args = get_parser().parse_args()
    check_results("results", args.results)
    check_output(args.plot)
    benchmarks = by_benchmark(read_json_lines(args.results))
    if not benchmarks:
        raise ValueError(f"{args.results} holds no results: run eval/evaluate.py first")
    if args.plot and len(benchmarks) > 1:
        raise ValueError(
            f"--plot ({args.plot}) is for one benchmark, but {args.results} has {', '.join(benchmarks)}"
        )
    for number, (benchmark, lines) in enumerate(benchmarks.items()):
        if len(benchmarks) > 1:
            print(("\n" if number else "") + f"## {benchmark}\n")
        report(args, benchmark, lines)


if __name__ == "__main__":
    run(main)
