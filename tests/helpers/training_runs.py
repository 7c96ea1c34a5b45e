"""Short training runs, and what their checkpoints hold.

The fixtures ``runs`` and ``fit_here`` of conftest.py are made of them.
"""

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import train

from longmem_fairseq.fairseq_patches import install

COMMON = (
    "--user-dir longmem_fairseq --cpu --task longmem_language_modeling --tokens-per-sample 8 "
    "--batch-size 4 --num-workers 0"
)
TRAINING = (
    f"{COMMON} --criterion longmem_cross_entropy --stream-span 9 --lr 3e-2 --clip-norm 1 "
    "--lr-scheduler polynomial_decay --warmup-updates 5 --total-num-update 60 --log-format json "
    "--log-interval 1 --save-interval-updates 3 --keep-interval-updates 2 --no-epoch-checkpoints"
)
ADAM = "--optimizer adam --weight-decay 0.01"
SGD = "--optimizer sgd --momentum 0.9"
BACKBONE = "--arch longmem_backbone --embed-dim 16 --num-layers 2 --num-attention-heads 2"
# 32 tokens: spans of 72 tokens and documents of up to 200 evict what they have read
MEMORY = "--memory-size 32 --chunk-size 4 --k 8 --retrieval-layer-index 1 --dropout 0.1"
# two clusters, of which one is searched: 39 chunks for each, and it is trained
APPROXIMATE = "--chunk-size 1 --memory-size 96 --memory-index IVF2,Flat --stream-span 15"
TIMINGS = {"wps", "ups", "wall", "train_wall", "retrieval_ms"}


def make_runs(folder: Path, root: Path) -> Path:
    """In *folder* data1, data2 (another corpus) and backbone.pt."""
    generator = torch.Generator().manual_seed(1)
    for name in ("data1", "data2"):
        (folder / name).mkdir()
        dictionary = Dictionary()
        for i in range(40):
            dictionary.add_symbol(f"w{i}")
        dictionary.save(str(folder / name / "dict.txt"))
        for split, documents in (("train", 6), ("valid", 2)):
            builder = MMapIndexedDatasetBuilder(str(folder / name / f"{split}.bin"))
            for size in torch.randint(20, 200, (documents,), generator=generator):
                builder.add_item(torch.randint(4, 44, (int(size),), generator=generator))
            builder.finalize(str(folder / name / f"{split}.idx"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        fit(monkeypatch, f"{folder}/data1 {BACKBONE} {ADAM}", folder / "backbone", 2)
    shutil.move(folder / "backbone" / "checkpoint_last.pt", folder / "backbone.pt")
    return folder


def fit(monkeypatch, arguments: str, save_dir: Path, updates: int) -> dict:
    """fairseq-train in this process, up to a number of updates; returns the last checkpoint."""
    install()  # --user-dir does nothing where the package is imported already
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny
    command = f"fairseq-train {TRAINING} --disable-validation {arguments}"
    command += f" --save-dir {save_dir} --max-update {updates}"
    monkeypatch.setattr(sys, "argv", command.split())
    try:
        train.cli_main()
    finally:
        torch.set_num_threads(threads)
    return torch.load(save_dir / "checkpoint_last.pt")


def longmem(runs: Path) -> str:
    return f"--arch longmem {MEMORY} --pretrained-model-path {runs}/backbone.pt {ADAM}"


def rank_options(ranks: int) -> list:
    """The options of each of so many processes on a CPU, which meet at a free port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = (
        f"--distributed-world-size {ranks} --distributed-init-method tcp://localhost:{port} "
        "--distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp"
    )
    return [f"{common} --distributed-rank {rank}" for rank in range(ranks)]


def memory_files(save_dir: Path) -> list:
    return sorted(path.name for path in save_dir.glob("memory_*"))


def named(checkpoint: Path) -> list:
    return torch.load(checkpoint)["extra_state"]["train_iterator"]["memory_files"]


def assert_same_state(actual: dict, expected: dict) -> None:
    """Parameters, optimizer, position, and the sums of losses and gates over the last epoch."""
    for part in ("model", "last_optimizer_state"):
        torch.testing.assert_close(actual[part], expected[part], rtol=0, atol=0)
    assert actual["optimizer_history"][-1] == expected["optimizer_history"][-1]
    metrics, positions = [], []
    for state in (actual, expected):
        entries = state["extra_state"]["metrics"]["train"]
        metrics.append({key: meter for _, key, _, meter in entries if key not in TIMINGS})
        positions.append({**state["extra_state"]["train_iterator"], "memory_files": None})
    assert metrics[0] == metrics[1] and metrics[0]["loss"]["count"] > 0
    assert positions[0] == positions[1]
