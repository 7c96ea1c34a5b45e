"""Loading a model: which checkpoint, and with which options."""

import shutil

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq import LongMem
from tests.helpers.model_folders import (
    DOCUMENTS,
    TEXT,
)


def test_the_best_checkpoint_comes_first(models, tmp_path):
    for file in models["longmem"].iterdir():
        shutil.copy(file, tmp_path)
    state = torch.load(tmp_path / "checkpoint_last.pt")
    for name, gate in (("checkpoint_best.pt", 1.0), ("checkpoint.pt", 2.0)):
        state["model"]["decoder.layers.0.self_attn.memory_bias"] += gate
        torch.save(state, tmp_path / name)
    gate = torch.sigmoid(torch.ones(2))
    assert torch.equal(LongMem.from_pretrained(tmp_path).decoder.gate, gate)
    assert torch.equal(
        LongMem.from_pretrained(str(tmp_path / "checkpoint_best.pt")).decoder.gate, gate
    )
    (tmp_path / "checkpoint_best.pt").unlink()
    lm = LongMem.from_pretrained(tmp_path)
    assert torch.equal(lm.decoder.gate, torch.full((2,), 0.5)) and not lm.model.training


def test_options_replace_those_of_training(load_lm):
    lm = load_lm(memory_size=64, k=2, memory_dtype="int8", dtype="bfloat16")
    options = lm.memory.options
    assert (options["memory_size"], options["k"], options["dtype"]) == (64, 2, "int8")
    assert lm.decoder.backbone.compute_dtype == torch.bfloat16
    assert lm.memorize(DOCUMENTS["a"]) > 0
    assert load_lm(no_memory=True).decoder.memory is None
    half = load_lm("backbone", dtype=torch.bfloat16)
    assert half.decoder.compute_dtype == torch.bfloat16


def changed(models, folder, **options):
    """The longmem as if it had been trained with other options."""
    shutil.copytree(models["longmem"], folder)
    state = torch.load(folder / "checkpoint_last.pt")
    state["cfg"]["model"].update(options)
    torch.save(state, folder / "checkpoint_last.pt")
    return folder


def test_the_released_switch_in_a_checkpoint_leaves_no_memory_possible(models, tmp_path):
    path = changed(models, tmp_path / "model", use_external_memory=True)
    assert LongMem.from_pretrained(path, no_memory=True).decoder.memory is None
    assert LongMem.from_pretrained(path).decoder.memory is not None


def test_parameters_of_an_index_go_with_it(models, tmp_path):
    options = {"memory_index": "IVF1,Flat", "memory_index_parameters": "nprobe=1"}
    path = changed(models, tmp_path / "model", **options)
    for given, parameters in (({}, "nprobe=1"), ({"memory_index": "torch"}, "")):
        lm = LongMem.from_pretrained(path, **given)
        assert lm.memory.options["index_parameters"] == parameters
    lm = LongMem.from_pretrained(path, memory_index="IVF1,Flat")
    assert lm.memory.options["index_parameters"] == "nprobe=1"


@pytest.mark.gpu
def test_on_a_gpu(load_lm):
    lm, other = load_lm(device="cuda"), load_lm()
    for used in (lm, other):
        used.memorize(DOCUMENTS.values())
    assert_close(lm.score(TEXT).log_probs, other.score(TEXT).log_probs, atol=1e-3, rtol=0)
    assert lm.generate(TEXT, 8) == other.generate(TEXT, 8)
    assert lm.generate(TEXT, 8, temperature=1, seed=1) == lm.generate(
        TEXT, 8, temperature=1, seed=1
    )
