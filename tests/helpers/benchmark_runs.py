"""Running a benchmark's main() in this process, killing it, and reading its result lines."""

import json
import sys
from pathlib import Path
from typing import Callable, List

import pytest
import torch
from torch import Tensor

from eval.common.item_log import ItemLog
from longmem_fairseq import LongMem
from longmem_fairseq.utils import cli

TIMES = ("seconds",)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of ours catches it."""


def call(monkeypatch, main: Callable, program: str, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    main()


def lines(path: Path) -> List[dict]:
    """Result lines without what time they took."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def assert_resumes(monkeypatch, folder: Path, main: Callable, program: str, *arguments) -> None:
    """Two runs give the same lines, the second killed after every second item that it finishes."""
    whole, killed = folder / "whole.jsonl", folder / "killed.jsonl"
    call(monkeypatch, main, program, *arguments, "--results", whole)
    expected = lines(whole)
    assert expected
    add, finished, kills = ItemLog.add, [], 0

    def add_and_die(log, item, record):
        add(log, item, record)
        finished.append(item)
        if len(finished) % 2 == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ItemLog, "add", add_and_die)
        while True:
            try:
                call(patch, main, program, *arguments, "--results", killed)
                break
            except Killed:
                kills += 1
    assert kills >= 2
    # nothing was done twice
    assert len(finished) == sum(
        len(path.read_text(encoding="utf-8").splitlines()) - 1
        for path in Path(f"{whole}.items").iterdir()
    )
    assert lines(killed) == expected
    call(monkeypatch, main, program, *arguments, "--results", killed)  # nothing is left to do
    assert lines(killed) == expected


def whole_chunks(lm: LongMem, tokens: List[int]) -> Tensor:
    """The tokens to memorize, 1 x T: starts of documents complete the last chunk."""
    if lm.decoder.memory is None:
        return torch.tensor([tokens])
    missing = -len(tokens) % lm.decoder.memory.options["chunk_size"]
    return torch.tensor([tokens + missing * [lm.tokenizer.document_start]])


def assert_one_line(monkeypatch, capsys, main: Callable, program: str, *arguments) -> str:
    """Runs a command that fails: exit code 2, one line, no traceback; returns the message."""
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.run(main)
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (message,) = [line for line in captured.err.splitlines() if line.strip() and "%|" not in line]
    prefix = f"{program}: error: "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)
