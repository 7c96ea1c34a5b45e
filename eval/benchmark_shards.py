#!/usr/bin/env python3
"""Speed of a memory that is split over processes, and what they send each other.

Example:
    python -m eval.benchmark_shards --json shards.json --plot shards.png

Fills a bank of each size, split over 1, 2 and 4 processes of one thread (--memory-shards), and measures
one segment: search of the own part, until the slowest process is done; merge, in which all learn which
chunks are the best; fetch, in which their keys and values travel. Also what the processes' connection
can do. docs/scaling.md works out from these numbers what larger memories take.
"""

import json
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List

import matplotlib
import torch
import torch.distributed as dist
import torch.multiprocessing

from eval.benchmark_memory import Keys, write_all
from eval.common.hardware import Rates, describe_hardware
from eval.common.speed_options import Parser, positive, set_up, several
from eval.common.speed_report import write_report
from eval.common.timing import Stages, seconds_of, timed
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
    parser = Parser(__doc__.split("\n")[0], "milliseconds by number of processes", QUICK)
    add = parser.add_argument
    add("--processes", type=several(positive), default="1,2,4", help="--memory-shards")
    add(
        "--sizes",
        type=several(positive),
        default="65536,1048576",
        help="tokens in all",
    )
    add(
        "--indices",
        default="torch IVF1024,Flat:nprobe=16",
        help="values of --memory-index, separated by spaces, each with its parameters after a colon; "
        "those that a part is too small for are left out there",
    )
    add("--dtype", choices=DTYPES, default="bfloat16", help="of keys and values")
    add("--heads", type=positive, default=16, help="H")
    add("--head-dim", type=positive, default=64, help="D")
    add(
        "--tokens-per-sample",
        type=positive,
        default=1024,
        help="queries of a segment",
    )
    add("--chunk-size", type=positive, default=4, help="tokens per chunk")
    add("--k", type=positive, default=64, help="tokens retrieved per query and head")
    return parser


def settings(args: Namespace, num_shards: int) -> Iterator[Dict]:
    """Sizes and indices that so many processes can have.

    Raises:
        ValueError: naming the option that does not fit
    """
    for size in args.sizes:
        check_sizes(size, args.chunk_size, args.k)
        check_divisible(size, args.chunk_size, num_shards)
        for index in args.indices.split():
            name, _, parameters = index.partition(":")
            try:
                check_index(name, parameters, args.head_dim, size // args.chunk_size // num_shards)
            except TooFewChunksError:
                continue
            yield {"size": size, "index": index}


def make_bank(args: Namespace, num_shards: int, size: int, index: str) -> MemoryBank:
    name, _, parameters = index.partition(":")
    bank_class = MemoryBank if num_shards == 1 else ShardedBank
    return bank_class(
        1,
        args.heads,
        args.head_dim,
        size,
        args.chunk_size,
        args.k,
        index=name,
        index_parameters=parameters,
        dtype=args.dtype,
    )


def measure(args: Namespace, bank: MemoryBank, keys: Keys) -> Dict:
    """Milliseconds of every stage of the fastest round, and bytes that this process receives."""
    received = []
    stages = Stages(args.device)
    if isinstance(bank, ShardedBank):
        ring = bank.ring
        gather, score = ring.all_gather, ring.part.scores

        def counting(tensor):
            received.append((ring.num_shards - 1) * tensor.nbytes)
            return gather(tensor)

        def waiting(*search):
            scores = score(*search)
            dist.barrier()
            return scores

        ring.all_gather, ring.part.scores = counting, waiting
        ring.merge, ring.fetch = stages.wrap("merge", ring.merge), stages.wrap("fetch", ring.fetch)
    queries = keys.draw(args.tokens_per_sample)
    bank.retrieve(queries)
    rounds = []
    for _ in range(args.repeats):
        dist.barrier()
        stages.seconds.clear()
        received.clear()
        with stages("search"):  # what is not in an inner stage
            bank.retrieve(queries)
        rounds.append(dict(stages.seconds))
    best = min(rounds, key=lambda seconds: sum(seconds.values()))  # the least disturbed
    merge, fetch = sum(received[:1]), sum(received[1:])  # scores; keys and values
    return {
        **{f"{stage}_ms": 1000 * best.get(stage, 0) for stage in STAGES},
        "total_ms": 1000 * sum(best.values()),
        "merge_bytes_per_token": merge / args.tokens_per_sample,
        "fetch_bytes_per_token": fetch / args.tokens_per_sample,
        "bank_bytes": bank.ring.num_bytes,
    }


def connection(args: Namespace) -> Dict:
    """Seconds of an all-gather of hardly anything, and received bytes/s of one of MESSAGE."""
    seconds, others = {}, dist.get_world_size() - 1
    for size in (1, MESSAGE):
        sent = torch.zeros(size, dtype=torch.uint8)
        got = sent.new_empty((others + 1) * size)
        gather = partial(all_gather_single, got, sent)
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
    found = {"rows": rows, "connection": connection(args) if num_shards > 1 else {}}
    if rank == 0:
        Path(folder, f"{num_shards}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def describe(row: Dict) -> str:
    stages = " ".join(f"{row[f'{stage}_ms']:9.1f}" for stage in (*STAGES, "total"))
    moved = " ".join(f"{row[f'{stage}_bytes_per_token']:12,.0f}" for stage in STAGES[1:])
    size = f"{row['size']:>11,} {row['index']:<24}"
    return f"{row['processes']:>9} {size} {stages} {moved} {row['bank_bytes'] / 2**20:10,.0f}"


def plot(rows: List[Dict], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for label in dict.fromkeys((row["size"], row["index"]) for row in rows):
        own = [row for row in rows if (row["size"], row["index"]) == label]
        x, y = [row["processes"] for row in own], [row["total_ms"] for row in own]
        axes.loglog(x, y, marker="o", label=f"{label[0]:,} tokens, {label[1]}")
    axes.set(xlabel="processes", ylabel="ms per segment (search, merge, fetch)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
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
            found = json.loads(Path(folder, f"{num_shards}.json").read_text(encoding="utf-8"))
            rows += found["rows"]
            if found["connection"]:
                connections[num_shards] = found["connection"]
    for num_shards, found in connections.items():
        print(
            f"{num_shards} processes: an all-gather takes {1e6 * found['gather_seconds']:,.0f} us, and "
            f"moves {found['gather_bytes_per_second'] / 1e9:.2f} GB/s to each of them"
        )
    if args.json:
        write_report(args.json, hardware, rates, [], results=rows, connections=connections)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run(main)
