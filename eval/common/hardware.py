"""The machine and its rates, and the memory of this process."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Dict, Iterable, NamedTuple, Optional

import torch

from eval.common.timing import timed
from longmem_fairseq.utils.allocator import give_back_freed_memory
from longmem_fairseq.utils.processor import has_instructions


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
    """The machine's rates: FLOP/s by the name of a dtype, and bytes/s."""

    matmul_flops_per_second: Dict[str, float]
    copy_bytes_per_second: float

    @classmethod
    def measure(cls, dtypes: Iterable[str], device: torch.device) -> "Rates":
        """Measures them, matrix products in each of *dtypes*."""
        matmul = {dtype: matmul_rate(getattr(torch, dtype), device) for dtype in dtypes}
        return cls(matmul, copy_rate(device))

    def __str__(self) -> str:
        words = [
            f"{rate / 1e9:,.1f} GFLOP/s in {dtype}"
            for dtype, rate in self.matmul_flops_per_second.items()
        ]
        return f"matmul {', '.join(words)}; copy {self.copy_bytes_per_second / 1e9:,.1f} GB/s"


def reset_peak(device: torch.device) -> None:
    """Starts :func:`peak_bytes` anew (on Linux, where /proc may be written)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_freed_memory()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM


def peak_bytes(device: torch.device) -> Optional[int]:
    """Peak memory of this process: of the GPU, or resident (all its libraries included).

    To measure one thing give it a fresh process. Not ``ru_maxrss``, which a child inherits from its
    parent. None where there is no /proc.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_bytes("VmHWM")


def resident_bytes() -> Optional[int]:
    """Main memory that this process holds now. None where there is no /proc."""
    return _process_bytes("VmRSS")


def _process_bytes(name: str) -> Optional[int]:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def matrix_kind() -> str:
    """The CPU's instructions for matrix products in bfloat16."""
    for name, words in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512-bf16")):
        if has_instructions(name):
            return words
    return "neither AMX nor AVX-512-bf16"


def describe_hardware(device: torch.device) -> str:
    """One line: CPU, its matrix instructions, cores used, GPU, torch."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    words = [f"{cpu}, {torch.get_num_threads()} of {os.cpu_count()} cores", matrix_kind()]
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return ", ".join([*words, f"torch {torch.__version__}"])
