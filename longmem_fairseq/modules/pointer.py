"""The pointer: the model's next-token distribution, mixed with what came next in memory.

B streams, T tokens, V vocabulary, K tokens retrieved per query, C embed_dim.

The distribution over the retrieved tokens is that of kNN-LM (Khandelwal et al. 2020, arXiv 1911.00172)
and of continuous caches (Grave et al. 2017, arXiv 1612.04426), with the document's own past as the
datastore. Besides similar states it counts literal matches: how many tokens before the place in memory
equal those before the prediction. A fact that is asked for in its own words is found by them.
"""

from typing import NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved

SMALLEST = 1e-30  # a probability in the place of 0, whose logarithm is finite
VALUE_RATE = 15.0
MATCH_LENGTHS = (1, 2, 4, 8, 16, 32)  # tokens from which on a literal match counts for more


class Pointer(NamedTuple):
    """p = (1 - l) p_model + l p_memory, for every token.

    log_weight, log_rest: log l and log(1 - l), B x T; -inf and 0 where nothing was retrieved
    shares: of the retrieved tokens in p_memory, B x T x K; they sum to 1
    ids: which tokens these are, B x T x K; one may be there several times
    """

    log_weight: Tensor
    log_rest: Tensor
    shares: Tensor
    ids: Tensor

    def mixed(self, logits: Tensor) -> Tensor:
        """log p of every token of the vocabulary, B x T x V, which exactly sum to 1."""
        log_probs = logits.float().log_softmax(dim=-1) + self.log_rest.unsqueeze(-1)
        p_memory, repeated = share_of_token(self.ids, self.shares)
        pointed = self.log_weight.unsqueeze(-1) + p_memory.clamp(min=SMALLEST).log()
        by_model = log_probs.gather(-1, self.ids)
        more = torch.logaddexp(by_model, pointed) - by_model
        return log_probs.scatter_add(-1, self.ids, more.masked_fill(repeated, 0.0))

    def losses(self, losses: Tensor, target: Tensor, padding_idx: int) -> Tensor:
        """-log p of B x T targets, from -log p_model of them; without a vocabulary's work."""
        p_memory = (self.shares * (self.ids == target.unsqueeze(-1))).sum(dim=-1)
        pointed = self.log_weight + p_memory.clamp(min=SMALLEST).log()
        mixed = -torch.logaddexp(self.log_rest - losses, pointed)
        return mixed.masked_fill(target == padding_idx, 0.0)


def share_of_token(ids: Tensor, shares: Tensor) -> Tuple[Tensor, Tensor]:
    """For each of K retrieved tokens the sum of the shares of all that are the same token, and whether
    it is not the first of them, B x T x K each."""
    in_order, order = ids.sort(dim=-1, stable=True)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[..., 1:] = in_order[..., 1:] != in_order[..., :-1]
    group_in_order = starts.cumsum(dim=-1) - 1
    group = torch.empty_like(order).scatter(-1, order, group_in_order)  # B x T x K
    sums = torch.zeros_like(shares).scatter_add(-1, group, shares)
    repeated = torch.empty_like(starts).scatter(-1, order, ~starts)
    return sums.gather(-1, group), repeated


def contexts_of(tokens: Tensor, before: Optional[Tensor], length: int) -> Tensor:
    """Every token and those before it, B x T x *length*, the newest first; -1 where there are none.

    Args:
        tokens: B x T
        before: the tokens before these, B x P
    """
    past = tokens if before is None else torch.cat([before, tokens], dim=1)
    # one window more than there are tokens: unfold takes no tensor shorter than a window
    windows = F.pad(past, (length, 0), value=-1).unfold(1, length, 1)
    return windows[:, windows.size(1) - tokens.size(1) :].flip(-1)  # B x T x length


def similarities(retrieved: Retrieved) -> Tensor:
    """Of every query and the K tokens that it retrieved, B x T x K, -inf where there is none."""
    scores = retrieved.scores.repeat_interleave(retrieved.store.chunk_size, dim=-1)
    return scores.masked_fill(retrieved.token_ids < 0, -torch.inf)


