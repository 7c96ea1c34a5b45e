"""LongMem: what it refuses, in one line, and that it changes nothing."""

import shutil
from pathlib import Path

import pytest
import torch

from longmem_fairseq import LongMem
from longmem_fairseq.memory import MemoryBank
from tests.helpers.model_folders import DOCUMENTS, TEXT, assert_same_memory, memory_state

BAD = {
    "no such folder": (
        lambda load_lm: LongMem.from_pretrained("nowhere"),
        "nowhere: no such model",
    ),
    "an unknown option": (
        lambda load_lm: load_lm(memory=3),
        "memory is no option of a model: expected pretrained_model_path, no_memory, memory_size, ",
    ),
    "an option of another model": (
        lambda load_lm: load_lm("backbone", k=2),
        "k (2) does not apply to a longmem_backbone model: leave it out",
    ),
    "a wrong size": (
        lambda load_lm: load_lm(k=3),
        "k (3) must be a multiple of chunk_size (2)",
    ),
    "a device": (
        lambda load_lm: load_lm(device="abacus"),
        "device (abacus) cannot be used: Expected one",
    ),
    "a device without numbers": (
        lambda load_lm: load_lm(device="meta"),
        "device (meta) cannot be used: expected cpu, cuda, cuda:1, ...",
    ),
    "half a character": (
        lambda load_lm: load_lm().score("\ud800"),
        "the text holds half of a surrogate pair, which is no text",
    ),
    "no memory to write": (
        lambda load_lm: load_lm("backbone").memorize("a"),
        "this model has no memory",
    ),
    "no memory to save": (
        lambda load_lm: load_lm("backbone").save_memory("a"),
        "this model has no memory",
    ),
    "no memory to read": (
        lambda load_lm: load_lm("backbone").retrieved("a"),
        "this model has no memory",
    ),
    "no memory to freeze": (
        lambda load_lm: load_lm(no_memory=True).frozen_memory().__enter__(),
        "this model has no memory",
    ),
    "too few names": (
        lambda load_lm: load_lm().memorize(["a", "b"], names="a"),
        "1 names for 2 documents",
    ),
    "no such file": (lambda load_lm: load_lm().memorize(Path("nowhere")), "nowhere: no such file"),
    "an empty document": (
        lambda load_lm: load_lm().memorize(["a", ""]),
        "a document: the text is empty",
    ),
    "passages of a negative number": (
        lambda load_lm: load_lm().retrieved("a", per_head=-1),
        "per_head (-1) must be at least 1",
    ),
    "a negative window": (
        lambda load_lm: load_lm(tokens_per_sample=-8),
        "tokens_per_sample (-8) must be at least 1",
    ),
    "a negative memory": (
        lambda load_lm: load_lm(memory_size=-8),
        "memory_size (-8) must be at least 1",
    ),
    "an empty text": (lambda load_lm: load_lm().score(""), "the text is empty"),
    "an empty text to read": (lambda load_lm: load_lm().retrieved(""), "the text is empty"),
    "an empty prompt": (lambda load_lm: load_lm().generate(""), "the prompt is empty"),
    "a negative length": (
        lambda load_lm: load_lm().generate("a", -1),
        "max_new_tokens (-1) must be at least 1",
    ),
    "a negative temperature": (
        lambda load_lm: load_lm().generate("a", temperature=-0.5),
        "temperature (-0.5) must be 0, or finite and at least 0.001",
    ),
    "no hypotheses": (
        lambda load_lm: load_lm().generate("a", beam=0),
        "beam (0) must be at least 1",
    ),
    "top_p": (
        lambda load_lm: load_lm().generate("a", temperature=1, top_p=1.5),
        "top_p (1.5) must be between 0 and 1",
    ),
    "top_k without temperature": (
        lambda load_lm: load_lm().generate("a", top_k=3),
        "top_k and top_p say what is drawn from: give a temperature above 0 too",
    ),
    "beam and temperature": (
        lambda load_lm: load_lm().generate("a", beam=2, temperature=1.0),
        "beam (2) searches, temperature (1.0) draws: give one",
    ),
    "an empty stop": (
        lambda load_lm: load_lm().generate("a", stop=["b", ""]),
        "stop holds an empty string, which every text contains",
    ),
    "ids without rows": (
        lambda load_lm: load_lm().logits([1, 2]),
        "token_ids of shape (2,), expected B x T",
    ),
    "no ids": (lambda load_lm: load_lm().logits([[]]), "token_ids of shape (1, 0), expected B x T"),
    "ids of no token": (
        lambda load_lm: load_lm().logits([[99999]]),
        "token_ids must be whole numbers from 0",
    ),
    "ids that are none": (
        lambda load_lm: load_lm().logits([[0.5]]),
        "token_ids must be whole numbers from 0",
    ),
    "no memory file": (
        lambda load_lm: load_lm().load_memory("nowhere"),
        "nowhere: no such memory file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(load_lm, case):
    call, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        call(load_lm)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_frozen_memory_refuses_to_change(load_lm, tmp_path):
    lm = load_lm()
    lm.memorize(DOCUMENTS["a"])
    lm.save_memory(tmp_path / "memory")
    before = memory_state(lm)
    with lm.frozen_memory():
        for change in (
            lambda: lm.memorize("a"),
            lm.forget,
            lambda: lm.load_memory(tmp_path / "memory"),
        ):
            with pytest.raises(ValueError) as error:
                change()
            assert str(error.value) == "the memory is frozen: leave frozen_memory() first"
    assert_same_memory(lm, before)


@pytest.mark.parametrize("kind", ["longmem", "memtrm"])
def test_memory_of_another_model_is_refused(load_lm, kind, tmp_path):
    path = tmp_path / "memory"
    load_lm(kind).save_memory(path)
    with pytest.raises(ValueError) as error:
        load_lm(f"other_{kind}").load_memory(path)
    assert str(error.value).startswith(f"{path} holds keys of the backbone ")


def test_memory_of_several_streams_is_refused(load_lm, tmp_path):
    lm, path = load_lm(), tmp_path / "memory"
    sizes = {name: lm.memory.options[name] for name in ("memory_size", "chunk_size", "k")}
    MemoryBank(2, 2, 16, **sizes).save(str(path))
    lm.memorize(DOCUMENTS["a"])
    before = memory_state(lm)
    with pytest.raises(ValueError) as error:
        lm.load_memory(path)
    assert str(error.value) == f"{path} holds 2 streams: a generation starts from one"
    assert_same_memory(lm, before)


def test_a_folder_that_is_not_complete(models, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        LongMem.from_pretrained(tmp_path)
    expected = "holds no model: expected checkpoint_best.pt, checkpoint_last.pt, "
    expected += "checkpoint.pt, model.safetensors"
    assert str(error.value) == f"{tmp_path} {expected}"
    for name, message in (
        ("checkpoint_last.pt", " has no dict.txt: copy dictionary and tokenizer"),
        ("dict.txt", " has no tokenizer: expected sentencepiece.model"),
    ):
        shutil.copy(models["longmem"] / name, tmp_path)
        with pytest.raises(FileNotFoundError) as error:
            LongMem.from_pretrained(tmp_path)
        assert str(error.value).startswith(f"{tmp_path}{message}")


def test_a_backbone_that_is_gone_can_be_named(models, tmp_path):
    for file in models["longmem"].iterdir():
        shutil.copy(file, tmp_path)
    checkpoint = tmp_path / "checkpoint_last.pt"
    state = torch.load(checkpoint)
    state["cfg"]["model"]["pretrained_model_path"] = "/gone/checkpoint.pt"
    state["cfg"]["task"]["pretrained_model_path"] = "gone/checkpoint.pt"  # as it was given
    state["task_state"].pop("backbone_place", None)  # of an older checkpoint
    torch.save(state, checkpoint)
    with pytest.raises(FileNotFoundError) as error:
        LongMem.from_pretrained(tmp_path)
    assert str(error.value) == (
        "pretrained_model_path (/gone/checkpoint.pt): no such file; "
        f"{checkpoint} needs its backbone: give pretrained_model_path"
    )
    backbone = str(models["backbone"] / "checkpoint_last.pt")
    lm = LongMem.from_pretrained(tmp_path, pretrained_model_path=backbone)
    expected = LongMem.from_pretrained(models["longmem"]).score(TEXT).log_probs
    assert torch.equal(lm.score(TEXT).log_probs, expected)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"text \xff\xfe", "byte 0xFF at offset 5"),
        (b"\x7fELF\0\0", "byte 0x00 at offset 4"),
    ],
)
def test_a_binary_file_is_no_document(load_lm, content, reason, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_lm().memorize(path)
    assert str(error.value) == f"{path} is not a text in UTF-8 ({reason})"


def test_patterns_without_files(load_lm, tmp_path):
    for path, message in (
        (tmp_path / "*.txt", f"{tmp_path}/*.txt: no such file"),
        (tmp_path, f"{tmp_path} is a folder: give its files, as {tmp_path}/*.txt"),
    ):
        with pytest.raises(FileNotFoundError) as error:
            load_lm().memorize(path)
        assert str(error.value) == message
