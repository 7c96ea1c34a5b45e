"""The scripts at the paper's scale: what they would start, on one machine and under Slurm.

The programs that they call are stubs that note how they are called.
"""

import os
import re
import subprocess

import pytest

STUBS = ("fairseq-train", "nvidia-smi", "scontrol", "srun", "torchrun")
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
if [[ "$(basename "$0")" == scontrol ]]; then
  for host in gpu7 gpu8 gpu11 gpu12; do echo "$host"; sleep 0.05; done || exit
fi
"""
SLURM = {
    **{"SLURM_NNODES": "4", "SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "gpu[7-8,11-12]"},
    **{"SLURM_CPUS_PER_TASK": "64", "SLURM_NTASKS_PER_NODE": "1"},
}
# of arXiv 2306.07174, section 4.1
PAPER = {
    **{"--optimizer": "adam", "--adam-betas": "(0.9, 0.98)", "--adam-eps": "1e-6"},
    **{"--weight-decay": "0.01", "--lr": "2e-4", "--lr-scheduler": "polynomial_decay"},
    **{"--max-update": "100000", "--total-num-update": "100000", "--tokens-per-sample": "1024"},
}
LONGMEM = {
    **{"--arch": "longmem", "--retrieval-layer-index": "17", "--layer-reduction-factor": "2"},
    **{"--memory-size": "65536", "--chunk-size": "4", "--k": "64", "--gate-lr-multiplier": "1"},
    **{"--sidenet-init": "released", "--activation-fn": "released"},
    **{"--pretrained-model-path": "backbone.pt"},
}
OURS = {"--clip-norm": "1.0", "--warmup-updates": "2000", "--stream-span": "64"}


@pytest.fixture
def start(tmp_path, root):
    """Runs a command from the checkout; gives what came of it and the calls."""
    calls = tmp_path / "calls"
    for name in STUBS:
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def run(command, **settings):
        calls.write_text("")
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls)}
        paths = {"DATA_DIR": "data", "BACKBONE": "backbone.pt", "SAVE_DIR": str(tmp_path / "run")}
        found = subprocess.run(
            ["bash", "-c", command],
            cwd=root,
            env={**own, **paths, **settings},
            capture_output=True,
            text=True,
        )
        return found, calls.read_text().splitlines()

    return run


def split(call):
    """The launcher of fairseq-train, and its options."""
    launch, _, arguments = call.partition(" fairseq-train data ")
    return launch, dict(re.findall(r"(--[a-z0-9-]+)(?: (?!--)(\([^)]*\)|\S+))?", arguments))


@pytest.mark.parametrize("name", ["pretrain", "adapt"])
def test_one_machine(name, start):
    found, (call,) = start(f"bash train_scripts/paper_{name}.sh --no-save-memory")
    assert found.returncode == 0, found.stderr
    launch, options = split(call)
    assert launch == "torchrun --nproc-per-node 8 --no-python"
    own = LONGMEM if name == "adapt" else {"--arch": "longmem_backbone_medium"}
    wanted = {**PAPER, **OURS, **own, "--compute-dtype": "bfloat16", "--no-save-memory": ""}
    assert {option: options.get(option) for option in wanted} == wanted
    # 8 GPUs x 8 streams x 4 segments are the paper's batch
    assert (options["--batch-size"], options["--update-freq"]) == ("8", "4")


@pytest.mark.parametrize("name", ["pretrain", "adapt"])
def test_several_machines_as_documented(name, start, root):
    """The command in sbatch's --wrap, in the environment of a job."""
    text = (root / "train_scripts" / "paper_launch.sh").read_text()
    options, command = re.search(r'sbatch (--nodes [^"]*) --wrap "(.*)"', text).groups()
    assert options.replace("\\\n#    ", "").split() == [
        *("--nodes", SLURM["SLURM_NNODES"], "--ntasks-per-node", SLURM["SLURM_NTASKS_PER_NODE"]),
        *("--gpus-per-node", "8", "--cpus-per-task", SLURM["SLURM_CPUS_PER_TASK"]),
    ]
    found, calls = start(command.replace("adapt", name), **SLURM)
    assert found.returncode == 0, found.stderr
    assert calls[0] == "scontrol show hostnames gpu[7-8,11-12]"
    launch, options = split(calls[1])
    assert launch == (
        "srun --cpus-per-task 64 torchrun --nnodes 4 --nproc-per-node 8 --rdzv-id 123 "
        "--rdzv-backend c10d --rdzv-endpoint gpu7:29500 --no-python"
    )
    assert (options["--batch-size"], options["--update-freq"]) == ("2", "4")  # x 32 GPUs = 256
    assert len(calls) == 2


def test_a_batch_that_cannot_be_shared_out_is_one_line(start):
    found, calls = start("bash train_scripts/paper_adapt.sh", GPUS="3")
    assert (found.returncode, calls) == (2, [])
    assert found.stderr == (
        "paper_adapt.sh: error: GLOBAL_BATCH (256) must be a multiple of GPUS (3) x machines (1) x "
        "UPDATE_FREQ (4)\n"
    )
