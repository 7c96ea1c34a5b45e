"""Processes that share a memory, on this machine."""

import multiprocessing
from pathlib import Path
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing

from longmem_fairseq.fairseq_patches import install


def run(num_processes: int, function: Callable, folder: Path, *arguments) -> None:
    """``function(folder, *arguments)`` in so many processes of one gloo group.

    An exception in one of them is raised here, after the others are ended.
    """
    # imported once, by the process that the others are forked from
    multiprocessing.set_forkserver_preload(
        ["longmem_fairseq.api.hub_interface", "fairseq_cli.train"]
    )
    torch.multiprocessing.start_processes(
        _work,
        (num_processes, function, folder, arguments),
        nprocs=num_processes,
        start_method="forkserver",
    )


def go_in_groups(case: Callable, folder: Path, seeds: int, steps: int) -> None:
    """``case(own_folder, seed, group).go(steps)``, called by four processes: as one group of all, then
    as two of two side by side."""
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][dist.get_rank() // 2]
    for seed in range(seeds):
        group = dist.group.WORLD if seed % 2 else pair
        own = folder / f"{seed}-{dist.get_rank() // dist.get_world_size(group)}"
        own.mkdir(exist_ok=True)
        case(own, seed, group).go(steps)


def _work(rank: int, num_processes: int, function: Callable, folder: Path, arguments) -> None:
    torch.set_num_threads(1)
    install()
    meeting = f"file://{folder}/meeting-{function.__name__}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_processes)
    function(folder, *arguments)
    dist.barrier()
    dist.destroy_process_group()
