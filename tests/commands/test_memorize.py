"""longmem-memorize: what it adds to, and what it leaves as it is."""

import fcntl
import json
import os
from unittest import mock

import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.memory import MemoryBank
from tests.helpers.commands import num_tokens
from tests.helpers.model_folders import DOCUMENTS


@pytest.mark.parametrize("option", ["", "|--memory-map"])
def test_memorizing_goes_on_with_what_was_saved(call, load, option):
    assert call("longmem-memorize|{longmem}|a.txt|--output|m").startswith("m: read 1 document of ")
    said = call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m|--json" + option)
    lm, other = load(), load(memorized=False)
    other.load_memory("m")
    bank, expected = (used.memory.single_bank(used.device) for used in (other, lm))
    assert bank.header() == expected.header()
    assert (bank.logs[0].ids == expected.logs[0].ids).all()
    tokens = num_tokens(lm, DOCUMENTS["b"])
    assert json.loads(said) == {
        "memory": "m",
        "documents": 1,
        "tokens": tokens,
        "held": expected.num_tokens[0],
        "waiting": expected.num_pending[0],
        "memory_size": 128,
    }


def test_a_memory_to_which_another_process_adds_is_refused_at_once(call, folder, capsys):
    call("longmem-memorize|{longmem}|a.txt|--output|m")
    before = (folder / "m").read_bytes()
    with open(folder / "m") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as exited:
            call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m")
    assert exited.value.code == 2 and capsys.readouterr().err == (
        "longmem-memorize: error: --output (m): another process is adding to it: wait until it has "
        "ended\n"
    )
    assert (folder / "m").read_bytes() == before
    call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m")
    assert [source.name for source in MemoryBank.load("m").sources[0]] == ["a.txt", "b.txt"]


def test_a_memory_that_appears_during_the_work_is_left_as_it_is(call, load, capsys, monkeypatch):
    def memorize(lm, texts, names, special_tokens, words_only):
        other.save_memory("m")  # another process was faster
        return 1

    other = load()
    monkeypatch.setattr(LongMem, "memorize", memorize)
    with pytest.raises(SystemExit):
        call("longmem-memorize|{longmem}|a.txt|--output|m")
    assert capsys.readouterr().err.startswith(
        "longmem-memorize: error: m: cannot be written (another process saved it after it was read"
    )
    assert [source.name for source in MemoryBank.load("m").sources[0]] == ["a.txt", "b.txt"]


def test_numbers_of_a_full_memory_agree(call):
    """Tokens of an incomplete chunk cannot be found: they are not held, and no more than that are."""
    said = call("longmem-memorize|{longmem}|a.txt|prompt.txt|--output|m|--memory-size|16|--k|4")
    bank = MemoryBank.load("m")
    assert bank.num_tokens == [16] and bank.num_pending[0] > 0
    held = "the memory holds 16 tokens, beginnings included, of at most 16"
    assert said.endswith(f"{held}, and {bank.num_pending[0]} of an unfinished chunk\n")


def test_a_memory_has_the_size_of_its_file(call, capsys):
    """Unless another one is asked for, which is refused."""
    call("longmem-memorize|{longmem}|a.txt|--output|m|--memory-size|64")
    said = call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m|--json")
    assert json.loads(said)["memory_size"] == 64
    with pytest.raises(SystemExit):
        call("longmem-generate|{longmem}|--memory|m|--prompt|Ann|--memory-size|128")
    assert "m holds a memory with memory size 64, not 128" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.txt", "is there, and no memory file: give a new name"),
        ("protected", "it is read-only (mode 400): chmod u+w, or give another name"),
        ("pipe", "it is no regular file: give another name"),
    ],
)
def test_the_output_is_looked_at_before_the_work(call, load, folder, capsys, name, message):
    load().save_memory("protected")
    (folder / "protected").chmod(0o400)
    os.mkfifo(folder / "pipe")
    with mock.patch.object(LongMem, "from_pretrained"), pytest.raises(SystemExit):
        call(f"longmem-memorize|{{longmem}}|a.txt|--output|{name}")
    error = capsys.readouterr().err
    assert error.startswith(f"longmem-memorize: error: --output ({name})")
    assert error.endswith(message + "\n") and error.count("\n") == 1
    assert (folder / "a.txt").read_text(encoding="utf-8") == DOCUMENTS["a"]


def test_a_document_of_windows_is_memorized_as_any_other(call, folder):
    call("longmem-memorize|{longmem}|a.txt|--output|m")
    windows = "\ufeff" + DOCUMENTS["a"].replace("\n", "\r\n")
    (folder / "a.txt").write_bytes(windows.encode())
    call("longmem-memorize|{longmem}|a.txt|--output|windows")
    assert (folder / "m").read_bytes() == (folder / "windows").read_bytes()
