"""fairseq's commands as one process per rank, on a CPU.

A server imports fairseq once and forks the ranks.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import List

import torch
from fairseq_cli import eval_lm, train

from longmem_fairseq.fairseq_patches import install
from tests.helpers.training_runs import rank_options

COMMANDS = {"fairseq-train": train.cli_main, "fairseq-eval-lm": eval_lm.cli_main}


def run_ranks(command: str, ranks: int, root: Path, logs: Path) -> str:
    """Runs a command as so many processes; returns what the first printed.

    Raises:
        AssertionError: one of them failed; with what all printed
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    logs.mkdir(exist_ok=True)
    paths = [logs / f"rank{rank}.log" for rank in range(ranks)]
    processes = []
    for options, path in zip(rank_options(ranks), paths, strict=True):
        arguments = f"{command} {options}".split()
        processes.append(context.Process(target=_run, args=(arguments, root, path)))
        processes[-1].start()
    for process in processes:
        process.join(timeout=120)
    printed = [path.read_text() for path in paths]
    assert [process.exitcode for process in processes] == [0] * ranks, "\n".join(printed)
    return printed[0]


def _run(arguments: List[str], root: Path, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(root)
    torch.set_num_threads(1)
    install()  # fairseq imports --user-dir only if nobody has before
    sys.argv = arguments
    COMMANDS[arguments[0]]()
