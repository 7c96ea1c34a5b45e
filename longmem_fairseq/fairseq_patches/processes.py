"""Replacements for fairseq's functions that start processes.

fairseq's commands as several processes: on CPUs too, and with a clear end.

fairseq counts GPUs to know how many processes there are. On CPUs ``torchrun`` therefore gave W
separate trainings, and the default backends, ``nccl`` and ``pytorch_ddp``, need GPUs.

It leaves its process group to the end of the interpreter, where gloo's threads may still need it:
now and then a rank that had done all its work died by SIGABRT. And its ``--heartbeat-timeout`` sends
SIGINT, which a process that waits for another one inside gloo or nccl does not heed.

And fairseq-eval-lm prints the perplexity of the first rank's part.
"""

import os
import signal
from functools import partial

import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import DistributedTimeoutWrapper
from fairseq.distributed import utils as distributed_utils

from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.fairseq_patches.rank_evaluation import eval_lm_of_ranks
from longmem_fairseq.fairseq_patches.sigterm import StopOnSigterm
from longmem_fairseq.tasks.config import TASK, check_command
from longmem_fairseq.utils.allocator import keep_freed_memory
from longmem_fairseq.utils.cli import option_names

# for --heartbeat-timeout
timeout_wrapper = partial(DistributedTimeoutWrapper, signal=signal.SIGKILL)

_original_call_main = distributed_utils.call_main
_original_main = distributed_utils.distributed_main

# gloo has no exception type for the loss of another process, but a RuntimeError with one of these texts
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
)
_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def use_cpus(cfg: DistributedTrainingConfig) -> None:
    """Settings for the processes of ``torchrun``, or of ``--distributed-*``, on CPUs.

    Raises:
        ValueError: nothing says where the processes meet
    """
    if cfg.distributed_init_method is None:
        if all(name in os.environ for name in _TORCHRUN):
            cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
            cfg.distributed_rank = int(os.environ["RANK"])
            cfg.distributed_init_method = "env://" if cfg.distributed_world_size > 1 else None
        elif cfg.distributed_world_size == torch.cuda.device_count():  # fairseq's default
            cfg.distributed_world_size = 1
        elif cfg.distributed_world_size > 1 and "SLURM_JOB_ID" not in os.environ:
            raise ValueError(
                f"--distributed-world-size ({cfg.distributed_world_size}) on CPUs needs torchrun, or "
                "--distributed-init-method and --distributed-rank"
            )
    if cfg.distributed_world_size == 1:
        return
    cfg.distributed_no_spawn = True  # fairseq would start a process per GPU: none
    if cfg.distributed_backend == "nccl":
        cfg.distributed_backend = "gloo"
    if cfg.ddp_backend in ("pytorch_ddp", "c10d"):
        cfg.ddp_backend = "legacy_ddp"


@option_names()
def call_main(cfg, main, **kwargs):
    """``fairseq.distributed.utils.call_main`` with the above, an end by SIGTERM, and clear errors.

    Raises:
        ValueError: see :func:`use_cpus` and, for our task, :func:`check_command`
    """
    if _is_ours(cfg):
        check_command(cfg)
        keep_freed_memory()
    if cfg.common.cpu or not torch.cuda.is_available():
        use_cpus(cfg.distributed_training)
    functions = main.__globals__  # of the command, which may have been started as __main__
    if "should_stop_early" not in functions:  # not a training
        return _original_call_main(cfg, main, **kwargs)
    with StopOnSigterm(functions):
        return _original_call_main(cfg, main, **kwargs)


def _is_ours(cfg) -> bool:
    """True for a command with the task of this plugin."""
    return getattr(getattr(cfg, "task", None), "_name", None) == TASK


@option_names()
def distributed_main(device_id, main, cfg, kwargs):
    """``fairseq.distributed.utils.distributed_main`` of a rank, whose command is *main*.

    It leaves the process group after success. A process that fairseq has spawned imported nothing
    but this module, and for a package that is imported fairseq skips --user-dir.

    Raises:
        ConnectionError: another rank has ended, or does not answer
        ValueError: fairseq-eval-lm is to read a shard, and its processes read shards already
    """
    install()
    if _is_ours(cfg):
        keep_freed_memory()
    if "eval_lm" in main.__globals__:  # fairseq-eval-lm, whose main calls it
        if (cfg.dataset.num_shards, cfg.dataset.shard_id) != (1, 0):
            raise ValueError(
                f"--num-shards ({cfg.dataset.num_shards}) and --shard-id ({cfg.dataset.shard_id}) do "
                "not go with several processes, each of which reads a shard: leave them out"
            )
        main.__globals__["eval_lm"] = eval_lm_of_ranks
    try:
        _original_main(device_id, main, cfg, kwargs)
    except RuntimeError as error:
        of_nccl = isinstance(error, torch.distributed.DistBackendError)
        if not of_nccl and not any(sign in str(error) for sign in _LOST):
            raise
        raise ConnectionError(
            f"rank {cfg.distributed_training.distributed_rank} has lost another rank, whose own log "
            "may say why; start all of them again with the same command: they go on from the last "
            "checkpoint"
        ) from error
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
