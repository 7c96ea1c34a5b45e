"""Times steps of a model: its variants in turns, their stages, and each in a process of its own.

``args``: the options of eval/benchmark_model.py.
"""

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from operator import itemgetter
from typing import Dict, List, Tuple
from unittest.mock import patch

from torch import nn

from eval.common.hardware import Rates, peak_bytes, reset_peak
from eval.common.necessary import READ, SEARCH, necessary_bytes, necessary_flops
from eval.common.speed_options import set_up
from eval.common.timed_model import (
    BACKBONE,
    LONGMEM,
    NO_MEMORY,
    VARIANTS,
    build_backbone,
    build_model,
    make_step,
    sizes_of,
)
from eval.common.timing import Stages, Step, interleaved, pair_ratios
from longmem_fairseq.memory import ExternalMemory, MemoryBank
from longmem_fairseq.memory.search import ChunkIndex
from longmem_fairseq.modules import Int8Linear, joint_attention

STAGES = (
    *("backbone", "SideNet layers", SEARCH, READ, "head", "loss", "write"),
    *("backward", "optimizer", "other"),
)


def measure(args: argparse.Namespace, dtype: str, rates: Rates) -> Tuple[List[Dict], List[Dict]]:
    """Results of the variants, timed in turns, and the stages of a step of LongMem."""
    backbone = build_backbone(args, dtype)
    models = {variant: build_model(args, dtype, variant, backbone) for variant in VARIANTS}
    results, stages = [], []
    for mode in args.mode:
        steps = {
            variant: make_step(args, model, mode)
            for variant, model in models.items()
            if not (mode == "training" and variant == BACKBONE)  # it is frozen
        }
        seconds = interleaved(steps, args.repeats, args.device)
        rows = [
            result(args, dtype, mode, models[variant], variant, seconds[variant], rates)
            for variant in steps
        ]
        rows[0]["memory_cost"] = 1 - statistics.median(
            pair_ratios(seconds[NO_MEMORY], seconds[LONGMEM])
        )
        if BACKBONE in steps:
            ratios = pair_ratios(seconds[BACKBONE], seconds[LONGMEM])
            rows[0]["of_backbone"] = statistics.median(ratios)
        results += rows
        spent = breakdown(models[LONGMEM], steps[LONGMEM], args.repeats, args.device)
        stages += stage_rows(args, dtype, mode, spent, rates, models[LONGMEM])
    return results, stages


def breakdown(model: nn.Module, step: Step, repeats: int, device) -> Dict[str, float]:
    """Seconds by stage of the median of *repeats* steps; "other" is what belongs to no stage."""
    measured = []
    for _ in range(repeats):
        stages = Stages(device)
        parts = [
            (model.backbone, "encode", "backbone"),
            (model.backbone, "predict", "loss"),  # but for the head inside
            (model.backbone, "output_layer", "head"),
            *((layer, "forward", "SideNet layers") for layer in model.layers),
            (MemoryBank, "retrieve", READ),
            (ChunkIndex, "search", SEARCH),
            (joint_attention, "memory_attention", READ),
            (MemoryBank, "write", "write"),
            (ExternalMemory, "write", "write"),
            (ExternalMemory, "flush", "write"),  # in training the next step writes a segment
        ]
        with ExitStack() as stack:
            for owner, name, stage in parts:
                counted = stages.wrap(stage, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, counted))
            total = step.seconds(device, stages)
        stages.seconds["other"] = total - sum(stages.seconds.values())
        measured.append((total, stages.seconds))
    _, seconds = sorted(measured, key=itemgetter(0))[repeats // 2]
    return {stage: seconds[stage] for stage in STAGES if stage in seconds}


def stage_rows(
    args, dtype: str, mode: str, spent: Dict[str, float], rates: Rates, model: nn.Module
) -> List[Dict]:
    """The breakdown of a step of *model*: seconds of every stage, and the share of a rate."""
    flops, moved = {}, {}
    if mode != "generation":
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
    model: nn.Module,
    variant: str,
    seconds: List[float],
    rates: Rates,
) -> Dict:
    """One line of the table. The share is that of the matrix rate; in a generation, of the copy rate,
    in which every token reads all weights."""
    median = statistics.median(seconds)
    row = {"mode": mode, "compute_dtype": dtype, "variant": variant}
    if mode == "generation":
        tokens = args.prompts * args.new_tokens
        needed = {"necessary_bytes": args.new_tokens * weight_bytes(model)}
        share = needed["necessary_bytes"] / (median * rates.copy_bytes_per_second)
    else:
        tokens = args.batch_size * args.tokens_per_sample
        flops = sum(necessary_flops(sizes_of(args, variant), mode == "training").values())
        needed = {"necessary_flops": flops}
        share = flops / (median * rates.matmul_flops_per_second[dtype])
    row.update(tokens_per_second=tokens / median, seconds=median, seconds_min=min(seconds))
    return {**row, **needed, "share": share}


def weight_bytes(model: nn.Module) -> int:
    """Of the matrices that every token is multiplied with."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Int8Linear))]
    return sum(layer.weight.numel() * layer.weight.itemsize for layer in layers)


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
    """The same in this process."""
    set_up(args)
    model = build_model(args, dtype, variant, build_backbone(args, dtype))
    step = make_step(args, model, mode)
    reset_peak(args.device)
    (seconds,) = interleaved({variant: step}, repeats, args.device).values()
    return statistics.median(seconds), peak_bytes(args.device)
