"""The accidents of long runs: SIGTERM, a full disk, NaN, damaged data; in this process.

test_processes.py does what takes several.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

from longmem_fairseq.data import DocumentStreamDataset, IndexedDocuments
from longmem_fairseq.fairseq_patches import checkpoints as compat
from longmem_fairseq.memory import MemoryBank, memory_file
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.update_losses import UpdateLosses
from tests.helpers.training_runs import BACKBONE, TRAINING, assert_same_state, longmem, memory_files

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


@contextmanager
def file_limit(num_bytes):
    """Writing more into a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# fairseq-train, to which SIGTERM comes inside the seventh update, from a process that is not the parent
# of the loading worker (then that would end in silence), and to the worker too
SIGTERM_COMES = """
import multiprocessing, os, subprocess, sys
from fairseq_cli import train
from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.tasks import LongMemLanguageModelingTask
install()
step = LongMemLanguageModelingTask.optimizer_step
def optimizer_step(task, optimizer, model, update_num):
    if update_num == 6:
        processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
        assert len(processes) > 1
        program = f"import os; [os.kill(i, 15) for i in {processes}]"
        subprocess.run([sys.executable, "-c", program])
    step(task, optimizer, model, update_num)
LongMemLanguageModelingTask.optimizer_step = optimizer_step
train.cli_main()
"""


