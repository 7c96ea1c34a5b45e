"""report.py: tables and plots of every kind of benchmark, with the paper's numbers."""

import json

import pytest

from eval import perplexities, report
from tests.helpers.benchmark_runs import assert_one_line, call


def icl(name, task, seed, accuracy, memory=2000):
    setting = {"task": task, "shots": 20, "memory_demonstrations": memory, "scoring": "argmax"}
    result = {"benchmark": "icl", "name": name, "setting": setting, "seed": seed}
    return {**result, "accuracy": accuracy, "majority": 0.5}


def chapterbreak(name, context, accuracy, split="ao3", suffix=128, items=10, chance=1 / 6):
    setting = {"split": split, "context": context, "suffix": suffix}
    result = {"benchmark": "chapterbreak", "name": name, "setting": setting, "seed": None}
    return {**result, "items": items, "accuracy": accuracy, "chance": chance}


def squad(seed, em, f1):
    setting = {"shots": 3, "memory_demonstrations": 200}
    result = {"benchmark": "squad", "name": "longmem", "setting": setting, "seed": seed}
    return {**result, "questions": 100, "exact_match": em, "f1": f1}


def needle(name, grid, form="recall", lengths=(1024, 2048), trials=2, chance=0.025):
    setting = {"format": form, "lengths": lengths, "depths": [0.0, 1.0], "trials": trials}
    result = {"benchmark": "needle", "name": name, "setting": setting, "seed": None}
    return {**result, "grid": grid, "accuracy": 0.5, "chance": chance}


