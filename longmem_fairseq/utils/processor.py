"""What the processor can do."""

import functools

import torch


@functools.cache
def has_instructions(name: str) -> bool:
    """Whether this machine's CPU has some instructions, by PyTorch's name: ``avx512_bf16``,
    ``amx_bf16``. False where PyTorch is too old to tell."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get(name, False))
