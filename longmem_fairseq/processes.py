"""fairseq-train as several processes: on CPUs too, and with a clear end.

fairseq counts GPUs to know how many processes there are. On CPUs ``torchrun`` therefore gave W
separate trainings, and the default backends, ``nccl`` and ``pytorch_ddp``, need GPUs.

It leaves its process group to the end of the interpreter, where gloo's threads may still need it:
now and then a rank that had done all its work died by SIGABRT.
"""

import os

import torch
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import utils as distributed_utils

from longmem_fairseq.sigterm import StopOnSigterm

_original_call_main = distributed_utils.call_main
_original_main = distributed_utils.distributed_main

_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def use_cpus(cfg: DistributedTrainingConfig) -> None:
    """Settings for the processes of ``torchrun``, or of ``--distributed-*``, on CPUs.

    Raises:
        ValueError: a --ddp-backend that needs GPUs
    """
    if cfg.distributed_init_method is None and all(name in os.environ for name in _TORCHRUN):
        cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        cfg.distributed_rank = int(os.environ["RANK"])
        if cfg.distributed_world_size > 1:
            cfg.distributed_init_method = "env://"
    if cfg.distributed_world_size == 1:
        return
    cfg.distributed_no_spawn = True  # fairseq would start a process per GPU: none
    if cfg.distributed_backend == "nccl":
        cfg.distributed_backend = "gloo"
    if cfg.ddp_backend in ("pytorch_ddp", "c10d"):
        cfg.ddp_backend = "legacy_ddp"
    if cfg.ddp_backend not in ("legacy_ddp", "no_c10d"):
        raise ValueError(f"--ddp-backend ({cfg.ddp_backend}) needs GPUs: leave it out")


def _call_main(cfg, main, **kwargs):
    """``fairseq.distributed.utils.call_main`` with the above, and an end by SIGTERM."""
    functions = main.__globals__  # of fairseq_cli.train, which may have been started as __main__
    if "should_stop_early" not in functions:  # not a training
        return _original_call_main(cfg, main, **kwargs)
    if cfg.common.cpu or not torch.cuda.is_available():
        use_cpus(cfg.distributed_training)
    with StopOnSigterm(functions):
        return _original_call_main(cfg, main, **kwargs)


def _distributed_main(*args):
    """``fairseq.distributed.utils.distributed_main``, which leaves the process group after success."""
    _original_main(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


distributed_utils.call_main = _call_main
distributed_utils.distributed_main = _distributed_main
