#!/usr/bin/env python3
"""Speed and peak memory of LongMem with a full memory, on this machine.

Examples:
    python -m eval.benchmark_model --preset small --json small.json --plot small.png
    python -m eval.benchmark_model --model models/smollm2 --mode evaluation,generation

Measures how fast this machine multiplies matrices and copies, then evaluation, training and generation
with memory, the same without, the backbone alone, and the backbone that reads more context in its own
window. The share of a result: the time that the operations it needs would take at the rate of the
machine's matrix products (of a generation: the time to copy all weights once a token), divided by the
time it took. Ends with the project's goals; the exit code is 0 whether they are met or not. With
--quick peak memory is left out.
"""

import argparse
from copy import copy
from pathlib import Path
from typing import Dict, List

import matplotlib

from eval.common.hardware import Rates, describe_hardware
from eval.common.model_speed import alone, measure, result
from eval.common.speed_options import Parser, positive, set_up, several
from eval.common.speed_report import Check, write_report
from eval.common.timed_model import (
    BACKBONE,
    LONGMEM,
    MODES,
    PRESETS,
    add_step_options,
    check_step_options,
    sizes_of,
)
from longmem_fairseq.models.backbone import COMPUTE_DTYPES
from longmem_fairseq.utils.cli import run

QUICK = {
    "preset": "small",
    "compute_dtype": "float32",
    "mode": "evaluation",
    "repeats": 3,
    "window_contexts": "",
}


def get_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__.split("\n")[0], "tokens/s", QUICK)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="gpt2_medium", help="sizes of a random model")
    add("--model", type=Path, help="folder of a converted model, instead of --preset")
    dtypes, modes = ",".join(COMPUTE_DTYPES), ",".join(MODES)
    dtype_list = several(str, COMPUTE_DTYPES)
    add("--compute-dtype", type=dtype_list, default="float32,bfloat16", help=f"some of {dtypes}")
    add("--mode", type=several(str, MODES), default=modes, help=f"some of {modes}")
    add_step_options(parser)
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
    check_step_options(args)
    return args


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
        results.append(result(wide, dtype, "evaluation", None, variant, [seconds], rates))
        results[-1]["peak_bytes"] = peak


def goals(name: str, device: str, results: List[Dict]) -> List[Check]:
    """The project's goals, as far as *results* can tell; none for the preset tiny.

    Args:
        name: of a preset, or of a converted model
    """
    if name == "tiny":
        return []
    own = {(r["mode"], r["compute_dtype"]): r for r in results if r["variant"] == LONGMEM}
    checks = []
    for (mode, dtype), row in own.items():
        add = preset_goals if name in PRESETS else model_goals
        checks += add(f"{name} {mode} {dtype}", device, mode, dtype, row)
    pair = [own.get(("evaluation", dtype)) for dtype in ("bfloat16", "float32")]
    if name in PRESETS and all(pair):
        ratio = pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"]
        checks.append(Check.at_least(f"{name} evaluation: tokens/s bfloat16 / float32", ratio, 2.5))
    return checks


def preset_goals(name: str, device: str, mode: str, dtype: str, row: Dict) -> List[Check]:
    """Of the paper's model: share of the matrix rate, and what memory costs."""
    checks = []
    if mode == "generation":
        return checks
    if (mode, dtype) == ("evaluation", "float32"):
        checks.append(Check.at_least(f"{name}: share", row["share"], 0.75))
    if (device, mode, dtype) == ("cuda", "training", "bfloat16"):
        checks.append(Check.at_least(f"{name}: share", row["share"], 0.4))
    most = 0.1 if device == "cuda" else {"evaluation": 0.15, "training": 0.2}[mode]
    checks.append(Check.at_most(f"{name}: memory cost", row["memory_cost"], most))
    return checks


def model_goals(name: str, device: str, mode: str, dtype: str, row: Dict) -> List[Check]:
    """Of a converted model: set for SmolLM2-135M in bfloat16, on a machine that multiplies it."""
    if mode == "evaluation":
        return [Check.at_least(f"{name}: speed / backbone's", row["of_backbone"], 0.6)]
    if mode == "training":
        return [Check.at_least(f"{name}: share", row["share"], 0.45)]
    return [Check.at_most(f"{name}: memory cost", row["memory_cost"], 0.15)]


def print_results(results: List[Dict]) -> None:
    """A line for every result."""
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
    """A line for every stage."""
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
    """Runs the script; see the module's documentation."""
    args = read_options()
    set_up(args)
    name = args.preset if args.model is None else args.model.resolve().name
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
    checks = goals(name, args.device.type, results)
    print("", *checks, sep="\n")
    if args.json:
        sizes = sizes_of(args, LONGMEM)._asdict()
        found = {"model": name, "sizes": sizes, "results": results, "breakdown": stages}
        write_report(args.json, hardware, rates, checks, **found)
    if args.plot:
        plot(results, f"{name}, {hardware}", args.plot)


if __name__ == "__main__":
    run(main)
