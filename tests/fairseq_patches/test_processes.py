"""Several processes: torchrun on CPUs, and what happens to all of them if something happens to one."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq_cli import train
from omegaconf import OmegaConf

from longmem_fairseq.fairseq_patches import processes
from longmem_fairseq.fairseq_patches.processes import use_cpus
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from tests.helpers.training_runs import TRAINING, assert_same_state, longmem

RANKS = 2
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--nproc-per-node", str(RANKS), "--no-python"]


class Fault(NamedTuple):
    """A signal that a rank sends to itself after an update."""

    update: int
    rank: int
    signal: int


def train_rank(rank, port, arguments, by_environment, fault, errors):
    """fairseq-train as one rank, in a process of its own; an error goes to a file of its own."""
    torch.set_num_threads(1)
    step = LongMemLanguageModelingTask.optimizer_step

    def optimizer_step(task, optimizer, model, update_num):
        step(task, optimizer, model, update_num)
        if fault is not None and (update_num + 1, rank) == (fault.update, fault.rank):
            os.kill(os.getpid(), fault.signal)

    LongMemLanguageModelingTask.optimizer_step = optimizer_step
    if by_environment:  # as torchrun starts it
        settings = {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": port,
            "WORLD_SIZE": RANKS,
            "RANK": rank,
        }
        os.environ.update({name: str(value) for name, value in settings.items()})
    else:
        arguments += f" --distributed-world-size {RANKS} --distributed-rank {rank}"
        arguments += f" --distributed-init-method tcp://localhost:{port}"
    sys.argv = ["fairseq-train", *arguments.split()]
    try:
        train.cli_main()
    except Exception as error:
        (errors / str(rank)).write_text(f"{type(error).__name__}: {error}")
        raise


def train_ranks(arguments, errors, by_environment=False, fault=None) -> list:
    """Exit codes of all ranks, forks of this process: importing takes longer than training."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = (port, f"{TRAINING} --disable-validation {arguments}", by_environment, fault, errors)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=train_rank, args=(rank, *options)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=100)
        if fault is not None and fault.signal == signal.SIGSTOP:
            ranks[fault.rank].kill()
    return [process.exitcode for process in ranks]


def test_what_happens_to_one_rank_ends_all(root, monkeypatch, runs, tmp_path):
    """SIGTERM, then SIGKILL to one of two ranks; a run that goes on ends as an undisturbed one."""
    monkeypatch.chdir(root)
    arguments = f"{runs}/data1:{runs}/data2 {longmem(runs)} --batch-size 2 --max-update 20"
    parts, whole = tmp_path / "parts", tmp_path / "whole"

    def checkpoint(folder):
        return torch.load(folder / "checkpoint_last.pt")

    def updates():
        return checkpoint(parts)["optimizer_history"][-1]["num_updates"]

    def go_on(**options):
        return train_ranks(f"{arguments} --save-dir {parts}", tmp_path, **options)

    assert go_on(by_environment=True, fault=Fault(7, 1, signal.SIGTERM)) == [143, 143]
    assert updates() == 7
    assert go_on(fault=Fault(11, 1, signal.SIGKILL)) == [1, -signal.SIGKILL]
    assert updates() == 9
    assert (tmp_path / "0").read_text() == (
        "ConnectionError: rank 0 has lost another rank, whose own log may say why; start all of them "
        "again with the same command: they go on from the last checkpoint"
    )
    assert go_on(by_environment=True) == [0, 0]
    assert train_ranks(f"{arguments} --save-dir {whole}", tmp_path) == [0, 0]
    assert_same_state(checkpoint(parts), checkpoint(whole))
    assert updates() == 20


def test_a_rank_that_does_not_answer(root, monkeypatch, runs, tmp_path):
    """Like a machine that lost its power: no connection is closed. The others wait for so long."""
    monkeypatch.chdir(root)
    arguments = f"{runs}/data1 {longmem(runs)} --batch-size 2 --max-update 20 --heartbeat-timeout 2"
    fault = Fault(4, 1, signal.SIGSTOP)
    codes = train_ranks(f"{arguments} --save-dir {tmp_path}", tmp_path, fault=fault)
    assert codes == [-signal.SIGKILL] * 2
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 3


@pytest.mark.slow
def test_torchrun_is_told_to_end(root, runs, tmp_path):
    """It sends SIGTERM to all ranks and their data loading workers, which save one checkpoint."""
    arguments = f"{TRAINING} {runs}/data1:{runs}/data2 {longmem(runs)} --disable-validation"
    arguments += f" --batch-size 2 --num-workers 1 --max-update 5000 --save-dir {tmp_path / 'run'}"
    process = subprocess.Popen(
        [*TORCHRUN, sys.executable, "-m", "fairseq_cli.train", *arguments.split()],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if " | train_inner | " in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert output.count("training on 2 devices") == 1, output
    assert output.count("SIGTERM: saving a checkpoint") == 1, output
    logged = output.rpartition('"num_updates": "')[2].partition('"')[0]
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == int(logged)


def test_an_error_of_nccl_is_a_lost_rank_and_no_other_error_is(monkeypatch):
    """Without a GPU: the error is raised by hand."""
    cfg = OmegaConf.create({"distributed_training": {"distributed_rank": 3}})

    def end_with(error, expected=ConnectionError):
        monkeypatch.setattr(processes, "_original_main", mock.Mock(side_effect=error))
        with pytest.raises(expected) as raised:
            processes.distributed_main(0, train.main, cfg, {})
        return raised.value

    error = torch.distributed.DistBackendError("NCCL error ...: remote process exited ...")
    found = end_with(error)
    assert found.__cause__ is error
    assert str(found) == (
        "rank 3 has lost another rank, whose own log may say why; start all of them again with the "
        "same command: they go on from the last checkpoint"
    )
    assert str(end_with(RuntimeError("[...] Connection closed by peer"))) == str(found)
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert end_with(error, RuntimeError) is error


def distributed(**options):
    defaults = DistributedTrainingConfig(distributed_world_size=1)
    return OmegaConf.merge(OmegaConf.structured(defaults), options)


def test_torchruns_environment_makes_one_training(monkeypatch):
    for name, value in {
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
        "WORLD_SIZE": "3",
        "RANK": "2",
    }.items():
        monkeypatch.setenv(name, value)
    cfg = distributed()
    use_cpus(cfg)
    assert (cfg.distributed_world_size, cfg.distributed_rank) == (3, 2)
    assert (cfg.distributed_init_method, cfg.distributed_no_spawn) == ("env://", True)
    assert (cfg.distributed_backend, cfg.ddp_backend) == ("gloo", "legacy_ddp")
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = distributed()
    use_cpus(alone)
    assert alone.distributed_init_method is None and not alone.distributed_no_spawn


def test_processes_that_nobody_joins_are_refused(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ValueError) as error:
        use_cpus(distributed(distributed_world_size=3))
    assert str(error.value) == (
        "--distributed-world-size (3) on CPUs needs torchrun, or --distributed-init-method and "
        "--distributed-rank"
    )
