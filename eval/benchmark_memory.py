#!/usr/bin/env python3
"""Speed, recall and size of the memory bank: each way to search it, each way to store it, by size.

Example:
    python -m eval.benchmark_memory --json memory.json --plot memory.png

Writes a full bank of each size, then measures per segment: search (the chunks of every query), read
(gathering them, and memory attention), and write. The keys are drawn from a mixture of clusters, as
keys of text are; recall is the share of the exact search's chunks that an approximate index finds.
Matrix products are compared with the machine's own rate. Ends with the project's goals; the exit code
is 0 whether they are met or not.
"""

import argparse
from itertools import product
from pathlib import Path
from statistics import median
from typing import Callable, Dict, Iterator, List, Tuple

import torch
from torch import Tensor

from eval.common.hardware import Rates, describe_hardware, peak_bytes, reset_peak, resident_bytes
from eval.common.speed_options import (
    Parser,
    add_bank_options,
    bank_sizes,
    index_options,
    set_up,
    several,
)
from eval.common.speed_report import Check, write_report
from eval.common.timing import Step, interleaved, seconds_of, timed
from longmem_fairseq.memory import (
    DTYPES,
    STORAGES,
    MemoryBank,
    TooFewChunksError,
    bytes_per_token,
    check_sizes,
)
from longmem_fairseq.memory.search import TorchIndex
from longmem_fairseq.modules import memory_attention
from longmem_fairseq.utils.allocator import give_back_freed_memory
from longmem_fairseq.utils.cli import run

BLOCK = 16384  # tokens written at a time
STREAMED = 65536  # tokens of the bank that --stream-tokens go through
CLUSTERS, NOISE = 4096, 0.5
QUICK = {"sizes": "4096,65536", "dtypes": "float32", "repeats": 3, "stream_tokens": 300_000}


def get_parser() -> Parser:
    """The command line's options."""
    parser = Parser(__doc__.split("\n")[0], "milliseconds by size", QUICK)
    add = parser.add_argument
    add_bank_options(parser, "4096,16384,65536", "torch flat IVF2048,Flat:nprobe=16")
    add("--dtypes", type=several(str, DTYPES), default=",".join(DTYPES), help="of keys and values")
    add(
        "--storages", type=several(str, STORAGES), default="device", help="some of device,host,disk"
    )
    add("--directory", help="folder of the files of storage disk")
    add(
        "--stream-tokens",
        type=stream_tokens,
        default=2_000_000,
        help=f"tokens streamed through a bank of {STREAMED:,}, to see whether resident memory grows; "
        "0: none",
    )
    return parser


def stream_tokens(text: str) -> int:
    """Type of an option."""
    if not text.isdecimal() or 0 < int(text) < 2 * STREAMED:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or at least {2 * STREAMED}")
    return int(text)


