#!/usr/bin/env python3
"""Training beside other work: what is left of its speed when other processes keep cores busy.

Example:
    python -m eval.benchmark_busy --model models/smollm2 --compute-dtype bfloat16 --json busy.json

Training steps alone and beside --busy processes that do nothing but count, in turns. Ends with the
project's goal, set for one busy process on two cores; the exit code is 0 whether it is met or not.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

from eval.common.hardware import Rates, describe_hardware
from eval.common.speed_options import Parser, positive, set_up
from eval.common.speed_report import Check, write_report
from eval.common.timed_model import (
    LONGMEM,
    PRESETS,
    add_step_options,
    build_backbone,
    build_model,
    check_step_options,
    segment_step,
)
from eval.common.timing import Step, interleaved, pair_ratios
from longmem_fairseq.models.backbone import COMPUTE_DTYPES
from longmem_fairseq.utils.cli import run

GOAL = 0.45  # of the speed alone
QUICK = {"preset": "tiny", "memory_size": 1024, "repeats": 2}


def read_options() -> argparse.Namespace:
    """The command line, complete and checked.

    Raises:
        ValueError, FileNotFoundError: naming the option
    """
    parser = Parser(__doc__.split("\n")[0], "", QUICK)
    parser.set_defaults(mode=["training"])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="small", help="sizes of a random model")
    add("--model", type=Path, help="folder of a converted model, instead of --preset")
    add("--compute-dtype", choices=COMPUTE_DTYPES, default="float32", help="of the products")
    add("--busy", type=positive, default=1, help="processes beside the training")
    add_step_options(parser)
    args = parser.read()
    if args.plot:
        raise ValueError("--plot: there is nothing to plot")
    check_step_options(args)
    return args


@contextmanager
def counting_processes(number: int) -> Iterator[List[subprocess.Popen]]:
    """Processes that count, stopped until they get SIGCONT; they end with the context."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        send(processes, signal.SIGSTOP)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def send(processes: List[subprocess.Popen], number: signal.Signals) -> None:
    """Sends a signal to all of them."""
    for process in processes:
        os.kill(process.pid, number)


def main() -> None:
    """Measures, prints and writes the report."""
    args = read_options()
    set_up(args)
    hardware = describe_hardware(args.device)
    rates = Rates.measure([args.compute_dtype], args.device)
    print(f"{hardware}\n{rates}")
    model = build_model(args, args.compute_dtype, LONGMEM, build_backbone(args, args.compute_dtype))
    step = segment_step(args, model, training=True)
    with counting_processes(args.busy) as processes:
        steps = {
            "alone": Step(step.run, lambda: send(processes, signal.SIGSTOP)),
            "busy": Step(step.run, lambda: send(processes, signal.SIGCONT)),
        }
        seconds = interleaved(steps, args.repeats, args.device)
    kept = pair_ratios(seconds["alone"], seconds["busy"])
    median = statistics.median(kept)
    print(
        f"a step alone: {statistics.median(seconds['alone']):.3f} s; beside {args.busy} busy: "
        f"{statistics.median(seconds['busy']):.3f} s, {median:.2f} of the speed "
        f"({min(kept):.2f} to {max(kept):.2f})"
    )
    checks = [Check.at_least("training beside other work: speed kept", median, GOAL)]
    print(*checks, sep="\n")
    if args.json:
        write_report(args.json, hardware, rates, checks, seconds=seconds, kept=kept)


if __name__ == "__main__":
    run(main)
