"""The pointer: the model's next-token distribution, mixed with what came next in memory.

B streams, T tokens, V vocabulary, K tokens retrieved per query, C embed_dim.

The distribution over the tokens that were found is that of kNN-LM (Khandelwal et al. 2020, arXiv
1911.00172) and of continuous caches (Grave et al. 2017, arXiv 1612.04426), with the document's own past
as the datastore.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved

SMALLEST = 1e-30  # a probability in the place of 0, whose logarithm is finite


class Pointer(NamedTuple):
    """p = (1 - l) p_model + l p_memory, for every token.

    log_weight, log_rest: log l and log(1 - l), B x T; -inf and 0 where nothing was found
    shares: of the tokens that were found in p_memory, B x T x K; they sum to 1
    ids: which tokens these are, B x T x K; one may be there several times
    """

    log_weight: Tensor
    log_rest: Tensor
    shares: Tensor
    ids: Tensor

    def mixed(self, logits: Tensor) -> Tensor:
        """log p of every token of the vocabulary, B x T x V, which exactly sum to 1."""
        log_probs = logits.float().log_softmax(dim=-1) + self.log_rest.unsqueeze(-1)
        same = self.ids.unsqueeze(-1) == self.ids.unsqueeze(-2)  # B x T x K x K
        found = same.to(self.shares) @ self.shares.unsqueeze(-1)  # p_memory, B x T x K x 1
        found = found.squeeze(-1)
        pointed = self.log_weight.unsqueeze(-1) + found.clamp(min=SMALLEST).log()
        own = log_probs.gather(-1, self.ids)
        more = torch.logaddexp(own, pointed) - own
        repeated = same.tril(-1).any(dim=-1)  # counted at its first place
        return log_probs.scatter_add(-1, self.ids, more.masked_fill(repeated, 0.0))

    def losses(self, losses: Tensor, target: Tensor, padding_idx: int) -> Tensor:
        """-log p of B x T targets, from -log p_model of them; without a vocabulary's work."""
        found = (self.shares * (self.ids == target.unsqueeze(-1))).sum(dim=-1)
        pointed = self.log_weight + found.clamp(min=SMALLEST).log()
        mixed = -torch.logaddexp(self.log_rest - losses, pointed)
        return mixed.masked_fill(target == padding_idx, 0.0)


def similarities(found: Retrieved) -> Tensor:
    """Of every query and the K tokens that it found, B x T x K, -inf where there is none."""
    scores = found.scores.repeat_interleave(found.store.chunk_size, dim=-1)
    return scores.masked_fill(found.token_ids < 0, -torch.inf)


def shares_of(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, and zeros where all are -inf."""
    nothing = scores.isneginf().all(dim=-1, keepdim=True)
    # not by nan_to_num, behind which the softmax of -inf alone has a gradient that is not a number
    return torch.softmax(scores.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)


class PointerValues(NamedTuple):
    """What decides a pointer: ``l = sigmoid(slope (s - half) + more)`` of the best similarity s, and
    ``shares = softmax(similarity / t + trust log p_model)`` over the tokens found. Chosen on novels and
    LaTeX with SmolLM2-135M (docs/results/2026-11-27-memory-that-pays.md)."""

    half: float = 0.918
    slope: float = 11.0
    log_t: float = -2.85
    trust: float = 0.18


def point(found: Retrieved, log_probs: Tensor, values: PointerValues, more: float = 0.0) -> Pointer:
    """A pointer to what the T tokens have *found*.

    Args:
        log_probs: by the model, of the tokens that were found, B x T x K
        values: numbers, or tensors of one
        more: B x T, or a number
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        scores, ids = similarities(found), found.token_ids.clamp(min=0)  # B x T x K
        valid = scores.isfinite()
        scores = scores.masked_fill(~valid, -1.0)  # an infinity would make gradients NaN
        sharpness = (-torch.as_tensor(values.log_t)).exp()
        shares = (scores * sharpness + values.trust * log_probs).masked_fill(~valid, -torch.inf)
        odds = values.slope * (scores.amax(dim=-1) - values.half) + more
        nothing = ~valid.any(dim=-1)
        log_weight = F.logsigmoid(odds).masked_fill(nothing, -torch.inf)
        log_rest = F.logsigmoid(-odds).masked_fill(nothing, 0.0)
        return Pointer(log_weight, log_rest, shares_of(shares), ids)


class ConstantPointer(nn.Module):
    """A pointer without training: its weight depends on the best similarity alone."""

    def forward(self, found: Retrieved, features: Tensor, log_probs: Tensor) -> Pointer:
        """See :class:`TrainedPointer`; *features* are not looked at."""
        return point(found, log_probs, PointerValues())


class TrainedPointer(nn.Module):
    """A pointer whose values are trained, and whose weight also depends on the last hidden state.

    It starts as the constant one. More than this, such as a temperature for every token or the model's
    entropy as a feature, was worth nothing after 34,000 tokens of training.

    Args:
        embed_dim: C
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(PointerValues()))
        self.norm = nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.weight = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, found: Retrieved, features: Tensor, log_probs: Tensor) -> Pointer:
        """
        Args:
            found: by the T tokens
            features: their last hidden states, B x T x C
            log_probs: by the model, of the tokens that were found, B x T x K, without a gradient
        """
        with torch.autocast(features.device.type, enabled=False):
            more = self.norm(features.float()) @ self.weight
        return point(found, log_probs, PointerValues(*self.values), more)
