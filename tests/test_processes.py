"""Several processes: torchrun on CPUs, and what happens to all of them if something happens to one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from omegaconf import OmegaConf

from longmem_fairseq.processes import use_cpus
from tests.training_runs import TRAINING, assert_same_state, longmem

RANKS = 2
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--nproc-per-node", str(RANKS), "--no-python"]
# fairseq-train; a rank sends a signal to itself, or to what started it, after an update
SIGNALLING = """
import os, signal, sys, time
import longmem_fairseq, torch
from fairseq_cli import train
from longmem_fairseq.tasks import LongMemLanguageModelingTask as Task
update, rank, name, target = sys.argv.pop(1).split(",")
step = Task.optimizer_step
def optimizer_step(task, optimizer, model, update_num):
    step(task, optimizer, model, update_num)
    if (update_num + 1, torch.distributed.get_rank()) == (int(update), int(rank)):
        os.kill(os.getppid() if target == "parent" else os.getpid(), getattr(signal, name))
        time.sleep(1)
Task.optimizer_step = optimizer_step
train.cli_main()
"""


class Training:
    """fairseq-train on all ranks, started in one way or another.

    Args:
        arguments: of fairseq-train
    """

    def __init__(self, root: Path, arguments: str):
        self.root, self.arguments = root, f"{TRAINING} {arguments} --disable-validation".split()

    def by_torchrun(self, fault: str = "") -> tuple:
        """Output and exit code of torchrun."""
        process = self._start([*TORCHRUN, *self._program(fault)])
        return process.communicate(timeout=100)[0], process.returncode

    def by_hand(self, fault: str = "") -> tuple:
        """Output and exit code of each rank."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        options = (
            f"--distributed-world-size {RANKS} --distributed-init-method tcp://localhost:{port}"
        )
        processes = [
            self._start([*self._program(fault), *options.split(), "--distributed-rank", str(rank)])
            for rank in range(RANKS)
        ]
        outputs = [process.communicate(timeout=100)[0] for process in processes]
        return outputs, [process.returncode for process in processes]

    def _program(self, fault: str) -> list:
        program = ["-c", SIGNALLING, fault] if fault else ["-m", "fairseq_cli.train"]
        return [sys.executable, *program, *self.arguments]

    def _start(self, command: list) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.slow
def test_what_happens_to_one_rank_ends_all(root, runs, tmp_path):
    """SIGTERM to torchrun, and to one rank; SIGKILL of one rank; between them the run goes on."""
    arguments = f"{runs}/data1:{runs}/data2 {longmem(runs)} --batch-size 2 --max-update 40"
    parts = Training(root, f"{arguments} --save-dir {tmp_path / 'parts'}")
    whole = Training(root, f"{arguments} --save-dir {tmp_path / 'whole'}")

    def updates():
        state = torch.load(tmp_path / "parts" / "checkpoint_last.pt")
        return state["optimizer_history"][-1]["num_updates"]

    # SIGTERM to torchrun reaches the data loading workers too
    parts.arguments += ["--num-workers", "1"]
    output, code = parts.by_torchrun("4,0,SIGTERM,parent")
    assert "training on 2 devices" in output
    assert code != 0 and output.count("SIGTERM: saving a checkpoint") == 1, output
    assert 4 <= updates() <= 5
    parts.arguments[-1] = "0"

    outputs, codes = parts.by_hand("11,1,SIGTERM,self")
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert updates() == 11

    outputs, codes = parts.by_hand("17,1,SIGKILL,self")
    assert codes == [1, -signal.SIGKILL], outputs
    assert (
        "ConnectionError: rank 0 has lost another rank, whose own log may say why; start all of them "
        "again with the same command: they go on from the last checkpoint"
    ) in outputs[0].splitlines()[-1]
    assert updates() == 15

    output, code = parts.by_torchrun()
    assert code == 0, output
    outputs, codes = whole.by_hand()
    assert codes == [0, 0], outputs
    states = [torch.load(tmp_path / name / "checkpoint_last.pt") for name in ("parts", "whole")]
    assert_same_state(*states)
    assert states[0]["optimizer_history"][-1]["num_updates"] == 40


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


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"distributed_init_method": "tcp://localhost:1", "ddp_backend": "fully_sharded"},
            "--ddp-backend (fully_sharded) needs GPUs: leave it out",
        ),
        (
            {},
            "--distributed-world-size (3) on CPUs needs torchrun, or --distributed-init-method and "
            "--distributed-rank",
        ),
    ],
)
def test_what_cannot_work_on_cpus_is_refused_by_name(monkeypatch, options, message):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ValueError) as error:
        use_cpus(distributed(distributed_world_size=3, **options))
    assert str(error.value) == message
