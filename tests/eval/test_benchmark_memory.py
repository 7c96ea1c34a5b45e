"""eval/benchmark_memory.py: one small run, and recall against a search of everything."""

import json
import math

import pytest
import torch

from eval import benchmark_memory
from eval.common import hardware
from longmem_fairseq.memory import MemoryBank
from tests.helpers.benchmark_runs import assert_one_line

SMALL = [
    *("benchmark_memory.py", "--quick", "--sizes", "4096", "--heads", "2", "--head-dim", "8"),
    *("--tokens-per-sample", "8", "--repeats", "1", "--stream-tokens", "200000"),
    *("--indices", "torch IVF16,Flat:nprobe=16 IVF64,Flat"),
]


def test_run(tmp_path, monkeypatch, capsys):
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    monkeypatch.setattr("sys.argv", [*SMALL, "--json", str(report), "--plot", str(plot)])
    for rate in ("matmul_rate", "copy_rate"):  # which take seconds
        monkeypatch.setattr(hardware, rate, lambda *unused: 1e11)
    benchmark_memory.main()
    report = json.loads(report.read_text())
    assert set(report) == {
        *("date", "hardware", "commit", "command", "rates", "bare_product_ms", "results"),
        *("streamed", "checks"),
    }
    # 1,024 chunks are too few to train 64 clusters
    rows = [(row["size"], row["index"], row["dtype"], row["recall"]) for row in report["results"]]
    assert rows == [(4096, "torch", "float32", 1), (4096, "IVF16,Flat:nprobe=16", "float32", 1)]
    assert all(row["search_ms"] > 0 and row["bytes_per_token"] == 144 for row in report["results"])
    recall, resident = report["checks"]
    assert recall["name"] == "recall of IVF16,Flat:nprobe=16 at 4,096 tokens" and recall["ok"]
    assert report["streamed"]["tokens"] == 200000 and resident["goal"] == "<= 1.02"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("float32   device") == 2


def test_recall_counts_chunks():
    """Keys on a circle, in four clusters of which one is searched: half of the best are there."""
    keys = torch.arange(400) * (2 * math.pi / 400)
    keys = torch.stack([keys.cos(), keys.sin()], dim=-1).view(1, 1, 400, 2)
    for index, least, most in (("IVF4,Flat", 0.4, 0.6), ("flat", 1, 1)):
        bank = MemoryBank(1, 1, 2, memory_size=400, chunk_size=1, k=200, index=index)
        bank.write(keys, keys)
        assert least <= benchmark_memory.recall_of(bank, keys[:, :, :64]) <= most


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sizes", "few"], "argument --sizes: few must be a number of at least 1"),
        (["--dtypes", "float8"], "argument --dtypes: float8 must be one of float32, float16"),
        (["--stream-tokens", "-1"], "argument --stream-tokens: -1 must be 0 or at least 131072"),
        (["--stream-tokens", "999"], "argument --stream-tokens: 999 must be 0 or at least 131072"),
        (["--json", "."], "--json (.) is a folder: give a file to write"),
        (["--plot", "nowhere/plot.png"], "--plot (nowhere/plot.png): there is no folder /"),
        (["--k", "6"], "--k (6) must be a multiple of --chunk-size (4)"),
    ],
)
def test_bad_options_are_one_line(more, message, monkeypatch, capsys):
    main = benchmark_memory.main
    assert message in assert_one_line(monkeypatch, capsys, main, *SMALL, *more)
