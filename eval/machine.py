"""What the benchmarks of eval/ share: options, the machine's own rates, timers, peak memory, goals."""

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional

import torch

from longmem_fairseq.utils.allocator import give_back_freed_memory, keep_freed_memory
from results import check_output, commit


class Check(NamedTuple):
    """A goal and whether *value* meets it; ``_asdict()`` is what goes into JSON."""

    name: str
    value: float
    goal: str  # such as ">= 0.75"
    ok: bool

    @classmethod
    def at_least(cls, name: str, value: float, goal: float) -> "Check":
        return cls(name, value, f">= {goal:g}", value >= goal)

    @classmethod
    def at_most(cls, name: str, value: float, goal: float) -> "Check":
        return cls(name, value, f"<= {goal:g}", value <= goal)

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'NOT MET':7}  {self.name}: {self.value:.3f} ({self.goal})"


class Parser(argparse.ArgumentParser):
    """The options of every benchmark; shows defaults.

    A wrong option is a ValueError, which :func:`cli.run` makes one line of.

    Args:
        description: what the benchmark does
        plot: what --plot shows
        quick: option -> what it is with --quick
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
        raise ValueError(message)

    def read(self) -> argparse.Namespace:
        """The command line.

        Raises:
            ValueError, FileNotFoundError: naming the option
        """
        args = self.parse_args()
        if args.quick:
            self.set_defaults(**self.quick)
            args = self.parse_args()
        args.device = torch.device(args.device)
        if args.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no GPU")
        for path in (args.json, args.plot):
            check_output(path)
        return args


def set_up(args: argparse.Namespace) -> None:
    """The settings of a process."""
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


class Timing(NamedTuple):
    """Seconds of a call."""

    median: float
    minimum: float


class Stages:
    """Adds up the seconds spent in named stages. Inner stages do not count for the outer one.

    Args:
        device: waited for where a stage begins and ends
    """

    def __init__(self, device: torch.device):
        self.seconds: Dict[str, float] = defaultdict(float)
        self._device = device
        self._inner: List[float] = []  # for every open stage, seconds of the stages inside it

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = _now(self._device)
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = _now(self._device) - start
            self.seconds[name] += elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed

    def wrap(self, name: str, function: Callable) -> Callable:
        """*function*, counted as a stage."""

        @wraps(function)
        def counted(*args, **kwargs):
            with self(name):
                return function(*args, **kwargs)

        return counted


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(function: Callable, device: torch.device) -> float:
    """Seconds of one call, until the device has finished."""
    start = _now(device)
    function()
    return _now(device) - start


def timed(function: Callable, repeats: int, device: torch.device, warm_up: int = 1) -> Timing:
    """Times *repeats* calls, after *warm_up* that are not counted."""
    for _ in range(warm_up):
        function()
    seconds = [seconds_of(function, device) for _ in range(repeats)]
    return Timing(statistics.median(seconds), min(seconds))


def interleaved(
    functions: Dict[str, Callable], repeats: int, device: torch.device
) -> Dict[str, List[float]]:
    """Seconds of every call, A B A B ... after one warm-up each.

    What disturbs the machine for a while then disturbs all of them: compare them round by round.
    """
    for function in functions.values():
        function()
    seconds: Dict[str, List[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function, device))
    return seconds


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of square matrix products, the best of several."""
    size = 8192 if device.type == "cuda" else 2048  # large enough to reach the machine's best
    # made in float32: half precision has no random numbers of its own on some devices
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / timed(lambda: torch.mm(left, right, out=out), 10, device).minimum


def copy_rate(device: torch.device) -> float:
    """Bytes/s of copying, read and written bytes both counted, the best of several."""
    size = 2**30 if device.type == "cuda" else 2**28  # larger than the caches
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), 10, device).minimum


class Rates(NamedTuple):
    """What the machine can do: FLOP/s by the name of a dtype, bytes/s."""

    matmul_flops_per_second: Dict[str, float]
    copy_bytes_per_second: float

    @classmethod
    def measure(cls, dtypes: Iterable[str], device: torch.device) -> "Rates":
        matmul = {dtype: matmul_rate(getattr(torch, dtype), device) for dtype in dtypes}
        return cls(matmul, copy_rate(device))

    def __str__(self) -> str:
        words = [
            f"{rate / 1e9:,.1f} GFLOP/s in {dtype}"
            for dtype, rate in self.matmul_flops_per_second.items()
        ]
        return f"matmul {', '.join(words)}; copy {self.copy_bytes_per_second / 1e9:,.1f} GB/s"


def reset_peak(device: torch.device) -> None:
    """Forgets what :func:`peak_bytes` has seen (on Linux, where /proc may be written)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_freed_memory()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM


def peak_bytes(device: torch.device) -> Optional[int]:
    """Most memory this process has held: of the GPU, or resident (all its libraries included).

    To measure one thing give it a fresh process. Not ``ru_maxrss``, which a child inherits from its
    parent. None where there is no /proc.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_bytes("VmHWM")


def resident_bytes() -> Optional[int]:
    """What this process holds in main memory now. None where there is no /proc."""
    return _process_bytes("VmRSS")


def _process_bytes(name: str) -> Optional[int]:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def describe_hardware(device: torch.device) -> str:
    """One line: CPU, cores used, GPU, torch."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    words = [f"{cpu}, {torch.get_num_threads()} of {os.cpu_count()} cores"]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return ", ".join([*words, f"torch {torch.__version__}"])


def write_report(
    path: Path, hardware: str, rates: Rates, checks: Iterable[Check], **results: object
) -> None:
    """Writes *results* as JSON, with when, where and how they came about."""
    report = {
        "date": date.today().isoformat(),
        "hardware": hardware,
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "rates": rates._asdict(),
        **results,
        "checks": [check._asdict() for check in checks],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
