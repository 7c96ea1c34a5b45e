"""A run that was killed and started again ends, bit for bit, where one that was not ends.

``fairseq-train`` is run as a process where it is killed, and inside this process elsewhere.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from longmem_fairseq.tasks import longmem_language_modeling as task_module
from longmem_fairseq.tasks.resume import remove_unnamed_memory
from tests.helpers.training_runs import (
    ADAM,
    APPROXIMATE,
    BACKBONE,
    MEMORY,
    SGD,
    TIMINGS,
    TRAINING,
    assert_same_state,
    longmem,
    memory_files,
    named,
    rank_options,
)

# fairseq's iterator asks for it everywhere
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


# fairseq-train, which ends by SIGKILL a moment after the log shows an update: from within, because a
# test that reads the log on a busy machine may be too late
KILLED = """
import logging, os, signal, sys, threading
from fairseq_cli import train
update, delay = sys.argv.pop(1).split(",")
class Kill(logging.Handler):
    def emit(self, record):
        if f'"num_updates": "{update}"' in record.getMessage():
            threading.Timer(float(delay), os.killpg, (0, signal.SIGKILL)).start()
logging.getLogger().addHandler(Kill())
train.cli_main()
"""


class Run:
    """fairseq-train as one process per rank, which can be killed.

    updates: what was logged after each update, by all starts together, without timings
    """

    def __init__(self, root: Path, arguments: str, save_dir: Path, ranks: int = 1):
        self.root, self.arguments, self.save_dir, self.ranks = root, arguments, save_dir, ranks
        self.updates, self.resumed_after = {}, []

    def start(self, kill_at: int = 0) -> None:
        """Runs to the end, or until the log shows an update."""
        processes = [self._process(options, kill_at) for options in self._rank_options()]
        first, lines = None, []
        for line in processes[0].stdout:
            lines.append(line)
            if " | train_inner | {" not in line:
                continue
            logged = json.loads(line[line.index("{") :])
            update = int(logged["num_updates"])
            first = first or update
            # None is what was not measured since the last line
            logged = {k: v for k, v in logged.items() if k not in TIMINGS and v is not None}
            assert self.updates.setdefault(update, logged) == logged
        if kill_at:  # the first rank is gone
            for process in processes[1:]:
                os.killpg(process.pid, signal.SIGKILL)
        codes = [process.wait(timeout=60) for process in processes]
        expected = -signal.SIGKILL if kill_at else 0
        assert codes == [expected] * self.ranks, "".join(lines[-30:])
        self.resumed_after.append(first - 1)

    def checkpoint(self) -> dict:
        return torch.load(self.save_dir / "checkpoint_last.pt")

    def _rank_options(self) -> list:
        return [""] if self.ranks == 1 else rank_options(self.ranks)

    def _process(self, options: str, kill_at: int) -> subprocess.Popen:
        delay = random.Random(kill_at).uniform(0, 0.02)
        program = ["-c", KILLED, f"{kill_at},{delay}"]
        arguments = f"{TRAINING} {self.arguments} {options}".split()
        return subprocess.Popen(
            [sys.executable, *program, *arguments, "--save-dir", str(self.save_dir)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE if options[-1:] in ("", "0") else None,  # which pytest captures
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that data loading workers are killed with it
        )


@pytest.mark.slow
def test_killed_runs_end_where_uninterrupted_ones_end(root, runs, tmp_path):
    """Five kills of a run of LongMem, and one of a run of MemTRM on two ranks."""
    data = f"{runs}/data1:{runs}/data2"
    one = f"{data} {longmem(runs)} --max-update 50 --update-freq 2 --num-workers 2"
    one += " --disable-validation"  # which takes 5 seconds each time with workers
    two = (
        f"{data} --arch memtrm {MEMORY} --embed-dim 16 --num-layers 2 --num-attention-heads 2 {SGD}"
    )
    two += " --max-update 20 --save-interval-updates 1 --batch-size 2"
    kills = {1: sorted(random.Random(1).sample(range(1, 48), 5)), 2: [13]}

    def chain(arguments, ranks):
        killed = Run(root, arguments, tmp_path / f"killed{ranks}", ranks)
        for update in kills[ranks]:
            killed.start(kill_at=update)
        killed.start()
        return killed

    def whole(arguments, ranks):
        run = Run(root, arguments, tmp_path / f"whole{ranks}", ranks)
        run.start()
        return run

    with ThreadPoolExecutor(2) as pool:
        killed = [pool.submit(chain, one, 1), pool.submit(chain, two, 2)]
        uninterrupted = [pool.submit(whole, one, 1), pool.submit(whole, two, 2)]
    for ranks, run, expected in zip((1, 2), killed, uninterrupted, strict=True):
        run, expected = run.result(), expected.result()
        # 3 (or 1) updates at most are done again, and 3 at most between a log and the kill
        assert run.resumed_after[0] == 0
        for update, resumed in zip(kills[ranks], run.resumed_after[1:], strict=True):
            assert update - 3 <= resumed <= update + 3
        assert run.updates == expected.updates
        assert len({logged["loss"] for logged in run.updates.values()}) > 10
        assert_same_state(run.checkpoint(), expected.checkpoint())
        # of each of the checkpoints that are kept, a file per rank
        kept = {name for path in run.save_dir.glob("*.pt") for name in named(path) or []}
        assert memory_files(run.save_dir) == sorted(kept)
        assert len(named(run.save_dir / "checkpoint_last.pt")) == ranks


MODELS = {
    "longmem": "--arch longmem {memory} --pretrained-model-path {runs}/backbone.pt",
    "one bank for all streams": "--arch longmem {memory} --pretrained-model-path {runs}/backbone.pt "
    "--memory-scope batch",
    "approximate index": "--arch longmem {memory} --pretrained-model-path {runs}/backbone.pt "
    + APPROXIMATE,
    "memtrm": "--arch memtrm {memory} --pretrained-model-path {runs}/backbone.pt",
    "no memory": "--arch longmem {memory} --pretrained-model-path {runs}/backbone.pt --no-memory",
    "backbone": BACKBONE + " --dropout 0.1",
}


@pytest.mark.parametrize("model", MODELS)
def test_resumed_is_uninterrupted(fit_here, runs, tmp_path, model):
    """In the middle of the first epoch, and of the second, whose documents are others."""
    arguments = f"{runs}/data1:{runs}/data2 {MODELS[model].format(memory=MEMORY, runs=runs)} {ADAM}"
    expected = fit_here(arguments, tmp_path / "whole", 36)
    fit_here(arguments, tmp_path / "parts", 8)
    middle = fit_here(arguments, tmp_path / "parts", 32)["extra_state"]["train_iterator"]
    assert middle["epoch"] == 2 and middle["iterations_in_epoch"] > 0
    assert_same_state(fit_here(arguments, tmp_path / "parts", 36), expected)
    if model in ("no memory", "backbone"):
        assert not memory_files(tmp_path / "parts")
    else:
        assert memory_files(tmp_path / "parts")


def test_between_epochs_there_is_nothing_to_remember(fit_here, runs, tmp_path):
    arguments = f"{runs}/data1:{runs}/data2 {longmem(runs)} {APPROXIMATE}"
    expected = fit_here(arguments, tmp_path / "whole", 34)
    end = fit_here(f"{arguments} --max-epoch 1", tmp_path / "parts", 34)
    assert end["extra_state"]["train_iterator"]["epoch"] == 2
    assert named(tmp_path / "parts" / "checkpoint_last.pt") is None
    # so that other streams may go on from here
    shutil.copytree(tmp_path / "parts", tmp_path / "other")
    fit_here(f"{arguments} --batch-size 3", tmp_path / "other", 30)
    assert_same_state(fit_here(arguments, tmp_path / "parts", 34), expected)


class Killed(BaseException):
    """Where it is raised, the run ends."""


def kill_instead(monkeypatch, target, name, when=lambda *arguments: True):
    original = getattr(target, name)

    def function(*arguments, **options):
        if when(*arguments):
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(target, name, function)


KILLS = {
    "before the checkpoint": lambda patch: kill_instead(
        patch, checkpoint_utils, "torch_persistent_save", lambda _, path, *a: "_1_6" in path
    ),
    "before checkpoint_last.pt": lambda patch: kill_instead(
        patch, shutil, "copyfile", lambda source, *a: "_1_6" in source
    ),
    "inside checkpoint_last.pt": lambda patch: patch.setattr(shutil, "copyfile", half_a_copy),
    "before old files are removed": lambda patch: kill_instead(
        patch, task_module, "remove_unnamed_memory", lambda folder, keep=None: keep
    ),
}


def half_a_copy(source, target):
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: len(content) // 2])
    raise Killed


@pytest.mark.parametrize("moment", KILLS)
def test_a_save_that_was_cut_short_does_no_harm(fit_here, monkeypatch, runs, tmp_path, moment):
    arguments = f"{runs}/data1 {longmem(runs)}"
    expected = fit_here(arguments, tmp_path / "whole", 8)
    fit_here(arguments, tmp_path / "parts", 5)
    with monkeypatch.context() as patch:
        KILLS[moment](patch)
        with pytest.raises(Killed):
            fit_here(arguments, tmp_path / "parts", 8)
    assert len(memory_files(tmp_path / "parts")) == 3  # after 3, 5 and 6 updates
    cut_short = tmp_path / "parts" / ".memory_6_0123abcd_rank0.safetensors.x7k.part"
    cut_short.mkdir()
    (cut_short / ".tmpAbC123").touch()  # safetensors' own
    (tmp_path / "parts" / "memory_of_mine.safetensors").touch()
    assert_same_state(fit_here(arguments, tmp_path / "parts", 8), expected)
    # those of 3, 6 and 8 updates are named, and 5 by nothing but an older checkpoint_last.pt
    updates = [name.split("_")[1] for name in memory_files(tmp_path / "parts")]
    assert updates == ["3", "6", "8", "of"] and not cut_short.exists()


def test_every_checkpoint_that_is_kept_has_its_memory(fit_here, runs, tmp_path):
    arguments = f"{runs}/data1 {longmem(runs)}"
    fit_here(arguments, tmp_path / "run", 10)
    folder = tmp_path / "run"
    names = {path.name: named(path) for path in folder.glob("*.pt")}
    assert set(names) == {"checkpoint_1_6.pt", "checkpoint_1_9.pt", "checkpoint_last.pt"}
    assert sorted(name for (name,) in names.values()) == memory_files(folder)
    expected = torch.load(folder / "checkpoint_last.pt")
    # from an older one, in another folder
    again = fit_here(
        f"{arguments} --restore-file {folder}/checkpoint_1_6.pt", tmp_path / "again", 10
    )
    assert_same_state(again, expected)


def test_memory_that_an_unreadable_checkpoint_may_name_is_kept(
    fit_here, monkeypatch, runs, tmp_path
):
    folder = tmp_path / "run"
    fit_here(f"{runs}/data1 {longmem(runs)}", folder, 6)
    files = memory_files(folder)
    orphan = folder / "memory_1_00000000_rank0.safetensors"
    orphan.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "load", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "I/O error"))
        )
        remove_unnamed_memory(str(folder))
    assert memory_files(folder) == sorted([*files, orphan.name])
    remove_unnamed_memory(str(folder))
    assert memory_files(folder) == files
