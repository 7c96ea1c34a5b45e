"""Continuing prompts and documents for fairseq-generate and fairseq-interactive."""

from typing import List, Optional, Sequence

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor


def load_memory_of_models(models: Sequence[BaseFairseqModel], path: Optional[str]) -> None:
    """Makes models start with a memory file, the option ``--memory``; does nothing without one.

    Raises:
        FileNotFoundError, ValueError: see :meth:`ExternalMemory.load`; or a model has no memory
    """
    for model in models if path is not None else ():
        decoder = model.decoder
        if decoder.memory is None:
            raise ValueError(f"--memory ({path}) needs a model with a memory")
        decoder.identify_memory()
        device = next(model.parameters()).device
        decoder.memory.load(path, training=False, device=device)


@torch.no_grad()
def continue_prompts(
    generator,
    models: List[BaseFairseqModel],
    sample: dict,
    prefix_tokens: Optional[Tensor],
    constraints: Optional[Tensor],
    document_start: int,
):
    """Hypotheses of fairseq's generator, each from the beginning of a document on.

    Args:
        document_start: the dictionary's index that stands before a document

    Raises:
        ValueError: --prefix-size is missing, or --constraints are given
    """
    if constraints is not None:
        raise ValueError("--constraints do not go with this task: leave them out")
    if "new_document" in sample["net_input"]:
        raise ValueError("--prefix-size is missing: how many tokens of each document to continue")
    prompts = sample["net_input"]["src_tokens"]
    if prefix_tokens is None and prompts.numel() > 0:
        prefix_tokens = prompts
    return generator.generate(models, sample, prefix_tokens=prefix_tokens, bos_token=document_start)
