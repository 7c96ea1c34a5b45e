"""Options of the measurements of speed, and the settings of their process."""

import argparse
import logging
from contextlib import suppress
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Tuple

import torch

from longmem_fairseq.commands.options import check_writable
from longmem_fairseq.utils.allocator import keep_freed_memory


class Parser(argparse.ArgumentParser):
    """The options of every benchmark; shows defaults.

    A wrong option is a ValueError, which :func:`cli.run` makes one line of.

    Args:
        description: of the benchmark
        plot: contents of the figure of --plot
        quick: values of options with --quick
    """

    def __init__(self, description: str, plot: str, quick: Dict[str, object]):
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        self.quick = quick
        add = self.add_argument
        add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
        add("--repeats", type=positive, default=5, help="timed rounds")
        add("--threads", type=positive, help="of torch and faiss, if not of their choice")
        add("--json", type=Path, help="file to write everything to")
        add("--plot", type=Path, help=f"PNG to write: {plot}")
        words = ", ".join(
            f"{name.replace('_', '-')} {value or 'none'}" for name, value in quick.items()
        )
        add("--quick", action="store_true", help=f"under a minute on 2 cores: {words}")

    def error(self, message: str) -> None:
        """Raises ValueError with argparse's *message* about an option."""
        raise ValueError(message)

    def read(self) -> argparse.Namespace:
        """The command line.

        Raises:
            ValueError: naming the option
        """
        args = self.parse_args()
        if args.quick:
            self.set_defaults(**self.quick)
            args = self.parse_args()
        args.device = torch.device(args.device)
        if args.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no GPU")
        for option, path in (("--json", args.json), ("--plot", args.plot)):
            if path is not None:
                check_writable(option, path)
        return args


def add_bank_options(parser: argparse.ArgumentParser, sizes: str, indices: str) -> None:
    """Options of memory banks and of the segments that read them.

    Args:
        sizes, indices: defaults
    """
    add = parser.add_argument
    add("--sizes", type=several(positive), default=sizes, help="tokens of a bank")
    add(
        "--indices",
        default=indices,
        help="values of --memory-index, separated by spaces, each with its parameters after a colon; "
        "those that a bank, or a part of it, is too small for are left out there",
    )
    add("--heads", type=positive, default=16, help="H")
    add("--head-dim", type=positive, default=64, help="D")
    add("--tokens-per-sample", type=positive, default=1024, help="queries of a segment")
    add("--chunk-size", type=positive, default=4, help="tokens per chunk")
    add("--k", type=positive, default=64, help="tokens retrieved per query and head")


def bank_sizes(args: argparse.Namespace, memory_size: int) -> Tuple[int, ...]:
    """The sizes of a :class:`MemoryBank` of one stream."""
    return 1, args.heads, args.head_dim, memory_size, args.chunk_size, args.k


def index_options(index: str) -> Dict[str, str]:
    """Options of a bank for an index, written with its parameters after a colon if it has any."""
    name, _, parameters = index.partition(":")
    return {"index": name, "index_parameters": parameters}


def set_up(args: argparse.Namespace) -> None:
    """Applies the settings of a measurement to this process."""
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG
    torch.manual_seed(1)
    keep_freed_memory()  # as our commands do
    if args.threads:
        torch.set_num_threads(args.threads)
        with suppress(ImportError):  # not needed by every --memory-index
            import faiss

            faiss.omp_set_num_threads(args.threads)


def positive(text: str) -> int:
    """Type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number of at least 1")
    return int(text)


def several(one: Callable, choices: Iterable[str] = ()) -> Callable:
    """Type of an option with values of type *one*, separated by commas, maybe only of *choices*."""

    def parse(text: str) -> List:
        values = [one(word) for word in text.split(",") if word]
        for value in values:
            if choices and value not in choices:
                raise argparse.ArgumentTypeError(f"{value} must be one of {', '.join(choices)}")
        return values

    return parse
