#!/usr/bin/env python3
"""Tokens/s and peak memory by total context, of LongMem and of a backbone with as large a window.

LongMem holds all of the context but a segment in memory; the backbone reads all of it in its window.

Example:
    python -m eval.efficiency --preset small --contexts 4096,8192 --results efficiency.jsonl

Random weights, one stream, a memory that is full; each measurement in a process of its own, by the
functions of eval/common/model_speed.py. Appends a JSON line to --results for each of them and prints
one for people. Killed and started again, it goes on with those that are left.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import torch

from eval.common import model_speed
from eval.common.hardware import describe_hardware
from eval.common.item_log import ItemLog
from eval.common.model_options import numbers
from eval.common.provenance import code_hash, commit
from eval.common.results import append_result, check_results
from eval.common.speed_options import set_up
from eval.common.tables import PAPER_BACKBONE, PAPER_LONGMEM, markdown
from eval.common.timed_model import BACKBONE, LONGMEM, PRESETS, model_config
from longmem_fairseq.memory import check_sizes
from longmem_fairseq.models.backbone import COMPUTE_DTYPES
from longmem_fairseq.utils.cli import check_positive, run, script_parser

# fields that the table shows beside a line's label
SHOWN = ("context",)
# tokens/s and GB of one GPU by tokens of context
PAPER = {
    PAPER_BACKBONE: {4096: (14_666, 20.7), 8192: (8_417, 54.2)},
    PAPER_LONGMEM: {4096: (22_638, 13.3), 8192: (21_343, 13.4)},
}


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="gpt2_medium", help="sizes of the model")
    add("--compute-dtype", choices=COMPUTE_DTYPES, default="bfloat16", help="of matrix products")
    add("--contexts", default="4096,8192", help="tokens of context, with commas between them")
    add("--chunk-size", type=int, default=4, help="tokens per chunk")
    add("--k", type=int, default=64, help="tokens retrieved per query and head")
    add("--repeats", type=int, default=3, help="timed steps, after one that is not counted")
    add("--threads", type=int, help="of torch and faiss, if not of their choice")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=device, help="where to run")
    add(
        "--results",
        type=Path,
        help="file to append JSON lines to; finished measurements are stored beside it",
    )
    return parser


def options_of(args: argparse.Namespace, variant: str, context: int) -> argparse.Namespace:
    """Options for the functions of eval/common/model_speed.py."""
    segment = PRESETS[args.preset].tokens
    if context < 2 * segment:
        raise ValueError(
            f"--contexts ({context}) must be at least {2 * segment}, two segments of --preset "
            f"{args.preset}: one to be read, one in memory"
        )
    options = argparse.Namespace(**vars(args), batch_size=1, model_option=[], model=None)
    options.device = torch.device(args.device)
    options.tokens_per_sample = segment if variant == LONGMEM else context
    options.memory_size = context - segment
    config = model_config(options)
    check_sizes(config.memory_size, config.chunk_size, config.k)
    return options


def result_of(
    args: argparse.Namespace, variant: str, context: int, hardware: str, measured: Dict
) -> Dict:
    """The result line of a measurement."""
    setting = {"context": context, "preset": args.preset}
    if variant == LONGMEM:
        setting.update(chunk_size=args.chunk_size, k=args.k)
    return {
        "benchmark": "efficiency",
        "name": variant,
        "commit": commit(),
        "hardware": hardware,
        "compute_dtype": args.compute_dtype,
        "setting": setting,
        "seed": None,
        **measured,
    }


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "chunk_size", "k", "repeats", "threads")
    check_results("--results", args.results)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU")
    runs = {
        (variant, context): options_of(args, variant, context)
        for context in numbers("--contexts", args.contexts, least=1)
        for variant in (BACKBONE, LONGMEM)
    }
    set_up(args)
    hardware = describe_hardware(torch.device(args.device))
    chosen = {n: v for n, v in vars(args).items() if n not in ("contexts", "results")}
    key = {"code": code_hash(), "hardware": hardware, "options": chosen}
    log = ItemLog(args.results, {"benchmark": "efficiency", **key})
    for (variant, context), options in runs.items():
        item = f"{variant} {context}"
        if item not in log.done:
            try:
                seconds, peak = model_speed.alone(
                    options, args.compute_dtype, "evaluation", variant, args.repeats
                )
            except RuntimeError as error:  # out of memory, or the process was killed for it
                print(f"{variant}, context {context:,}: not measured: {str(error).splitlines()[0]}")
                continue
            speed = options.tokens_per_sample / seconds
            log.add(item, {"tokens_per_second": speed, "peak_bytes": peak, "seconds": seconds})
        result = result_of(args, variant, context, hardware, log.done[item])
        append_result(args.results, result)
        memory = (
            "" if result["peak_bytes"] is None else f", peak {result['peak_bytes'] / 1e9:.3g} GB"
        )
        print(
            f"{variant}, context {context:,}: {result['tokens_per_second']:,.0f} tokens/s{memory}"
        )


def table(lines: List[Dict]) -> List[str]:
    """Tokens/s and GB of peak memory by tokens of context, with the ratio to the backbone's."""

    def place(line: Dict) -> tuple:
        setting = line["setting"]
        return setting["context"], setting["preset"], line["compute_dtype"], line["hardware"]

    def measured(line: Dict) -> tuple:
        peak = line["peak_bytes"]
        return line["tokens_per_second"], None if peak is None else peak / 1e9

    cells: Dict[str, Dict[int, List[str]]] = {}
    base = {place(line): measured(line) for line in lines if line["name"] == "backbone"}
    for line in lines:
        of = None if line["name"] == "backbone" else base.get(place(line))
        by_context = cells.setdefault(line["label"], {})
        by_context[line["setting"]["context"]] = _compared(measured(line), of)
    backbone = PAPER[PAPER_BACKBONE]
    for name, by_context in PAPER.items():
        of = {} if by_context is backbone else backbone
        cells[name] = {c: _compared(pair, of.get(c)) for c, pair in by_context.items()}
    contexts = sorted({line["setting"]["context"] for line in lines})
    columns = [f"{unit}, {context:,}" for context in contexts for unit in ("tokens/s", "GB")]
    rows = [["model", *columns]]
    for name, by_context in cells.items():
        rows.append([name, *(cell for c in contexts for cell in by_context.get(c, ["", ""]))])
    return markdown(rows)


def _compared(measured: Sequence, base: Optional[Sequence]) -> List[str]:
    """Tokens/s and GB, with their ratios to *base* in brackets."""
    cells = []
    for i, (value, form) in enumerate(zip(measured, (",.0f", ".3g"), strict=True)):
        cell = "-" if value is None else f"{value:{form}}"
        compares = base is not None and None not in (value, base[i])
        cells.append(f"{cell} ({value / base[i]:.2f})" if compares else cell)
    return cells


def plot(lines: List[Dict], path: Path) -> None:
    """Tokens/s and peak memory by tokens of context, a panel each."""
    from eval.common.plots import draw, plt, save  # matplotlib, which takes a while

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    for axes, field, unit, quantity in (
        (panels[0], "tokens_per_second", 1, "tokens/s"),
        (panels[1], "peak_bytes", 1e9, "peak memory (GB)"),
    ):
        series: Dict[str, Dict[int, float]] = {}
        for line in lines:
            if line[field] is not None:
                by_context = series.setdefault(line["label"], {})
                by_context[line["setting"]["context"]] = line[field] / unit
        draw(axes, series, ("tokens of context", quantity))
    save(figure, path)


if __name__ == "__main__":
    run(main)
