"""Prompts for fairseq-interactive and fairseq-generate.

Every item is a prompt, without the beginning-of-document token, which the task puts before it.
fairseq's own language modeling task makes these of a ``TokenBlockDataset``, which numpy 2 breaks.
"""

from typing import List

import numpy as np
from fairseq.data import (
    FairseqDataset,
    IdDataset,
    ListDataset,
    NestedDictionaryDataset,
    NumelDataset,
    PadDataset,
    StripTokenDataset,
    TruncateDataset,
)
from torch import Tensor

from longmem_fairseq.data.indexed_documents import IndexedDocuments


def lines_to_continue(lines: List[Tensor], eos: int, pad: int) -> NestedDictionaryDataset:
    """Typed prompts; fairseq-interactive appends *eos*, which is taken off."""
    lines = ListDataset(lines, sizes=np.array([len(line) for line in lines]))
    return _prompts(StripTokenDataset(lines, eos), lines.sizes, pad)


def documents_to_continue(
    documents: IndexedDocuments, prefix_size: int, target_size: int, pad: int
) -> NestedDictionaryDataset:
    """The first *prefix_size* tokens of every document; they and *target_size* more are the target."""
    sizes = np.minimum(documents.sizes, prefix_size)
    target = TruncateDataset(documents, prefix_size + target_size)
    target = PadDataset(target, pad_idx=pad, left_pad=False)
    return _prompts(TruncateDataset(documents, prefix_size), sizes, pad, target=target)


def _prompts(
    prompts: FairseqDataset, sizes: np.ndarray, pad: int, **more: FairseqDataset
) -> NestedDictionaryDataset:
    net_input = {
        "src_tokens": PadDataset(prompts, pad_idx=pad, left_pad=False),
        "src_lengths": NumelDataset(prompts, reduce=False),
    }
    return NestedDictionaryDataset(
        {"id": IdDataset(), "net_input": net_input, **more}, sizes=[sizes]
    )
