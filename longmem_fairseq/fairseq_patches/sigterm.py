"""An end by SIGTERM, which Slurm and torchrun send before they kill."""

import logging
import signal
import sys
from typing import Callable, Dict

import torch

logger = logging.getLogger(__name__)


class StopOnSigterm:
    """Around fairseq-train: after a SIGTERM the update is finished, a checkpoint saved, and the exit
    code 143 (128 + SIGTERM), so that no script takes the training for complete.

    It stands in for fairseq's ``should_stop_early``, which every rank asks after every update, so
    that a SIGTERM to one rank ends all of them after the same update. Before the first update there is
    nothing to save, and SIGTERM ends the process at once.

    Args:
        functions: the global names of fairseq_cli.train
    """

    def __init__(self, functions: Dict[str, Callable]):
        self.functions, self.should_stop_early = functions, functions["should_stop_early"]
        self.received = self.stopped = False
        self.handler_before = None

    def __enter__(self) -> None:
        self.functions["should_stop_early"] = self._should_stop

    def __exit__(self, *error) -> None:
        self.functions["should_stop_early"] = self.should_stop_early
        if self.handler_before is not None:
            signal.signal(signal.SIGTERM, self.handler_before)
        if self.stopped and error[0] is None:
            sys.exit(128 + signal.SIGTERM)

    def _should_stop(self, cfg, valid_loss) -> bool:
        if self.handler_before is None:
            self.handler_before = signal.signal(signal.SIGTERM, self._receive)
        self.stopped = _any_rank(self.received)
        if self.stopped:
            logger.info("SIGTERM: saving a checkpoint; the same command goes on from there")
        return self.should_stop_early(cfg, valid_loss) or self.stopped

    def _receive(self, *_) -> None:
        self.received = True


def _any_rank(flag: bool) -> bool:
    if not torch.distributed.is_initialized():
        return flag
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(flag, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)
