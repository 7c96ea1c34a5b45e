"""The working directory of a command, and calls of it."""

import io
import sys

import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.utils.cli import run
from tests.helpers.commands import COMMANDS, PROMPT
from tests.helpers.model_folders import DOCUMENTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: two documents and a prompt."""
    monkeypatch.chdir(tmp_path)
    for name, text in DOCUMENTS.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(models, folder, monkeypatch, capsys):
    """Runs a command in this process; returns what it printed."""

    def run_command(line, stdin=""):
        program, *arguments = line.split("|")
        command = [argument.format(**models) for argument in arguments]
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{program}", *command])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        run(COMMANDS[program].main)
        return capsys.readouterr().out

    return run_command


@pytest.fixture
def load(models):
    """A longmem that has memorized the documents, or nothing."""

    def load_model(memorized=True):
        lm = LongMem.from_pretrained(models["longmem"])
        if memorized:
            lm.memorize(DOCUMENTS.values(), names=["a.txt", "b.txt"])
        return lm

    return load_model
