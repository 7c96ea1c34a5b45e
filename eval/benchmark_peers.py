#!/usr/bin/env python3
"""Speed of a converted model beside that of the same weights in other programs.

Example:
    python -m eval.benchmark_peers --model models/smollm2 --original smollm2.gguf --json peers.json

In transformers (extra ``peers``): logits, evaluation with the loss, a training step of as many
trainable parameters, and generation; in llama-cpp-python, where that is installed and the original is a
GGUF file, generation. Every measurement goes in turns; a ratio above 1 means that this package is
faster, and is the median over the pairs, with the smallest and the largest. Ends with the project's
goals, set for SmolLM2-135M; the exit code is 0 whether they are met or not.
"""

import argparse
import importlib.util
import statistics
from pathlib import Path
from typing import Dict, List

import torch
from torch import Tensor

from eval.common.hardware import Rates, describe_hardware
from eval.common.peers import llama_generation, transformers_model, transformers_steps
from eval.common.speed_options import Parser, set_up, several
from eval.common.speed_report import Check, write_report
from eval.common.timed_model import (
    LONGMEM,
    add_step_options,
    build_backbone,
    build_model,
    check_step_options,
    generation_step,
    segment_step,
)
from eval.common.timing import Step, interleaved, pair_ratios
from longmem_fairseq.models.backbone import COMPUTE_DTYPES
from longmem_fairseq.models.sidenet import SideNetDecoder
from longmem_fairseq.tokenizers import CheckpointIds
from longmem_fairseq.utils.cli import run

MODES = ("logits", "loss", "training", "generation")
GOALS = {"logits": 1.15, "loss": 1.5, "generation": 1.2}
QUICK = {"batch_size": 1, "tokens_per_sample": 256, "prompt_tokens": 128, "repeats": 2}


def read_options() -> argparse.Namespace:
    """The command line, complete and checked.

    Raises:
        ValueError, FileNotFoundError: naming the option
    """
    parser = Parser(__doc__.split("\n")[0], "ratios", QUICK)
    parser.set_defaults(preset=None)  # there is a model
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a converted model")
    add("--original", type=Path, required=True, help="folder or GGUF file that it was made from")
    dtypes = ",".join(COMPUTE_DTYPES)
    dtype_list = several(str, COMPUTE_DTYPES)
    add("--compute-dtype", type=dtype_list, default="float32", help=f"some of {dtypes}")
    modes = ",".join(MODES)
    add("--mode", type=several(str, MODES), default=modes, help=f"some of {modes}")
    add_step_options(parser)
    args = parser.read()
    check_step_options(args)
    if not args.original.exists():
        raise FileNotFoundError(f"--original ({args.original}): no such file or folder")
    return args


def own_steps(args: argparse.Namespace, model: SideNetDecoder, tokens: Tensor) -> Dict[str, Step]:
    """A step for every mode, of this package: training of the SideNet, all else of the backbone alone.

    Args:
        tokens: B x (T + 1) indices of the dictionary
    """
    backbone = model.backbone
    source, target = tokens[:, :-1], tokens[:, 1:]

    @torch.no_grad()
    def logits():
        backbone.read(source)

    @torch.no_grad()
    def loss():
        backbone.read(source, target=target).losses.mean()

    steps = {"logits": Step(logits), "loss": Step(loss)}
    if "training" in args.mode:
        steps["training"] = segment_step(args, model, training=True)
    steps["generation"] = generation_step(args, backbone)
    return {mode: steps[mode] for mode in args.mode}


def measure(args: argparse.Namespace, dtype: str) -> List[Dict]:
    """A line for every mode and peer."""
    backbone = build_backbone(args, dtype)
    ids = CheckpointIds.load(args.model, backbone.dictionary)
    shape = (args.batch_size, args.tokens_per_sample + 1)
    tokens = torch.randint(backbone.dictionary.nspecial, len(backbone.dictionary), shape)
    theirs = torch.from_numpy(ids.to_checkpoint)[tokens].long().to(args.device)
    longmem = build_model(args, dtype, LONGMEM, backbone)
    own = own_steps(args, longmem, tokens.to(args.device))
    trainable = sum(p.numel() for p in longmem.parameters() if p.requires_grad)
    model = transformers_model(args.original, dtype, args.device)
    peers = {"transformers": transformers_steps(args, model, theirs, trainable)}
    if args.original.suffix == ".gguf" and importlib.util.find_spec("llama_cpp") is not None:
        peers["llama-cpp-python"] = {"generation": llama_generation(args, theirs)}
    return [
        compare(args, dtype, mode, peer, own[mode], steps[mode])
        for mode in args.mode
        for peer, steps in peers.items()
        if mode in steps
    ]


def compare(
    args: argparse.Namespace, dtype: str, mode: str, peer: str, own: Step, its: Step
) -> Dict:
    """One line: seconds of both, and how many times as fast this package is."""
    seconds = interleaved({"own": own, "peer": its}, args.repeats, args.device)
    ratios = sorted(pair_ratios(seconds["peer"], seconds["own"]))
    median = statistics.median(ratios)
    line = {"mode": mode, "compute_dtype": dtype, "peer": peer, "ratio": median}
    line.update(ratio_min=ratios[0], ratio_max=ratios[-1])
    line.update({f"{name}_seconds": statistics.median(all_) for name, all_ in seconds.items()})
    print(
        f"{mode:11} {dtype:9} {peer:17} {line['own_seconds']:9.3f} s{line['peer_seconds']:9.3f} s"
        f"   ratio {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )
    return line


def main() -> None:
    """Measures, prints and writes the report."""
    args = read_options()
    set_up(args)
    hardware = describe_hardware(args.device)
    rates = Rates.measure(args.compute_dtype, args.device)
    print(f"{hardware}\n{rates}\n\n{'':38}{'own':>11}{'peer':>11}")
    results = [line for dtype in args.compute_dtype for line in measure(args, dtype)]
    checks = [
        Check.at_least(f"{r['mode']} {r['compute_dtype']}", r["ratio"], GOALS[r["mode"]])
        for r in results
        if r["peer"] == "transformers" and r["mode"] in GOALS
    ]
    print("", *checks, sep="\n")
    if args.json:
        write_report(args.json, hardware, rates, checks, model=args.model.name, results=results)
    if args.plot:
        plot(results, hardware, args.plot)


def plot(results: List[Dict], title: str, path: Path) -> None:
    """Bars of ratios."""
    from eval.common.plots import plt, save  # matplotlib, which takes a while

    figure, axes = plt.subplots(figsize=(9, 1 + 0.5 * len(results)))
    names = [f"{r['mode']}, {r['compute_dtype']}\n{r['peer']}" for r in results]
    bars = axes.barh(names, [r["ratio"] for r in results])
    axes.bar_label(bars, fmt="{:.2f}", padding=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(xlabel="times as fast", title=title)
    save(figure, path)


if __name__ == "__main__":
    run(main)
