"""A run that goes on with other options, or without the memory of the one before."""

import shutil
import sys

import pytest
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq_cli import eval_lm

from longmem_fairseq.memory import ExternalMemory
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tasks import resume
from tests.helpers.training_runs import COMMON, fit, longmem, memory_files, named

# fairseq's iterator asks for it everywhere
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


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
        ("--tokens-per-sample", 16, 8),
        ("--segment-overlap", 2, 0),
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


@pytest.mark.parametrize("batch_size", [1, 400])
def test_another_batch_size_finishes_the_epoch(
    fit_here, caplog, monkeypatch, runs, parts, batch_size
):
    """Every token is read once, also where there are more streams than ever in it.

    Of the two in the middle of a span one goes on later, after it has memorized again what its
    memory held.
    """
    again, memorize = [], MemoryDecoder.memorize_streams

    def counted(decoder, src_tokens, new_document, overlap):
        assert decoder.training and new_document.tolist().count(True) == (not again)
        again.append(int(src_tokens.ne(decoder.padding_idx).sum()))
        memorize(decoder, src_tokens, new_document, overlap)

    monkeypatch.setattr(MemoryDecoder, "memorize_streams", counted)
    caplog.set_level("INFO")
    options = f"--batch-size {batch_size} --max-epoch 1"
    state = fit_here(f"{runs}/data1 {longmem(runs)} {options}", parts, 100)["extra_state"]
    (meter,) = (meter for _, key, _, meter in state["metrics"]["train"] if key == "loss")
    assert meter["count"] == MMapIndexedDataset(f"{runs}/data1/train").sizes.sum()
    assert state["train_iterator"]["epoch"] == 2
    assert again == ([8, 8] if batch_size == 1 else [])
    (line,) = (m for m in caplog.messages if m.startswith("what is left of the epoch"))
    assert line.startswith(
        f"what is left of the epoch is read by {batch_size} streams instead of 4: "
    )


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
