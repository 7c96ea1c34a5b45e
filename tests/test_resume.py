"""A run that was killed and started again ends, bit for bit, where one that was not ends.

``fairseq-train`` is run as a process where it is killed, and inside this process elsewhere.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import eval_lm, train

from longmem_fairseq import compat
from longmem_fairseq.memory import ExternalMemory
from longmem_fairseq.tasks import LongMemLanguageModelingTask, resume
from longmem_fairseq.tasks import longmem_language_modeling as task_module
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig

# fairseq's iterator asks for it everywhere
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """A folder with data1, data2 (another corpus) and backbone.pt."""
    folder = tmp_path_factory.mktemp("resume")
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


@pytest.fixture
def fit_here(root, monkeypatch):
    """:func:`fit` from the checkout's folder."""
    monkeypatch.chdir(root)
    return lambda *arguments: fit(monkeypatch, *arguments)


def fit(monkeypatch, arguments: str, save_dir: Path, updates: int) -> dict:
    """fairseq-train in this process, up to a number of updates; returns the last checkpoint."""
    command = f"fairseq-train {TRAINING} --disable-validation {arguments}"
    command += f" --save-dir {save_dir} --max-update {updates}"
    monkeypatch.setattr(sys, "argv", command.split())
    train.cli_main()
    return torch.load(save_dir / "checkpoint_last.pt")


def longmem(runs: Path) -> str:
    return f"--arch longmem {MEMORY} --pretrained-model-path {runs}/backbone.pt {ADAM}"


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


class Run:
    """fairseq-train as one process per rank, which can be killed.

    updates: what was logged after each update, by all starts together, without timings
    """

    def __init__(self, root: Path, arguments: str, save_dir: Path, ranks: int = 1):
        self.root, self.arguments, self.save_dir, self.ranks = root, arguments, save_dir, ranks
        self.updates, self.resumed_after = {}, []

    def start(self, kill_at: int = 0) -> None:
        """Runs to the end, or until the log shows an update."""
        processes = [self._process(options) for options in self._rank_options()]
        first, lines = None, []
        for line in processes[0].stdout:
            lines.append(line)
            if " | train_inner | {" not in line:
                continue
            logged = json.loads(line[line.index("{") :])
            update = int(logged["num_updates"])
            first = first or update
            logged = {key: value for key, value in logged.items() if key not in TIMINGS}
            assert self.updates.setdefault(update, logged) == logged
            if update == kill_at:
                for process in processes:
                    os.killpg(process.pid, signal.SIGKILL)
        codes = [process.wait(timeout=60) for process in processes]
        expected = -signal.SIGKILL if kill_at else 0
        assert codes == [expected] * self.ranks, "".join(lines[-30:])
        self.resumed_after.append(first - 1)

    def checkpoint(self) -> dict:
        return torch.load(self.save_dir / "checkpoint_last.pt")

    def _rank_options(self) -> list:
        if self.ranks == 1:
            return [""]
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        common = (
            f"--distributed-world-size {self.ranks} --distributed-init-method tcp://localhost:{port} "
            "--distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp"
        )
        return [f"{common} --distributed-rank {rank}" for rank in range(self.ranks)]

    def _process(self, options: str) -> subprocess.Popen:
        command = f"-m fairseq_cli.train {TRAINING} {self.arguments} {options}"
        return subprocess.Popen(
            [sys.executable, *command.split(), "--save-dir", str(self.save_dir)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE if options[-1:] in ("", "0") else subprocess.DEVNULL,
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
        patch, compat, "_original_copy", lambda source, *a: "_1_6" in source
    ),
    "inside checkpoint_last.pt": lambda patch: patch.setattr(compat, "_original_copy", half_a_copy),
    "before old files are removed": lambda patch: kill_instead(
        patch, task_module, "remove_unnamed_memory"
    ),
}


def half_a_copy(source, target, overwrite=False):
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
    (tmp_path / "parts" / "memory_6_0123abcd_rank0.safetensors.tmp").touch()
    (tmp_path / "parts" / "memory_of_mine.safetensors").touch()
    assert_same_state(fit_here(arguments, tmp_path / "parts", 8), expected)
    # those of 3, 6 and 8 updates are named, and 5 by nothing but an older checkpoint_last.pt
    updates = [name.split("_")[1] for name in memory_files(tmp_path / "parts")]
    assert updates == ["3", "6", "8", "of"]


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


