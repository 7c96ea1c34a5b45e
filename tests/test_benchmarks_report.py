"""report.py: tables and plots of every kind of benchmark, with the paper's numbers."""

import json

import pytest

import report
import report_tables
from tests.benchmark_runs import assert_one_line, call


def icl(name, task, seed, accuracy, memory=2000):
    setting = {"task": task, "shots": 20, "memory_demonstrations": memory, "scoring": "argmax"}
    result = {"benchmark": "icl", "name": name, "setting": setting, "seed": seed}
    return {**result, "accuracy": accuracy, "majority": 0.5}


def chapterbreak(name, context, accuracy):
    setting = {"split": "ao3", "context": context, "suffix": 128}
    result = {"benchmark": "chapterbreak", "name": name, "setting": setting, "seed": None}
    return {**result, "items": 10, "accuracy": accuracy, "chance": 1 / 6}


def squad(seed, em, f1):
    setting = {"shots": 3, "memory_demonstrations": 200}
    result = {"benchmark": "squad", "name": "longmem", "setting": setting, "seed": seed}
    return {**result, "questions": 100, "exact_match": em, "f1": f1}


def needle(name, grid):
    setting = {"format": "recall", "lengths": [1024, 2048], "depths": [0.0, 1.0], "trials": 2}
    result = {"benchmark": "needle", "name": name, "setting": setting, "seed": None}
    return {**result, "grid": grid, "accuracy": 0.5, "chance": 0.025}


def books(name, ppl):
    bucket = {
        "from": 5000,
        "to": 10_000,
        "documents": 2,
        "tokens": 14_000,
        "ppl": ppl,
        "word_ppl": 9.0,
    }
    last = {**bucket, "from": 1_000_000, "to": None, "documents": 1}
    result = {"benchmark": "books", "name": name, "memory": "own", "tokens": 1_014_000, "ppl": ppl}
    positions = [{"from": 0, "to": 1024, "tokens": 10, "ppl": ppl}]
    return {**result, "word_ppl": 9.0, "by_length": [bucket, last], "by_position": positions}


CASES = {
    "icl": (
        [
            icl("longmem", "MR", 1, 0.6),
            icl("longmem", "MR", 2, 0.8),
            icl("longmem", "MR", 2, 0.7),  # run again: counts
            icl("longmem", "Subj", 1, 0.5),
            icl("backbone", "MR", 1, 0.25, memory=0),
        ],
        [
            "| model | scoring | in context | in memory | MR | Subj | mean |",
            "| longmem | argmax | 20 | 2,000 | 65.0 ± 5.0 | 50.0 | 57.5 |",
            "| backbone | argmax | 20 | 0 | 25.0 |  |  |",
            "| the most frequent label |  |  |  | 50.0% | 50.0% |  |",
            "| paper: LongMem | argmax | 20 | 2,000 |  |  | 66.7 |",
        ],
    ),
    "chapterbreak": (
        [chapterbreak("longmem", 8192, 0.3), chapterbreak("longmem", 4096, 0.2)],
        [
            "| model | items | 4,096 tokens | 8,192 tokens |",
            "| longmem | 10 | 20.0% | 30.0% |",
            "| chance |  | 16.7% | 16.7% |",
            "| paper: LongMem (AO3) |  | 37.7% | 40.5% |",
        ],
    ),
    "squad": (
        [squad(1, 10.0, 20.0), squad(2, 20.0, 40.0)],
        [
            "| longmem | 100 | 3 | 200 | 15.00 ± 5.00 | 30.00 ± 10.00 |",
            "| paper: GPT-2* | 10,570 | 3 | 0 | 22.28 | 30.78 |",
        ],
    ),
    "needle": (
        [needle("longmem", [[1.0, 0.5], [0.5, 0.5]]), needle("backbone", [[0.0, 0.0], [0.0, 0.0]])],
        [
            "| model | 1,024 | 2,048 |",
            "| longmem | 75.0% | 50.0% |",
            "| backbone | 0.0% | 0.0% |",
            "| chance | 2.5% | 2.5% |",
        ],
    ),
    "books": (
        [books("backbone", 4.0), books("longmem", 3.0)],
        [
            "| longmem | 1,014,000 | 3.000 | 9.00 | 0.7500 |",
            "| document of | 5k-10k | > 1M |",
            "| documents | 2 | 1 |",
            "| longmem | 3.00 (9.0) | 3.00 (9.0) |",
            "| paper: LongMem | 21.29 | 16.71 |",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tables_and_plots(case, tmp_path, monkeypatch, capsys):
    results, expected = CASES[case]
    path, plot = tmp_path / "results.jsonl", tmp_path / "plot.png"
    path.write_text("".join(json.dumps(line) + "\n" for line in results))
    call(monkeypatch, report.main, "report.py", path, "--plot", plot)
    table = capsys.readouterr().out.splitlines()
    for line in expected:
        assert line in table
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_papers_ratio_on_arxiv(tmp_path, monkeypatch, capsys):
    lines = [
        {**books(name, ppl), "benchmark": "arxiv"} for name, ppl in (("backbone", 8), ("l", 6))
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call(monkeypatch, report.main, "report.py", tmp_path / "r.jsonl")
    table = capsys.readouterr().out.splitlines()
    assert "| l | 1,014,000 | 6.000 | 9.00 | 0.7500 |" in table
    assert "| paper: LongMem |  | 10.05 |  | 0.9095 |" in table


def test_several_benchmarks_in_one_file(tmp_path, monkeypatch, capsys):
    results = [*CASES["squad"][0], *CASES["needle"][0]]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in results))
    call(monkeypatch, report.main, "report.py", path)
    out = capsys.readouterr().out
    assert out.startswith("## squad\n") and "\n\n## needle\n" in out
    arguments = (path, "--plot", tmp_path / "plot.png")
    message = assert_one_line(monkeypatch, capsys, report.main, "report.py", *arguments)
    assert "is for one benchmark, but" in message and "has squad, needle" in message


@pytest.mark.parametrize(
    "start, stop, name",
    [(0, 5000, "< 5k"), (500_000, 1_000_000, "500k-1M"), (1_000_000, None, "> 1M")],
)
def test_names_of_lengths(start, stop, name):
    assert report_tables.length_name(start, stop) == name
