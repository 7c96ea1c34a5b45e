#!/usr/bin/env python3
"""Speed of a memory that is split over processes, and of their messages.

Example:
    python -m eval.benchmark_shards --json shards.json --plot shards.png

Fills a bank of each size, split over 1, 2 and 4 processes of one thread (--memory-shards), and measures
one segment: the search of the slowest process in its part; the merge, in which all learn which chunks
are the best; the fetch, in which their keys and values travel. Also measures the connection between
the processes. docs/scaling.md derives from these numbers the cost of larger memories.
"""

import json
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from eval.benchmark_memory import Keys, write_all
from eval.common.hardware import Rates, describe_hardware
from eval.common.speed_options import (
    Parser,
    add_bank_options,
    bank_sizes,
    index_options,
    positive,
    set_up,
    several,
)
from eval.common.speed_report import write_report
from eval.common.timing import Stopwatch, seconds_of, timed
from longmem_fairseq.memory import (
    DTYPES,
    MemoryBank,
    ShardedBank,
    TooFewChunksError,
    check_index,
    check_sizes,
)
from longmem_fairseq.memory.sharded_ring import all_gather_single, check_divisible
from longmem_fairseq.utils.cli import run

STAGES = ("search", "merge", "fetch")
MESSAGE = 2**24  # bytes of each process, to measure the connection
QUICK = {"processes": "1,2", "sizes": "16384", "indices": "torch", "repeats": 2}


def get_parser() -> Parser:
    """The command line's options."""
    parser = Parser(__doc__.split("\n")[0], "milliseconds by number of processes", QUICK)
    add = parser.add_argument
    add("--processes", type=several(positive), default="1,2,4", help="--memory-shards")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of keys and values")
    add_bank_options(parser, "65536,1048576", "torch IVF1024,Flat:nprobe=16")
    return parser


def settings(args: Namespace, num_shards: int) -> Iterator[Dict]:
    """The sizes and indices that a bank split over so many processes can have.

    Raises:
        ValueError: naming the option that does not fit
    """
    for size in args.sizes:
        check_sizes(size, args.chunk_size, args.k)
        check_divisible(size, args.chunk_size, num_shards)
        for index in args.indices.split():
            slots = size // args.chunk_size // num_shards
            try:
                check_index(*index_options(index).values(), args.head_dim, slots)
            except TooFewChunksError:
                continue
            yield {"size": size, "index": index}


def make_bank(args: Namespace, num_shards: int, size: int, index: str) -> MemoryBank:
    """An empty bank of *size* tokens, of which this process holds its part."""
    bank_class = MemoryBank if num_shards == 1 else ShardedBank
    return bank_class(*bank_sizes(args, size), **index_options(index), dtype=args.dtype)