def shares_of(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, and zeros where all are -inf."""
    nothing = scores.isneginf().all(dim=-1, keepdim=True)
    # not by nan_to_num, behind which the softmax of -inf alone has a gradient that is not a number
    return torch.softmax(scores.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)


class PointerValues(NamedTuple):
    """The numbers that decide a pointer; without training these, fitted to novels and LaTeX with
    SmolLM2-135M (docs/results/2026-11-27-memory-that-pays.md).

    A retrieved token's score is ``sharpness * similarity + trust * log p_model + match``, and its share
    of p_memory their softmax. The logit of the pointer's weight is ``bias + slope * s + agreement * p +
    weight_match``, of the best similarity s and of the largest share p that one token of the vocabulary
    has.

    match, weight_match: for literal matches of fewer tokens than each of MATCH_LENGTHS, and of more
    """

    sharpness: float = 13.5
    trust: float = 0.17
    match: Tuple[float, ...] = (0.0, 1.0, 2.2, 3.5, 5.0, 7.0, 7.0)
    bias: float = -8.7
    slope: float = 8.0
    agreement: float = 2.0
    weight_match: Tuple[float, ...] = (0.0, 0.1, 0.1, 0.3, 0.8, 1.2, 1.5)


def point(
    retrieved: Retrieved,
    log_probs: Tensor,
    values: PointerValues,
    more: Union[Tensor, float] = 0.0,
    literalness: Optional[Tensor] = None,
) -> Pointer:
    """A pointer to what the T tokens retrieved.

    Args:
        log_probs: by the model, of the retrieved tokens, B x T x K
        values: as tensors
        more: what is added to the logit of the weight, B x T or one number
        literalness: factor of ``values.match``, B x T
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        scores, ids = similarities(retrieved), retrieved.token_ids.clamp(min=0)  # B x T x K
        valid = scores.isfinite()
        scores = scores.masked_fill(~valid, -1.0)  # an infinity would make gradients NaN
        lengths = torch.tensor(MATCH_LENGTHS, device=ids.device)
        matches = torch.bucketize(retrieved.matches.contiguous(), lengths, right=True)  # B x T x K
        match = values.match[matches]
        if literalness is not None:
            match = match * literalness.unsqueeze(-1)
        shares = values.sharpness * scores + values.trust * log_probs + match
        shares = shares_of(shares.masked_fill(~valid, -torch.inf))
        agreement, best = share_of_token(ids, shares)[0].max(dim=-1, keepdim=True)
        weight_match = values.weight_match[matches.gather(-1, best)]
        odds = (values.agreement * agreement + weight_match).squeeze(-1)
        odds = odds + values.bias + values.slope * scores.amax(dim=-1)
        odds = odds + more
        nothing = ~valid.any(dim=-1)
        log_weight = F.logsigmoid(odds).masked_fill(nothing, -torch.inf)
        log_rest = F.logsigmoid(-odds).masked_fill(nothing, 0.0)
        return Pointer(log_weight, log_rest, shares, ids)


class ConstantPointer(nn.Module):
    """A pointer without training.

    Args:
        bias: added to the logit of its weight
    """

    def __init__(self, bias: float = 0.0):
        super().__init__()
        self.added = bias

    def forward(self, retrieved: Retrieved, features: Tensor, log_probs: Tensor) -> Pointer:
        """See :class:`TrainedPointer`; *features* are not looked at."""
        values = (torch.tensor(value, device=log_probs.device) for value in PointerValues())
        return point(retrieved, log_probs, PointerValues(*values), self.added)


class TrainedPointer(nn.Module):
    """A pointer whose values are trained, and that also depends on the last hidden state: how much it
    weighs, and how much a literal match counts.

    It starts as the constant one. Its values are stored divided by VALUE_RATE, so that Adam moves them
    that many times faster than the vectors over the hidden state: they are larger than those.

    Args:
        embed_dim: C
        bias: added to the logit of its weight, besides the value of this name
    """

    def __init__(self, embed_dim: int, bias: float = 0.0):
        super().__init__()
        self.added = bias
        for name, value in PointerValues()._asdict().items():
            setattr(self, name, nn.Parameter(torch.tensor(value) / VALUE_RATE))
        self.norm = nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.weight = nn.Parameter(torch.zeros(embed_dim))
        self.literalness = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, retrieved: Retrieved, features: Tensor, log_probs: Tensor) -> Pointer:
        """
        Args:
            retrieved: by the T tokens, with the lengths of literal matches
            features: their last hidden states, B x T x C
            log_probs: by the model, of the retrieved tokens, B x T x K, without a gradient
        """
        values = (getattr(self, name) * VALUE_RATE for name in PointerValues._fields)
        with torch.autocast(features.device.type, enabled=False):
            states = self.norm(features.float())
            literalness = (states @ self.literalness).exp()
            more = states @ self.weight + self.added
        return point(retrieved, log_probs, PointerValues(*values), more, literalness)