def efficiency(name, context, speed, peak, **more):
    setting = {"context": context, "preset": more.pop("preset", "small")}
    setting.update({"k": 64} if name == "longmem" else {})
    result = {"benchmark": "efficiency", "name": name, "setting": setting, "seed": None}
    result.update(hardware="a CPU", compute_dtype="bfloat16", **more)
    return {**result, "tokens_per_second": speed, "peak_bytes": peak}


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
            "| model | split | suffix | items | 4,096 tokens | 8,192 tokens |",
            "| longmem | ao3 | 128 | 10 | 20.0% | 30.0% |",
            "| chance | ao3 |  |  | 16.7% | 16.7% |",
            "| paper: LongMem | ao3 |  |  | 37.7% | 40.5% |",
        ],
    ),
    "chapterbreak, two splits": (
        [
            chapterbreak("longmem", 4096, 0.3),
            chapterbreak("longmem", 4096, 0.4, split="pg19", items=7, chance=0.25),
            chapterbreak("longmem", 4096, 0.5, suffix=64),
        ],
        [
            "| longmem | ao3 | 128 | 10 | 30.0% |",
            "| longmem | pg19 | 128 | 7 | 40.0% |",
            "| longmem | ao3 | 64 | 10 | 50.0% |",
            "| chance | ao3 |  |  | 16.7% |",
            "| chance | pg19 |  |  | 25.0% |",
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
            "| model | format | 1,024 | 2,048 |",
            "| longmem | recall | 75.0% | 50.0% |",
            "| backbone | recall | 0.0% | 0.0% |",
            "| chance | recall | 2.5% | 2.5% |",
        ],
    ),
    "needle, two formats, lengths one by one": (
        [
            needle("longmem", [[1.0], [0.5]], lengths=[1024]),
            needle("longmem", [[0.5], [0.5]], lengths=[2048]),
            needle("longmem", [[0.0], [0.5]], form="passkey", lengths=[2048], chance=1e-5),
        ],
        [
            "| longmem | recall | 75.0% | 50.0% |",
            "| longmem | passkey |  | 25.0% |",
            "| chance | recall | 2.5% | 2.5% |",
            "| chance | passkey | 0.001% | 0.001% |",
        ],
    ),
    "needle, other trials": (
        [needle("m", [[1.0, 0.0]] * 2), needle("m", [[0.5, 0.0]] * 2, trials=10)],
        ["| m (trials 2) | recall | 100.0% | 0.0% |", "| m (trials 10) | recall | 50.0% | 0.0% |"],
    ),
    "efficiency": (
        [
            efficiency("backbone", 4096, 631.0, 2_740_000_000),
            efficiency("longmem", 4096, 682.0, 1_240_000_000),
            efficiency("longmem", 8192, 684.0, None),  # the backbone's window did not fit
        ],
        [
            "| model | tokens/s, 4,096 | GB, 4,096 | tokens/s, 8,192 | GB, 8,192 |",
            "| backbone | 631 | 2.74 |  |  |",
            "| longmem | 682 (1.08) | 1.24 (0.45) | 684 | - |",
            "| paper: GPT-2* | 14,666 | 20.7 | 8,417 | 54.2 |",
            "| paper: LongMem | 22,638 (1.54) | 13.3 (0.64) | 21,343 (2.54) | 13.4 (0.25) |",
        ],
    ),
    "efficiency, two presets": (
        [
            efficiency("backbone", 512, 100.0, 10**9, preset="tiny"),
            efficiency("longmem", 512, 200.0, 10**9, preset="tiny"),
            efficiency("backbone", 512, 10.0, 10**10),
            efficiency("longmem", 512, 15.0, 10**10),
        ],
        [
            "| backbone (preset tiny) | 100 | 1 |",
            "| longmem (preset tiny) | 200 (2.00) | 1 (1.00) |",
            "| longmem (preset small) | 15 (1.50) | 10 (1.00) |",
        ],
    ),
    "books of one length": (
        [{**books("longmem", 3.0), "by_length": books("longmem", 3.0)["by_length"][:1]}],
        ["| document of | 5k-10k |", "| longmem | 3.00 (9.0) |", "| paper: LongMem | 21.29 |"],
    ),
    "perplexities that are none": (
        [{**books("longmem", None), "word_ppl": None}, books("backbone", 4.0)],
        [
            "| longmem | 1,014,000 | - | - |  |",
            "| longmem | - (9.0) | - (9.0) |",
            "| backbone | 1,014,000 | 4.000 | 9.00 | 1.0000 |",
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


def rows_of(lines, tmp_path, monkeypatch, capsys):
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call(monkeypatch, report.main, "report.py", tmp_path / "r.jsonl")
    return capsys.readouterr().out.splitlines()


def test_measurements_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    """Nothing but seeds is averaged, and nothing but a repetition replaces a line."""

    def memory(size, **more):
        return {"memory_options": {"memory_size": size, "k": 64, "heads": "query"}, **more}

    lines = [
        {**icl("m", "MR", 1, 0.1), **memory(64)},
        {**icl("m", "MR", 2, 0.2), **memory(64)},
        {**icl("m", "MR", 1, 0.4), **memory(128)},
        {**icl("m", "MR", 1, 0.5), **memory(128, limit=3)},  # others do not say
        {**icl("m", "MR", 1, 0.6), "memory_options": None},
        {**icl("m", "MR", 2, 0.3), **memory(64)},  # a repetition
    ]
    table = rows_of(lines, tmp_path, monkeypatch, capsys)
    assert table[2:5] == [
        "| m (memory_size 64) | argmax | 20 | 2,000 | 20.0 ± 10.0 | 20.0 |",
        "| m (memory_size 128) | argmax | 20 | 2,000 | 50.0 | 50.0 |",
        "| m (memory_size 0) | argmax | 20 | 2,000 | 60.0 | 60.0 |",
    ]
    for field, values in (
        ("limit", (None, 3)),
        ("compute_dtype", ("float32", "bfloat16")),
        ("excerpts", (256, 512)),
        ("words_only", (False, True)),
    ):
        lines = [{**squad(1, 10.0 * i, 0.0), field: value} for i, value in enumerate(values)]
        table = rows_of(lines, tmp_path, monkeypatch, capsys)
        assert table[2:4] == [
            f"| longmem ({field} {value}) | 100 | 3 | 200 | {10 * i:.2f} | 0.00 |"
            for i, value in enumerate("none" if value is None else value for value in values)
        ]


def test_older_lines_are_told_apart_by_their_number_of_examples(tmp_path, monkeypatch, capsys):
    lines = [{**icl("m", "MR", 1, 0.1 * n), "examples": n, "majority": 1 / n} for n in (1, 2, 2)]
    table = rows_of(lines, tmp_path, monkeypatch, capsys)
    assert "| the most frequent label |  |  |  | 100.0% / 50.0% |  |" in table
    assert [row.split(" | ")[0] for row in table[2:4]] == ["| m (examples 1)", "| m (examples 2)"]


def test_perplexities_are_compared_on_the_same_text(tmp_path, monkeypatch, capsys):
    lines = []
    for data, tokens, ppl in (("data/a", 10, 4.0), ("data/b", 20, 8.0)):
        for name, share in (("backbone", 1.0), ("longmem", 0.5)):
            line = {"name": name, "data": data, "split": "test", "seed": None, "tokens": tokens}
            lines.append({**line, "ppl": share * ppl, "word_ppl": 9.0})
    lines.append({**lines[-1], "seed": 7, "ppl": 2.0})
    table = rows_of(lines, tmp_path, monkeypatch, capsys)
    assert table[2:] == [
        "| backbone (data data/a) | 10 | 4.000 | 9.00 | 1.0000 |",
        "| longmem (data data/a, seed none) | 10 | 2.000 | 9.00 | 0.5000 |",
        "| backbone (data data/b) | 20 | 8.000 | 9.00 | 1.0000 |",
        "| longmem (data data/b, seed none) | 20 | 4.000 | 9.00 | 0.5000 |",
        "| longmem (data data/b, seed 7) | 20 | 2.000 | 9.00 | 0.2500 |",
        "",
        f"{tmp_path / 'r.json'} written",
    ]


def test_the_summary_has_every_benchmark_of_the_file(tmp_path, monkeypatch, capsys):
    lines = [books("longmem", 3.0), {**books("longmem", 2.0), "benchmark": "arxiv"}, squad(1, 1, 1)]
    rows_of(lines, tmp_path, monkeypatch, capsys)
    summary = json.loads((tmp_path / "r.json").read_text())
    kept = {"memory": "own", "tokens": 1_014_000, "word_ppl": 9.0}
    assert summary == {
        "books": {"longmem": {**kept, "ppl": 3.0}},
        "arxiv": {"longmem": {**kept, "ppl": 2.0}},
    }


@pytest.mark.parametrize(
    "start, stop, name",
    [(0, 5000, "< 5k"), (500_000, 1_000_000, "500k-1M"), (1_000_000, None, "> 1M")],
)
def test_names_of_lengths(start, stop, name):
    assert perplexities.length_name(start, stop) == name
