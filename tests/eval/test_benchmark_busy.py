"""eval/benchmark_busy.py: one small run."""

import json

from eval import benchmark_busy
from eval.common import hardware

SMALL = (
    "benchmark_busy.py --preset tiny --memory-size 64 --k 8 --tokens-per-sample 16 --batch-size 1 "
    "--repeats 2 --prompt-tokens 4 --new-tokens 4 --json"
).split()


def test_run(tmp_path, monkeypatch, capfd):
    report = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", [*SMALL, str(report)])
    monkeypatch.setattr(hardware, "matmul_rate", lambda *unused: 1e11)  # takes seconds
    benchmark_busy.main()
    report = json.loads(report.read_text())
    assert list(map(len, report["seconds"].values())) == [2, 2]
    alone, busy = report["seconds"]["alone"], report["seconds"]["busy"]
    assert report["kept"] == [a / b for a, b in zip(alone, busy, strict=True)]
    (check,) = report["checks"]
    assert check["goal"] == ">= 0.45" and f"{check['value']:.3f}" in capfd.readouterr().out
