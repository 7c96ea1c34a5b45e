"""Timers: of calls, of calls in turn, and of stages within each other."""

import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial, wraps
from typing import Callable, Dict, Iterator, List, NamedTuple

import torch


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self.start


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


class Step(NamedTuple):
    """Something to be timed.

    run: takes a :class:`Stages`, or nothing
    prepare: is called before, and not timed
    """

    run: Callable
    prepare: Callable = lambda: None

    def seconds(self, device: torch.device, *stages: Stages) -> float:
        """Seconds of one run."""
        self.prepare()
        return seconds_of(partial(self.run, *stages), device)


def interleaved(
    steps: Dict[str, Step], repeats: int, device: torch.device
) -> Dict[str, List[float]]:
    """Seconds of every run, A B A B ... after one warm-up each.

    A disturbance of the machine then slows all of them: compare them round by round.
    """
    for step in steps.values():
        step.seconds(device)
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(step.seconds(device))
    return seconds


def pair_ratios(first: List[float], second: List[float]) -> List[float]:
    """Seconds of *first* by those of *second*, round by round: how many times as fast the second is."""
    return [a / b for a, b in zip(first, second, strict=True)]
