"""eval/benchmark_shards.py: one small run, and what the processes send by hand."""

import json

import pytest

from eval import benchmark_shards
from eval.common import hardware
from tests.helpers.benchmark_runs import assert_one_line

SMALL = (
    "benchmark_shards.py --processes 2 --sizes 4096 --heads 2 --head-dim 8 --repeats 1 "
    "--tokens-per-sample 8 --indices"
).split() + ["torch IVF16,Flat:nprobe=16"]


def test_run(tmp_path, monkeypatch, capfd):
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    monkeypatch.setattr("sys.argv", [*SMALL, "--json", str(report), "--plot", str(plot)])
    for rate in ("matmul_rate", "copy_rate"):  # which take seconds
        monkeypatch.setattr(hardware, rate, lambda *unused: 1e11)
    benchmark_shards.main()
    report = json.loads(report.read_text())
    (row,) = report["results"]  # 512 chunks are too few to train 16 clusters
    assert (row["processes"], row["size"], row["index"]) == (2, 4096, "torch")
    assert row["total_ms"] >= max(row[f"{stage}_ms"] for stage in benchmark_shards.STAGES)
    assert row["bank_bytes"] == 2048 * 80
    # a slot and a score of 16 chunks for 2 heads from the other process
    assert row["merge_bytes_per_token"] == 2 * 16 * 8
    # 4 tokens x 8 dimensions x 2 bytes of keys and of values, of half of the chunks or some more
    assert 0 < row["fetch_bytes_per_token"] < 2 * 16 * 128
    assert list(report["connections"]) == ["2"] and plot.read_bytes().startswith(b"\x89PNG")
    assert capfd.readouterr().out.count("4,096 torch") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--processes", "3"], "--memory-size (4096) must be a multiple of --chunk-size (4) times"),
        (["--k", "6"], "--k (6) must be a multiple of --chunk-size (4)"),
        (["--processes", "no"], "argument --processes: no must be a number of at least 1"),
    ],
)
def test_bad_options_are_one_line(more, message, monkeypatch, capsys):
    main = benchmark_shards.main
    assert message in assert_one_line(monkeypatch, capsys, main, *SMALL, *more)