class Keys:
    """Keys, values and queries in clusters, B = 1: a key is a center and noise."""

    def __init__(self, args: argparse.Namespace):
        generator = torch.Generator().manual_seed(1)
        self.shape = (1, args.heads, -1, args.head_dim)
        self.centers = torch.randn(CLUSTERS, args.head_dim, generator=generator)
        self.noise = torch.randn(args.heads * BLOCK, args.head_dim, generator=generator) * NOISE
        self.generator, self.heads, self.device = generator, args.heads, args.device

    def draw(self, tokens: int) -> Tensor:
        """1 x H x tokens x D. The tokens of a chunk share their center, as those of a phrase."""
        count = self.heads * tokens
        centers = torch.randint(CLUSTERS, (-(-count // 4),), generator=self.generator)
        shift = int(torch.randint(len(self.noise), (1,), generator=self.generator))
        keys = (
            self.centers[centers.repeat_interleave(4)[:count]] + self.noise.roll(shift, 0)[:count]
        )
        return keys.view(self.shape).to(self.device)


def make_banks(args: argparse.Namespace) -> Iterator[Tuple[Dict, MemoryBank]]:
    """A bank for every size, index and kind of storage, still empty, with its description."""
    for size, index in product(args.sizes, args.indices.split()):
        dtypes = args.dtypes if index in ("torch", "flat") else args.dtypes[:1]
        for dtype, storage in product(dtypes, args.storages):
            kind = {"dtype": dtype, "storage": storage}
            options = {**index_options(index), **kind}
            options.update(directory=args.directory, device=args.device)
            try:
                bank = MemoryBank(*bank_sizes(args, size), **options)
            except TooFewChunksError:
                continue
            yield {"size": size, "index": index, **kind}, bank


def measure(
    args: argparse.Namespace, bank: MemoryBank, keys: Keys, rates: Rates, bare: Callable
) -> Dict:
    """Fills the bank and times the three stages of a segment; the search in turns with *bare*."""
    reset_peak(args.device)
    fill = seconds_of(lambda: write_all(bank, keys, bank.layout.memory_size), args.device)
    queries = keys.draw(args.tokens_per_sample)
    segment = keys.draw(args.tokens_per_sample), keys.draw(args.tokens_per_sample)
    retrieved = bank.retrieve(queries)
    calls = {"search": lambda: bank.retrieve(queries), "bare": bare}
    steps = {name: Step(call) for name, call in calls.items()}
    seconds = interleaved(steps, args.repeats, args.device)
    search, pairs = median(seconds["search"]), zip(*seconds.values(), strict=True)
    with torch.no_grad():
        read = timed(lambda: memory_attention(queries, retrieved), args.repeats, args.device).median
    recall = recall_of(bank, queries)
    write = timed(lambda: bank.write(*segment), args.repeats, args.device).median
    rate = rates.matmul_flops_per_second["float32"]
    flops = 2 * bank.ring.chunk_keys.numel() * args.tokens_per_sample
    return {
        "fill_seconds": fill,
        "search_ms": 1000 * search,
        "read_ms": 1000 * read,
        "write_ms": 1000 * write,
        "search_share_of_matmul_rate": flops / rate / search,
        "search_to_bare_product": median(search / product for search, product in pairs),
        "recall": recall,
        "bytes_per_token": bytes_per_token(
            args.heads, args.head_dim, bank.layout.chunk_size, bank.layout.dtype
        ),
        "peak_bytes": peak_bytes(args.device),
    }


def write_all(bank: MemoryBank, keys: Keys, tokens: int) -> None:
    """Writes so many tokens to a bank, a block at a time."""
    for start in range(0, tokens, BLOCK):
        count = min(BLOCK, tokens - start)
        bank.write(keys.draw(count), keys.draw(count))


def recall_of(bank: MemoryBank, queries: Tensor) -> float:
    """Share of the chunks found by an exact search that the bank finds too, for 64 queries."""
    if type(bank.ring.index) is TorchIndex:
        return 1.0
    queries, count = queries[:, :, :64], bank.layout.chunks_per_query
    exact = TorchIndex(bank.ring.chunk_keys).search(0, queries[0], bank.num_chunks[0], count)
    chunks = bank.retrieve(queries).chunks
    return float((exact.unsqueeze(-1) == chunks.unsqueeze(-2)).any(dim=-1).float().mean())


def bare_product(args: argparse.Namespace) -> Callable[[], None]:
    """Computes all scores of a segment with 65,536 tokens, by matrix products alone."""
    keys = torch.randn(args.heads, 65536 // args.chunk_size, args.head_dim, device=args.device)
    queries = torch.randn(args.heads, args.tokens_per_sample, args.head_dim, device=args.device)

    def multiply():
        for head in range(args.heads):
            queries[head] @ keys[head].t()

    return multiply


def stream(args: argparse.Namespace, keys: Keys) -> Dict:
    """Resident bytes when a bank of 65,536 tokens has become full, and after all tokens."""
    bank = MemoryBank(*bank_sizes(args, STREAMED), device=args.device)
    queries = keys.draw(64)
    resident = []
    give_back_freed_memory()  # of the banks before, which growth could hide in
    for start in range(0, args.stream_tokens, BLOCK):
        bank.write(keys.draw(BLOCK), keys.draw(BLOCK))
        bank.retrieve(queries)
        if start + BLOCK >= 2 * STREAMED:  # every buffer has been written to, and once over
            resident.append(resident_bytes())
    return {"tokens": args.stream_tokens, "first": resident[0], "last": resident[-1]}


def checks_of(args: argparse.Namespace, rows: List[Dict], streamed: Dict) -> List[Check]:
    """The project's goals that these measurements can be held against."""
    checks = []
    exact = [r for r in rows if r["size"] == 65536 and r["index"] in ("torch", "flat")]
    if exact and (args.heads, args.head_dim, args.tokens_per_sample) == (16, 64, 1024):
        best = min(row["search_to_bare_product"] for row in exact)
        name = "exact search at 65,536 tokens / bare float32 matrix product"
        checks.append(Check.at_most(name, best, 1.05))
    for row in rows:
        if row["index"] not in ("torch", "flat"):
            name = f"recall of {row['index']} at {row['size']:,} tokens"
            checks.append(Check.at_least(name, row["recall"], 0.95))
    if streamed:
        growth = streamed["last"] / streamed["first"]
        name = f"resident memory after {streamed['tokens']:,} tokens / when the bank was full"
        checks.append(Check.at_most(name, growth, 1.02))
    return checks


def describe(row: Dict) -> str:
    """A line of the table for people."""
    peak = f"{row['peak_bytes'] / 2**30:7.2f}" if row["peak_bytes"] else ""
    return (
        f"{row['size']:>11,} {row['index']:<24} {row['dtype']:<9} {row['storage']:<7}"
        f"{row['search_ms']:9.1f} {row['search_share_of_matmul_rate']:7.0%} {row['read_ms']:8.1f} "
        f"{row['write_ms']:8.1f} {row['recall']:7.3f} {row['bytes_per_token']:8,.0f} "
        f"{row['fill_seconds']:8.1f} {peak}"
    )


def plot(rows: List[Dict], path: Path) -> None:
    """Milliseconds of a segment by size of the bank."""
    from eval.common.plots import line_plot  # matplotlib, which takes a while

    series: Dict[str, Dict[int, float]] = {}
    for row in rows:
        label = f"{row['index']} {row['dtype']} {row['storage']}"
        total = row["search_ms"] + row["read_ms"] + row["write_ms"]
        series.setdefault(label, {})[row["size"]] = total
    labels = ("tokens in the bank", "ms per segment (search, read, write)")
    line_plot(series, labels, path, scale="log")


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().read()
    for size in args.sizes:
        check_sizes(size, args.chunk_size, args.k)  # an error now, not in the middle
    set_up(args)
    rates = Rates.measure(["float32"], args.device)
    hardware = describe_hardware(args.device)
    print(f"{hardware}\n{rates}")
    keys = Keys(args)
    bare = bare_product(args)
    bare_ms = 1000 * timed(bare, args.repeats, args.device).median
    print(f"bare matrix product of a segment with 65,536 tokens: {bare_ms:.1f} ms")
    print(
        f"{'tokens':>11} {'index':<24} {'dtype':<9} {'storage':<7}{'search ms':>9} {'of rate':>7} "
        f"{'read ms':>8} {'write ms':>8} {'recall':>7} {'B/token':>8} {'fill s':>8} peak GiB"
    )
    rows = []
    for description, bank in make_banks(args):
        rows.append({**description, **measure(args, bank, keys, rates, bare)})
        print(describe(rows[-1]), flush=True)
        del bank
    streamed = stream(args, keys) if args.stream_tokens else {}
    checks = checks_of(args, rows, streamed)
    for check in checks:
        print(check)
    if args.json:
        results = {"bare_product_ms": bare_ms, "results": rows, "streamed": streamed}
        write_report(args.json, hardware, rates, checks, **results)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run(main)
