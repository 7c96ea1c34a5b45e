#!/usr/bin/env python3
"""Speed and peak memory of LongMem, with random weights and a full memory, on this machine.

Example:
    python -m eval.benchmark_model --preset small --json small.json --plot small.png

Measures how fast this machine multiplies matrices and copies, then evaluation and training with
memory, the same without, the backbone alone, and the backbone that reads more context in its own
window. The share of a result: the time that the operations it needs would take at the rate of the
machine's matrix products, divided by the time it took. Ends with the project's goals; the exit code
is 0 whether they are met or not. With --quick peak memory is left out.
"""

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from copy import copy
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Callable, Dict, List, Tuple
from unittest.mock import patch

import matplotlib
from torch import nn

from eval.common.hardware import Rates, describe_hardware, peak_bytes, reset_peak
from eval.common.random_model import (
    BACKBONE,
    LONGMEM,
    NO_MEMORY,
    PRESETS,
    READ,
    SEARCH,
    VARIANTS,
    build_backbone,
    build_model,
    make_step,
    model_config,
    necessary_bytes,
    necessary_flops,
    sizes_of,
)
from eval.common.speed_options import Parser, positive, set_up, several
from eval.common.speed_report import Check, write_report
from eval.common.timing import Stages, interleaved, seconds_of, timed
from longmem_fairseq.memory import check_sizes
from longmem_fairseq.models.backbone import COMPUTE_DTYPES
from longmem_fairseq.modules import joint_attention
from longmem_fairseq.utils.cli import run

MODES = ("evaluation", "training")
STAGES = (
    *("backbone", "SideNet layers", SEARCH, READ, "head", "write"),
    *("loss", "backward", "optimizer", "other"),
)
QUICK = {
    "preset": "small",
    "compute_dtype": "float32",
    "mode": "evaluation",
    "repeats": 3,
    "window_contexts": "",
}


def get_parser() -> Parser:
    parser = Parser(__doc__.split("\n")[0], "tokens/s", QUICK)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="gpt2_medium", help="sizes of the model")
    dtypes, modes = ",".join(COMPUTE_DTYPES), ",".join(MODES)
    dtype_list = several(str, COMPUTE_DTYPES)
    add("--compute-dtype", type=dtype_list, default="float32,bfloat16", help=f"some of {dtypes}")
    add("--mode", type=several(str, MODES), default=modes, help=f"some of {modes}")
    add(
        "--memory-size",
        type=positive,
        default=65536,
        help="tokens of the memory bank",
    )
    add("--chunk-size", type=positive, default=4, help="tokens per chunk")
    add("--k", type=positive, default=64, help="tokens retrieved per query and head")
    add(
        "--model-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any field of LongMemConfig, such as memory_index=torch; may be repeated",
    )
    add(
        "--tokens-per-sample",
        type=positive,
        help="tokens of a segment, if not the preset's",
    )
    add("--batch-size", type=positive, help="streams, if not the preset's")
    add(
        "--window-contexts",
        type=several(positive),
        default="4096,8192",
        help="tokens that the backbone alone reads in one window, in one stream; '' for none. "
        "65536 is out of reach on a CPU: its ALiBi mask, heads x T x T, takes 275 GB with 16 heads",
    )
    return parser


def read_options() -> argparse.Namespace:
    """The command line, complete and checked.

    Raises:
        ValueError, FileNotFoundError: naming the option
    """
    args = get_parser().read()
    args.tokens_per_sample = args.tokens_per_sample or PRESETS[args.preset].tokens
    args.batch_size = args.batch_size or PRESETS[args.preset].streams
    config = model_config(args)
    check_sizes(config.memory_size, config.chunk_size, config.k)
    if config.no_memory:
        raise ValueError("--model-option: keep the memory; the model without it is measured anyway")
    return args


