"""Cross-entropy of every token.

n tokens, V vocabulary.
"""

from typing import Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits widened to float32 at a time: what stays in a CPU's caches is several times faster than all
# of them at once (measured with V = 51,200); a GPU wants large kernels.
LOGIT_BUDGET = {"cpu": 2**19, "cuda": 2**28}


def row_blocks(logits: Tensor, target: Tensor) -> Iterator[Tuple[Tensor, Tensor]]:
    """Some rows of the logits at a time, in float32, with their targets.

    Args:
        logits: ... x V
        target: ...
    """
    rows = max(1, LOGIT_BUDGET[logits.device.type] // logits.size(-1))
    blocks = zip(logits.flatten(0, -2).split(rows), target.flatten().split(rows), strict=True)
    for block, expected in blocks:
        yield block.float(), expected


def token_losses(logits: Tensor, target: Tensor, padding_idx: int) -> Tensor:
    """Negative log-likelihood of every target (nats), 0 for padding; float32.

    Args:
        logits: ... x V
        target: ...
    """
    losses = [
        F.cross_entropy(block, expected, ignore_index=padding_idx, reduction="none")
        for block, expected in row_blocks(logits, target)
    ]
    return torch.cat(losses).view(target.shape)