def measure(args: Namespace, bank: MemoryBank, keys: Keys) -> Dict:
    """Milliseconds of every stage of the fastest round, and bytes that each process receives."""
    queries = keys.draw(args.tokens_per_sample)
    num_shards, store = dist.get_world_size(), bank.retrieve(queries).store
    rounds = [stage_seconds(bank, queries) for _ in range(args.repeats)]
    best = min(rounds, key=lambda seconds: sum(seconds.values()))  # the least disturbed
    # of every chunk retrieved a slot and a score, 4 bytes each; then the keys and values of all of them
    merge = (num_shards - 1) * args.heads * (args.k // args.chunk_size) * 8
    fetched = sum(buffer.nbytes for buffer in store.buffers().values())
    fetch = fetched * (num_shards - 1) / num_shards / args.tokens_per_sample
    return {
        **{f"{stage}_ms": 1000 * best[stage] for stage in STAGES},
        "total_ms": 1000 * sum(best.values()),
        "merge_bytes_per_token": merge,
        "fetch_bytes_per_token": fetch,
        "bank_bytes": bank.ring.num_bytes,
    }


def stage_seconds(bank: MemoryBank, queries: Tensor) -> Dict[str, float]:
    """Seconds of each of STAGES in one retrieval, of all processes together."""
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        watch = Stopwatch()
        bank.retrieve(queries)
        total = watch.seconds
    events = {event.key: event.cpu_time_total / 1e6 for event in profiler.key_averages()}
    merge, fetch = (events.get(f"memory.{stage}", 0.0) for stage in STAGES[1:])
    of_processes = [None] * dist.get_world_size()
    dist.all_gather_object(of_processes, (total - merge - fetch, merge, fetch))
    searches, merges, fetches = zip(*of_processes, strict=True)
    # a process that has searched faster than another waits for it in its merge
    return {"search": max(searches), "merge": min(merges), "fetch": max(fetches)}


def connection(args: Namespace) -> Dict:
    """Seconds of an all-gather of one byte, and bytes/s received in one of MESSAGE bytes."""
    seconds, others = {}, dist.get_world_size() - 1
    for size in (1, MESSAGE):
        sent = torch.zeros(size, dtype=torch.uint8)
        received = sent.new_empty((others + 1) * size)
        gather = partial(all_gather_single, received, sent)
        seconds[size] = timed(gather, 10, args.device)
    return {
        "gather_seconds": seconds[1].minimum,
        "gather_bytes_per_second": others * MESSAGE / seconds[MESSAGE].minimum,
    }


def work(rank: int, num_shards: int, args: Namespace, folder: str) -> None:
    """One of *num_shards* processes; the first prints, and writes its rows to *folder*."""
    args.threads = 1
    set_up(args)
    meeting = f"file://{folder}/{num_shards}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_shards)
    rows = []
    for setting in settings(args, num_shards):
        keys, bank = Keys(args), make_bank(args, num_shards, **setting)
        fill = seconds_of(partial(write_all, bank, keys, bank.layout.memory_size), args.device)
        row = {"processes": num_shards, **setting, **measure(args, bank, keys)}
        rows.append({**row, "fill_seconds": fill})
        if rank == 0:
            print(describe(rows[-1]), flush=True)
        del bank
    report = {"rows": rows, "connection": connection(args) if num_shards > 1 else {}}
    if rank == 0:
        Path(folder, f"{num_shards}.json").write_text(json.dumps(report), encoding="utf-8")
    dist.destroy_process_group()


def describe(row: Dict) -> str:
    """A line of the table for people."""
    stages = " ".join(f"{row[f'{stage}_ms']:9.1f}" for stage in (*STAGES, "total"))
    moved = " ".join(f"{row[f'{stage}_bytes_per_token']:12,.0f}" for stage in STAGES[1:])
    size = f"{row['size']:>11,} {row['index']:<24}"
    return f"{row['processes']:>9} {size} {stages} {moved} {row['bank_bytes'] / 2**20:10,.0f}"


def plot(rows: List[Dict], path: Path) -> None:
    """Milliseconds of a segment by number of processes."""
    from eval.common.plots import line_plot  # matplotlib, which takes a while

    series: Dict[str, Dict[int, float]] = {}
    for row in rows:
        label = f"{row['size']:,} tokens, {row['index']}"
        series.setdefault(label, {})[row["processes"]] = row["total_ms"]
    line_plot(series, ("processes", "ms per segment (search, merge, fetch)"), path, scale="log")


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().read()
    if args.device.type != "cpu":
        raise ValueError(
            f"--device {args.device}: only cpu is measured, where the processes share it"
        )
    for num_shards in args.processes:
        list(settings(args, num_shards))  # an error now, not in the middle
    hardware = describe_hardware(args.device)
    rates = Rates.measure(["float32"], args.device)
    print(f"{hardware}\n{rates}")
    print(
        f"{'processes':>9} {'tokens':>11} {'index':<24} {'search ms':>9} {'merge ms':>9} "
        f"{'fetch ms':>9} {'total ms':>9} {'merge B/tok':>12} {'fetch B/tok':>12} {'MiB/process':>10}"
    )
    rows, connections = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for num_shards in args.processes:
            torch.multiprocessing.spawn(work, (num_shards, args, folder), nprocs=num_shards)
            report = json.loads(Path(folder, f"{num_shards}.json").read_text(encoding="utf-8"))
            rows += report["rows"]
            if report["connection"]:
                connections[num_shards] = report["connection"]
    for num_shards, rates_of in connections.items():
        print(
            f"{num_shards} processes: an all-gather takes {1e6 * rates_of['gather_seconds']:,.0f} us, "
            f"and moves {rates_of['gather_bytes_per_second'] / 1e9:.2f} GB/s to each of them"
        )
    if args.json:
        write_report(args.json, hardware, rates, [], results=rows, connections=connections)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run(main)