def breakdown(model: nn.Module, step: Callable, repeats: int, device) -> Dict[str, float]:
    """Seconds by stage of the median of *repeats* steps; "other" is what belongs to no stage."""
    measured = []
    for _ in range(repeats):
        stages = Stages(device)
        parts = [
            (model.backbone, "encode", "backbone"),
            (model.backbone, "output_layer", "head"),
            *((layer, "forward", "SideNet layers") for layer in model.layers),
            (model.memory, "retrieve", READ),
            (model.memory.bank.ring.index, "search", SEARCH),
            (joint_attention, "memory_attention", READ),
            (model.memory, "write", "write"),
            (model.memory, "flush", "write"),  # in training the next step writes a segment
        ]
        with ExitStack() as stack:
            for owner, name, stage in parts:
                counted = stages.wrap(stage, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, counted))
            total = seconds_of(partial(step, stages), device)
        stages.seconds["other"] = total - sum(stages.seconds.values())
        measured.append((total, stages.seconds))
    _, seconds = sorted(measured, key=itemgetter(0))[repeats // 2]
    return {stage: seconds[stage] for stage in STAGES if stage in seconds}


def measure(args: argparse.Namespace, dtype: str, rates: Rates) -> Tuple[List[Dict], List[Dict]]:
    """Results of the variants, timed in turns, and the stages of a step of LongMem."""
    backbone = build_backbone(args, dtype)
    models = {variant: build_model(args, dtype, variant, backbone) for variant in VARIANTS}
    results, stages = [], []
    for mode in args.mode:
        training = mode == "training"
        steps = {
            variant: make_step(args, model, training)
            for variant, model in models.items()
            if not (training and variant == BACKBONE)  # it is frozen
        }
        seconds = interleaved(steps, args.repeats, args.device)
        rows = [result(args, dtype, mode, variant, seconds[variant], rates) for variant in steps]
        pairs = zip(seconds[NO_MEMORY], seconds[LONGMEM], strict=True)
        rows[0]["memory_cost"] = 1 - statistics.median(without / own for without, own in pairs)
        results += rows
        spent = breakdown(models[LONGMEM], steps[LONGMEM], args.repeats, args.device)
        stages += stage_rows(args, dtype, mode, spent, rates, models[LONGMEM])
    return results, stages


def stage_rows(
    args, dtype: str, mode: str, spent: Dict[str, float], rates: Rates, model: nn.Module
) -> List[Dict]:
    """The breakdown of a step of *model*: seconds of every stage, and the share of a rate."""
    sizes = sizes_of(args, LONGMEM)
    flops = necessary_flops(sizes, mode == "training")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moved = necessary_bytes(sizes, model.memory.bank.ring.store.keys.itemsize, trainable)
    rows = []
    for stage, seconds in spent.items():
        row = {"mode": mode, "compute_dtype": dtype, "stage": stage, "seconds": seconds}
        row["share_of_step"] = seconds / sum(spent.values())
        if stage in moved:
            least = moved[stage] / rates.copy_bytes_per_second
            row.update(share=least / seconds, share_of="copy rate")
        elif stage in flops:
            least = flops[stage] / rates.matmul_flops_per_second[dtype]
            row.update(share=least / seconds, share_of="matmul rate")
        rows.append(row)
    return rows


def result(
    args: argparse.Namespace,
    dtype: str,
    mode: str,
    variant: str,
    seconds: List[float],
    rates: Rates,
) -> Dict:
    """One line of the table."""
    flops = sum(necessary_flops(sizes_of(args, variant), mode == "training").values())
    median = statistics.median(seconds)
    return {
        "mode": mode,
        "compute_dtype": dtype,
        "variant": variant,
        "tokens_per_second": args.batch_size * args.tokens_per_sample / median,
        "seconds": median,
        "seconds_min": min(seconds),
        "necessary_flops": flops,
        "share": flops / (median * rates.matmul_flops_per_second[dtype]),
    }


def alone(
    args: argparse.Namespace, dtype: str, mode: str, variant: str, repeats: int = 1
) -> Tuple[float, int]:
    """Seconds of a step (median of *repeats* after a first one) and peak memory (bytes) in a process
    that does nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_alone, args, dtype, mode, variant, repeats).result()


def measure_alone(
    args: argparse.Namespace, dtype: str, mode: str, variant: str, repeats: int
) -> Tuple[float, int]:
    set_up(args)
    model = build_model(args, dtype, variant, build_backbone(args, dtype))
    step = make_step(args, model, mode == "training")
    reset_peak(args.device)
    seconds = timed(step, repeats, args.device).median
    return seconds, peak_bytes(args.device)


def add_windows(args: argparse.Namespace, dtype: str, results: List[Dict], rates: Rates) -> None:
    """Results of the backbone reading long windows; one that does not fit is reported on screen."""
    for window in args.window_contexts if "evaluation" in args.mode else ():
        wide = copy(args)
        wide.batch_size, wide.tokens_per_sample = 1, window
        variant = f"{BACKBONE}, window {window}"
        try:
            seconds, peak = alone(wide, dtype, "evaluation", variant)
        except RuntimeError as error:  # out of memory, or the process was killed for it
            print(f"{variant}, {dtype}: not measured: {str(error).splitlines()[0]}")
            continue
        results.append(result(wide, dtype, "evaluation", variant, [seconds], rates))
        results[-1]["peak_bytes"] = peak


def goals(preset: str, device: str, results: List[Dict]) -> List[Check]:
    """The project's goals, as far as *results* can tell; none for the preset tiny."""
    checks = []
    own = {(r["mode"], r["compute_dtype"]): r for r in results if r["variant"] == LONGMEM}
    if preset == "tiny":
        return checks
    for (mode, dtype), row in own.items():
        name = f"{preset} {mode} {dtype}"
        if (mode, dtype) == ("evaluation", "float32"):
            checks.append(Check.at_least(f"{name}: share", row["share"], 0.75))
        if (device, mode, dtype) == ("cuda", "training", "bfloat16"):
            checks.append(Check.at_least(f"{name}: share", row["share"], 0.4))
        most = 0.1 if device == "cuda" else {"evaluation": 0.15, "training": 0.2}[mode]
        checks.append(Check.at_most(f"{name}: memory cost", row["memory_cost"], most))
    pair = [own.get(("evaluation", dtype)) for dtype in ("bfloat16", "float32")]
    if all(pair):
        ratio = pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"]
        name = f"{preset} evaluation: tokens/s bfloat16 / float32"
        checks.append(Check.at_least(name, ratio, 2.5))
    return checks


def print_results(results: List[Dict]) -> None:
    print(f"\n{'':52}tokens/s  s/segment   share   peak MiB  memory cost")
    for row in results:
        peak, cost = row.get("peak_bytes"), row.get("memory_cost")
        print(
            f"{row['mode']:11} {row['compute_dtype']:9} {row['variant']:28}"
            f"{row['tokens_per_second']:>11,.0f}{row['seconds']:>11.3f}{row['share']:>8.1%}"
            + (f"{peak / 2**20:>11,.0f}" if peak else 11 * " ")
            + (f"{cost:>13.1%}" if cost is not None else "")
        )


def print_stages(stages: List[Dict]) -> None:
    before = None
    for row in stages:
        if (row["mode"], row["compute_dtype"]) != before:
            before = (row["mode"], row["compute_dtype"])
            print(f"\nwhere a step of longmem goes: {', '.join(before)}")
        share = f"{row['share']:>9.1%} of the {row['share_of']}" if "share" in row else ""
        milliseconds = 1000 * row["seconds"]
        print(f"  {row['stage']:28}{milliseconds:>10.1f} ms{row['share_of_step']:>9.1%}{share}")


def plot(results: List[Dict], title: str, path: Path) -> None:
    """Bars of tokens/s."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{row['variant']}\n{row['mode']}, {row['compute_dtype']}" for row in results]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.5 * len(results)))
    bars = axes.barh(names, [row["tokens_per_second"] for row in results])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="tokens/s", title=title)
    axes.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    args = read_options()
    set_up(args)
    hardware = describe_hardware(args.device)
    rates = Rates.measure(args.compute_dtype, args.device)
    print(f"{hardware}\n{rates}")
    results, stages = [], []
    for dtype in args.compute_dtype:
        rows, its_stages = measure(args, dtype, rates)
        if not args.quick:
            for row in rows:
                row["peak_bytes"] = alone(args, dtype, row["mode"], row["variant"])[1]
        add_windows(args, dtype, rows, rates)
        results += rows
        stages += its_stages
    print_results(results)
    print_stages(stages)
    checks = goals(args.preset, args.device.type, results)
    print()
    for check in checks:
        print(check)
    if args.json:
        sizes = sizes_of(args, LONGMEM)._asdict()
        found = {"preset": args.preset, "sizes": sizes, "results": results, "breakdown": stages}
        write_report(args.json, hardware, rates, checks, **found)
    if args.plot:
        plot(results, f"{args.preset}, {hardware}", args.plot)


if __name__ == "__main__":
    run(main)