def test_sigterm_saves_and_the_run_goes_on(fit_here, runs, root, tmp_path):
    """After the update in which it comes, in which no save is due; it ends the loading worker.

    In a process of its own: PyTorch would tell later tests of the worker's end.
    """
    arguments = f"{runs}/data1 {longmem(runs)} --num-workers 1"
    expected = fit_here(arguments, tmp_path / "whole", 12)
    command = f"{TRAINING} --disable-validation {arguments} --save-dir {tmp_path / 'parts'}"
    ended = subprocess.run(
        [sys.executable, "-c", SIGTERM_COMES, *command.split(), "--max-update", "12"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 128 + signal.SIGTERM
    saved = torch.load(tmp_path / "parts" / "checkpoint_last.pt")
    assert saved["optimizer_history"][-1]["num_updates"] == 7
    assert_same_state(fit_here(arguments, tmp_path / "parts", 12), expected)


def test_a_complete_run_that_is_started_again(fit_here, runs, tmp_path):
    """Trains no further, and removes what a kill in the middle of a save left."""
    arguments = f"{runs}/data1 {longmem(runs)}"
    fit_here(arguments, tmp_path, 5)
    expected = contents(tmp_path)
    (tmp_path / "checkpoint_1_3.pt.tmp").write_bytes(b"half of a checkpoint")
    (tmp_path / "memory_3_0123abcd_rank0.safetensors").write_bytes(b"of no checkpoint")
    fit_here(arguments, tmp_path, 5)
    assert contents(tmp_path) == expected


def test_a_full_disk_leaves_the_checkpoints_whole(fit_here, runs, tmp_path):
    arguments = f"{runs}/data1 {longmem(runs)}"
    expected = fit_here(arguments, tmp_path / "whole", 8)
    fit_here(arguments, tmp_path / "parts", 5)
    before = contents(tmp_path / "parts")
    path = tmp_path / "parts" / "checkpoint_1_6.pt"
    with file_limit(len(before["checkpoint_last.pt"]) - 1), pytest.raises(OSError) as error:
        fit_here(arguments, tmp_path / "parts", 8)
    assert str(error.value) == f"{path}: cannot be written ([Errno 27] File too large)"
    after = contents(tmp_path / "parts")
    assert {name: after[name] for name in before} == before
    (left_over,) = set(after) - set(before)
    assert left_over in memory_files(tmp_path / "parts")
    assert_same_state(fit_here(arguments, tmp_path / "parts", 8), expected)
    assert not (tmp_path / "parts" / left_over).exists()


def test_a_full_disk_leaves_checkpoint_last_whole(tmp_path):
    """Where there was still room for the checkpoint of which it is a copy."""
    source, target = tmp_path / "checkpoint_1_6.pt", tmp_path / "checkpoint_last.pt"
    source.write_bytes(b"x" * 100_000)
    target.write_bytes(b"older")
    with file_limit(50_000), pytest.raises(OSError) as error:
        checkpoint_utils.PathManager.copy(str(source), str(target), overwrite=True)
    assert str(error.value).startswith(f"{target}: cannot be written ([Errno 27] File too large")
    assert target.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == [source.name, target.name]


def test_a_full_disk_leaves_the_memory_whole(tmp_path):
    path = tmp_path / "memory.safetensors"
    bank = MemoryBank(1, 2, 8, memory_size=4096, chunk_size=2, k=6)
    bank.write(*torch.randn(2, 1, 2, 8, 8))
    bank.save(str(path))
    before = contents(tmp_path)
    bank.write(*torch.randn(2, 1, 2, 4000, 8))
    with file_limit(100_000), pytest.raises(OSError) as error:
        bank.save(str(path))
    assert str(error.value).startswith(f"{path}: cannot be written (")
    assert "File too large" in str(error.value)
    assert contents(tmp_path) == before


@contextmanager
def memory_limit(num_bytes):
    """Allocating more fails; files that are mapped and shared do not count."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    in_use = 1024 * int(status["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_a_memory_on_disk_is_saved_without_a_copy_in_main_memory(tmp_path, monkeypatch):
    """It may be larger than that. It is not full, and its keys and values are 30 MiB each."""
    monkeypatch.setattr(memory_file, "IN_MEMORY", 2**20)
    path = str(tmp_path / "memory.safetensors")
    sizes = {"memory_size": 2**16, "chunk_size": 8, "k": 8}
    bank = MemoryBank(1, 2, 64, **sizes, storage="disk", directory=str(tmp_path))
    tokens = torch.randn(1, 2, 2**12, 64)
    for number in range(15):
        bank.write(tokens + number, tokens - number)
    with memory_limit(2**23):
        bank.save(path)
    loaded = MemoryBank.load(path, memory_map=True)
    assert loaded.ring.store.keys.shape == (1, 2, 15 * 2**9, 8, 64)
    for number in range(15):
        here = slice(number * 2**9, (number + 1) * 2**9)
        assert torch.equal(loaded.ring.store.keys[:, :, here].flatten(2, 3), tokens + number)
        assert torch.equal(loaded.ring.store.values[:, :, here].flatten(2, 3), tokens - number)


def first_read(data, token):
    """Batch, stream, document and start of the segment that reads a token first."""
    dictionary = Dictionary.load(f"{data}/dict.txt")
    streams = DocumentStreamDataset(
        IndexedDocuments(f"{data}/train", len(dictionary)),
        pad=dictionary.pad(),
        bos=dictionary.eos(),
        batch_size=4,
        tokens_per_sample=8,
        stream_span=9,
        seed=2,  # --seed and the epoch
    )
    for number, batch in enumerate(streams, start=1):
        for row, tokens in enumerate(batch["net_input"]["src_tokens"].tolist()):
            if token in tokens:
                return number, row, batch["id"][row].item(), batch["position"][row].item()
    raise ValueError(f"token {token} is never read")


@pytest.mark.parametrize("update_freq", [1, 2])
def test_nan_is_reported_with_update_stream_and_document(
    fit_here, runs, tmp_path, update_freq, caplog
):
    """A row of the embedding is NaN; masked attention makes it one of the whole segment."""
    firsts = {token: first_read(runs / "data1", token) for token in range(4, 44)}
    token = max(firsts, key=firsts.get)  # as late as possible
    batch, stream, document, position = firsts[token]
    assert batch > 1
    state = torch.load(runs / "backbone.pt")
    state["model"]["decoder.embed_tokens.weight"][token] = float("nan")
    torch.save(state, tmp_path / "backbone.pt")
    arguments = f"{runs}/data1 --pretrained-model-path {tmp_path}/backbone.pt"
    arguments = longmem(runs) + f" {arguments} --update-freq {update_freq}"
    with pytest.raises(FloatingPointError) as error:
        fit_here(arguments, tmp_path / "run", 40)
    assert str(error.value) == (
        f"update {-(-batch // update_freq)}: the loss is nan at token {position} of document "
        f"{document} (counted from 0), in stream {stream} of rank 0"
    )
    assert "NaN detected in output of decoder.backbone.embed_tokens" in caplog.text  # fairseq's own


def test_a_rank_whose_losses_are_finite_says_where_to_look(monkeypatch):
    def train_step(trainer):
        raise FloatingPointError("gradients are Nan/Inf")

    monkeypatch.setattr(compat, "_original_train_step", train_step)
    task = SimpleNamespace(not_finite=lambda rank: None)
    trainer = SimpleNamespace(task=task, data_parallel_rank=0, data_parallel_world_size=2)
    trainer.get_num_updates = lambda: 6
    with pytest.raises(FloatingPointError) as error:
        compat.train_step(trainer)
    assert str(error.value) == (
        "update 7: gradients are Nan/Inf; the log of another rank may name the document"
    )


def test_the_first_loss_that_is_not_finite_is_named():
    losses, tokens = UpdateLosses(), torch.ones(2, 4)
    sample = {"id": torch.tensor([7, 9]), "position": torch.tensor([0, 800])}
    bad = torch.tensor([[1, 1, 1, 1], [1, 1, float("inf"), float("nan")]])
    losses.add(3, sample, tokens)
    losses.add(3, sample, bad)
    assert losses.not_finite(rank=1) == (
        "the loss is inf at token 802 of document 9 (counted from 0), in stream 1 of rank 1"
    )
    losses.add(4, sample, tokens)
    losses.add(4, sample, None)
    assert losses.not_finite(rank=1) is None


def test_nan_of_gradients_alone_is_fairseqs_own_error(fit_here, monkeypatch, runs, tmp_path):
    step = LongMemLanguageModelingTask.train_step

    def train_step(task, sample, model, *arguments, **options):
        result = step(task, sample, model, *arguments, **options)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(LongMemLanguageModelingTask, "train_step", train_step)
    with pytest.raises(FloatingPointError, match="^gradients are Nan/Inf$"):
        fit_here(f"{runs}/data1 {BACKBONE} --optimizer sgd", tmp_path, 3)


DAMAGES = {
    "train.bin has 4,735 bytes, and its documents 4,736": lambda idx, bin: (idx, bin[:-1]),
    "train.bin has 3 bytes, and its documents 4,736": lambda idx, bin: (idx, bin[:3]),
    "train.idx holds no documents": lambda idx, bin: (idx, b""),
    **{
        f"train.idx is damaged: prepare the corpus again (cut at {length})": (
            lambda idx, bin, length=length: (idx[:length], bin)
        )
        for length in (0, 5, 9, 17, 30, 97)
    },
}


# the destructor of fairseq's half-made index
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("message", DAMAGES)
def test_truncated_documents_are_named(runs, tmp_path, message):
    source = runs / "data1"
    files = DAMAGES[message](*((source / f"train.{end}").read_bytes() for end in ("idx", "bin")))
    for end, content in zip(("idx", "bin"), files, strict=True):
        (tmp_path / f"train.{end}").write_bytes(content)
    shutil.copy(source / "dict.txt", tmp_path)
    with pytest.raises(ValueError) as error:
        IndexedDocuments(str(tmp_path / "train"), len(Dictionary.load(str(tmp_path / "dict.txt"))))
    assert str(error.value).startswith(f"{tmp_path}/{message.partition(' (')[0]}")
