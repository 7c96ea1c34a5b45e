"""Models whose folder was renamed, folders in place of checkpoints, and the words of the messages."""

import io
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq_cli import eval_lm

from longmem_fairseq import LongMem
from longmem_fairseq.commands import generate
from longmem_fairseq.models.checkpoints import checkpoint_in
from longmem_fairseq.utils.cli import run
from tests.helpers.model_folders import TEXT


@pytest.fixture
def moved(models, tmp_path):
    """Copies of the backbone and of two models that were trained with it, and no originals."""
    folder = tmp_path / "renamed"
    for name in ("backbone", "longmem", "memtrm"):
        shutil.copytree(models[name], folder / name)
    path = folder / "longmem" / "checkpoint_last.pt"
    state = torch.load(path)
    assert state["cfg"]["model"]["pretrained_model_path"] == str(
        models["backbone"] / "checkpoint_last.pt"
    )
    state["cfg"]["model"]["pretrained_model_path"] = "/gone/checkpoint_last.pt"
    torch.save(state, path)
    return folder


def log_probs(path, **options):
    return LongMem.from_pretrained(path, **options).score(TEXT).log_probs


def test_a_backbone_that_moved_along_is_found(models, moved):
    lm = LongMem.from_pretrained(moved / "longmem")
    assert torch.equal(lm.score(TEXT).log_probs, log_probs(models["longmem"]))
    assert torch.equal(log_probs(moved / "memtrm"), log_probs(models["memtrm"]))


def test_the_one_that_moved_along_comes_before_another_at_the_old_place(models, moved):
    """The old place may have been trained anew."""
    path = moved / "longmem" / "checkpoint_last.pt"
    state = torch.load(path)
    other = str(models["other_backbone"] / "checkpoint_last.pt")
    state["cfg"]["model"]["pretrained_model_path"] = other
    torch.save(state, path)
    assert torch.equal(log_probs(path), log_probs(models["longmem"]))


def test_a_checkpoint_that_left_its_backbone_finds_it_where_it_was(models, tmp_path):
    shutil.copytree(models["longmem"], tmp_path / "deep" / "er" / "longmem")
    found = log_probs(tmp_path / "deep" / "er" / "longmem")
    assert torch.equal(found, log_probs(models["longmem"]))


def test_a_folder_is_as_good_as_its_checkpoint(models, moved, monkeypatch):
    expected = log_probs(models["longmem"])
    shutil.move(moved / "backbone", moved.parent / "elsewhere")
    folder = str(moved.parent / "elsewhere")
    assert torch.equal(log_probs(moved / "longmem", pretrained_model_path=folder), expected)
    results = {}
    original = eval_lm.eval_lm

    def keep(*arguments, **options):
        results[path] = original(*arguments, **options)["loss"]
        return {"loss": results[path], "perplexity": 1.0}

    monkeypatch.setattr(eval_lm, "eval_lm", keep)
    for path in (moved / "longmem", moved / "longmem" / "checkpoint_last.pt"):
        command = f"fairseq-eval-lm {models['longmem'].parent / 'data'} --cpu --batch-size 2 "
        command += "--task longmem_language_modeling --tokens-per-sample 16 --gen-subset test "
        command += f"--path {path} --pretrained-model-path {folder}"
        monkeypatch.setattr(sys, "argv", command.split())
        eval_lm.cli_main()
    first, second = results.values()
    assert first == second > 0


def test_of_several_checkpoints_the_best_is_taken(tmp_path):
    assert checkpoint_in(str(tmp_path)) == str(tmp_path)
    for name in ("checkpoint.pt", "checkpoint_last.pt", "checkpoint_best.pt"):
        (tmp_path / name).touch()
        assert checkpoint_in(str(tmp_path)) == str(tmp_path / name)
    assert checkpoint_in("nowhere") == "nowhere"


def test_messages_are_in_the_words_of_the_caller(moved, monkeypatch, capsys):
    shutil.rmtree(moved / "backbone")
    where = moved / "longmem" / "checkpoint_last.pt"
    reason = "(/gone/checkpoint_last.pt): no such file; " + f"{where} needs its backbone: give"
    with pytest.raises(FileNotFoundError) as error:
        LongMem.from_pretrained(moved / "longmem")
    assert str(error.value) == f"pretrained_model_path {reason} pretrained_model_path"
    with pytest.raises(ValueError, match=r"^k \(3\) must be a multiple of chunk_size \(2\)$"):
        LongMem.from_pretrained(moved / "memtrm", k=3)
    (moved / "empty").mkdir()
    for options, message in (
        ([], f"--pretrained-model-path {reason} --pretrained-model-path"),
        (
            ["--pretrained-model-path", str(moved / "empty")],
            f"--pretrained-model-path ({moved / 'empty'}) holds no checkpoint: expected "
            "checkpoint_best.pt, checkpoint_last.pt, checkpoint.pt, model.safetensors; "
            f"{where} needs its backbone: give --pretrained-model-path",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["longmem-generate", str(moved / "longmem"), *options])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a")))
        with pytest.raises(SystemExit):
            run(generate.main)
        assert capsys.readouterr().err == f"longmem-generate: error: {message}\n"


def test_a_checkpoint_to_go_on_from_has_to_be_there(tmp_path):
    """fairseq would begin anew, without a word."""
    cfg = SimpleNamespace(
        restore_file=str(tmp_path / "gone.pt"), continue_once=None, save_dir=str(tmp_path)
    )
    with pytest.raises(FileNotFoundError) as error:
        checkpoint_utils.load_checkpoint(cfg, None)
    assert str(error.value) == f"--restore-file ({tmp_path}/gone.pt): no such checkpoint"
    cfg.restore_file = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"checkpoint_last.pt\): no such checkpoint"):
        checkpoint_utils.load_checkpoint(cfg, None)