@pytest.fixture(scope="module")
def interrupted(root, runs, tmp_path_factory):
    """A run of LongMem on data1 that stopped in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        fit(monkeypatch, f"{runs}/data1 {longmem(runs)}", folder, 5)
    return folder


@pytest.fixture
def parts(interrupted, tmp_path):
    return shutil.copytree(interrupted, tmp_path / "parts")


ADVICE = (
    ", in the middle of an epoch: go back to {}, or start the epochs over with an empty memory "
    "(--reset-dataloader)"
)


@pytest.mark.parametrize(
    "option, value, saved",
    [
        ("--batch-size", 3, 4),
        ("--batch-size", 400, 4),  # fewer batches than were read
        ("--tokens-per-sample", 16, 8),
        ("--stream-span", 0, 9),
        ("--seed", 2, 1),
    ],
)
def test_other_streams_are_refused(fit_here, runs, interrupted, option, value, saved):
    with pytest.raises(ValueError) as raised:
        fit_here(f"{runs}/data1 {longmem(runs)} {option} {value}", interrupted, 8)
    message = f"{option} ({value}) was {saved} when the checkpoint was saved" + ADVICE.format(saved)
    assert str(raised.value) == message


def test_other_documents_are_refused(fit_here, runs, interrupted):
    with pytest.raises(ValueError, match=r"the number of training tokens \(\d+\) was \d+ when "):
        fit_here(f"{runs}/data2 {longmem(runs)}", interrupted, 8)


def test_other_ranks_are_refused(runs, interrupted):
    state = torch.load(interrupted / "checkpoint_last.pt")["extra_state"]["train_iterator"]
    cfg = LongMemLanguageModelingConfig(data=f"{runs}/data1", tokens_per_sample=8, stream_span=9)
    task = LongMemLanguageModelingTask(cfg)
    task.load_dataset("train")
    options = {"max_sentences": 4, "seed": 1}
    task.get_batch_iterator(task.dataset("train"), **options).load_state_dict(state)
    streams = task.get_batch_iterator(task.dataset("train"), num_shards=2, **options)
    with pytest.raises(ValueError, match=r"--distributed-world-size \(2\) was 1 when"):
        streams.load_state_dict(state)


@pytest.fixture
def no_reading(monkeypatch):
    """Reading a memory file fails the test."""

    def load(memory, path):
        raise AssertionError(path)

    monkeypatch.setattr(ExternalMemory, "load", load)


def test_reset_dataloader_starts_over_with_an_empty_memory(fit_here, runs, parts, no_reading):
    arguments = f"{runs}/data1 {longmem(runs)} --reset-dataloader --batch-size 3"
    state = fit_here(arguments, parts, 8)["extra_state"]["train_iterator"]
    assert (state["epoch"], state["iterations_in_epoch"]) == (1, 3)


def test_fine_tuning_and_evaluation_need_no_memory(
    fit_here, monkeypatch, runs, interrupted, tmp_path, no_reading
):
    path = shutil.copy(interrupted / "checkpoint_last.pt", tmp_path / "model.pt")
    arguments = f"{runs}/data2 {longmem(runs)}"
    tuned = fit_here(f"{arguments} --finetune-from-model {path}", tmp_path / "tuned", 3)
    assert tuned["extra_state"]["train_iterator"]["iterations_in_epoch"] == 3
    options = f"--restore-file {path} --reset-dataloader --reset-optimizer"
    fit_here(f"{arguments} {options}", tmp_path / "restored", 3)
    command = f"fairseq-eval-lm {runs}/data1 {COMMON} --path {path} --gen-subset valid"
    monkeypatch.setattr(sys, "argv", command.split())
    eval_lm.cli_main()


def test_without_saved_memory(fit_here, caplog, runs, tmp_path, no_reading):
    """It is neither written nor read, and resuming says so."""
    arguments = f"{runs}/data1 {longmem(runs)} --no-save-memory"
    fit_here(arguments, tmp_path / "run", 5)
    assert warnings_of(caplog) == [] and memory_files(tmp_path / "run") == []
    assert named(tmp_path / "run" / "checkpoint_last.pt") is None
    fit_here(arguments, tmp_path / "run", 6)
    said = ": the streams go on in their documents with an empty memory"
    assert warnings_of(caplog) == ["--no-save-memory" + said]
    caplog.clear()
    fit_here(arguments.replace(" --no-save-memory", ""), tmp_path / "run", 7)
    assert warnings_of(caplog) == ["the checkpoint names no memory file" + said]


def test_a_missing_memory_file(fit_here, caplog, runs, parts):
    arguments = f"{runs}/data1 {longmem(runs)}"
    (name,) = named(parts / "checkpoint_last.pt")
    (parts / name).unlink()
    with pytest.raises(FileNotFoundError) as raised:
        fit_here(arguments, parts, 6)
    assert str(raised.value) == (
        f"{parts / name}: no such file, but the checkpoint's memory: copy it there, or go on with an "
        "empty memory (--no-save-memory)"
    )
    fit_here(f"{arguments} --no-save-memory", parts, 6)
    assert len(warnings_of(caplog)) == 1
    assert named(parts / "checkpoint_last.pt") is None


def warnings_of(caplog) -> list:
    return [record.getMessage() for record in caplog.records if record.name == resume.__name__]
