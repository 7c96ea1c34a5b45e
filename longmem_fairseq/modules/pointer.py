"""The pointer: the model's next-token distribution, mixed with what came next at similar places.

B streams, T tokens, V vocabulary, K places of a query, C embed_dim.

The distribution over the tokens at these places is that of kNN-LM (Khandelwal et al. 2020, arXiv
1911.00172) and of continuous caches (Grave et al. 2017, arXiv 1612.04426), with the document's own past
as the datastore: its memory, and its window. Besides similar states it counts literal matches: how many
tokens before the place equal those before the prediction. A fact that is asked for in its own words is
found by them.
"""

from typing import NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.modules.places import Places

SMALLEST = 1e-30  # a probability in the place of 0, whose logarithm is finite
VALUE_RATE = 15.0


class Pointer(NamedTuple):
    """p = (1 - l) p_model + l p_memory, for every token.

    log_weight, log_rest: log l and log(1 - l), B x T; -inf and 0 where there is no place
    shares: of the places in p_memory, B x T x K, those in memory first; they sum to 1
    ids: the tokens there, B x T x K; one may be there several times
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
    """For each of K tokens the sum of the shares of all that are the same token, and whether
    it is not the first of them, B x T x K each."""
    in_order, order = ids.sort(dim=-1, stable=True)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[..., 1:] = in_order[..., 1:] != in_order[..., :-1]
    group_in_order = starts.cumsum(dim=-1) - 1
    group = torch.empty_like(order).scatter(-1, order, group_in_order)  # B x T x K
    sums = torch.zeros_like(shares).scatter_add(-1, group, shares)
    repeated = torch.empty_like(starts).scatter(-1, order, ~starts)
    return sums.gather(-1, group), repeated


def shares_of(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, and zeros where all are -inf."""
    nothing = scores.isneginf().all(dim=-1, keepdim=True)
    # not by nan_to_num, behind which the softmax of -inf alone has a gradient that is not a number
    return torch.softmax(scores.masked_fill(nothing, 0.0), dim=-1).masked_fill(nothing, 0.0)


class PointerValues(NamedTuple):
    """The numbers that decide a pointer; without training these, fitted to novels and LaTeX with
    SmolLM2-135M (docs/results/2026-11-27-memory-that-pays.md).

    A place's score is ``sharpness * similarity + trust * log p_model + match``, in the window with
    ``near`` more, and its share of p_memory their softmax. The logit of the pointer's weight is
    ``bias + slope * s + agreement * p + weight_match + weight_near * n``, of the best similarity s, of
    the largest share p that one token of the vocabulary has, and of the share n of the places in the
    window, which the model has read itself.

    match, weight_match: for literal matches of fewer tokens than each of MATCH_LENGTHS, and of more
    """

    sharpness: float = 13.5
    trust: float = 0.17
    match: Tuple[float, ...] = (0.0, 1.0, 2.2, 3.5, 5.0, 7.0, 7.0)
    near: float = -1.0
    bias: float = -8.7
    slope: float = 8.0
    agreement: float = 2.0
    weight_match: Tuple[float, ...] = (0.0, 0.1, 0.1, 0.3, 0.8, 1.2, 1.5)
    weight_near: float = -2.5


def point(
    places: Places,
    log_probs: Tensor,
    values: PointerValues,
    more: Union[Tensor, float] = 0.0,
    literalness: Optional[Tensor] = None,
) -> Pointer:
    """A pointer to the places of T tokens.

    Args:
        log_probs: by the model, of the tokens there, B x T x K
        values: as tensors
        more: what is added to the logit of the weight, B x T or one number
        literalness: factor of ``values.match``, B x T
    """
    with torch.autocast(log_probs.device.type, enabled=False):
        valid = places.similarities.isfinite()
        # an infinity would make gradients NaN
        similarities = places.similarities.masked_fill(~valid, -1.0)
        match = values.match[places.match_classes]
        if literalness is not None:
            match = match * literalness.unsqueeze(-1)
        scores = values.sharpness * similarities + values.trust * log_probs + match
        scores = scores + values.near * places.near
        shares = shares_of(scores.masked_fill(~valid, -torch.inf))
        agreement, best = share_of_token(places.ids, shares)[0].max(dim=-1, keepdim=True)
        weight_match = values.weight_match[places.match_classes.gather(-1, best)]
        odds = (values.agreement * agreement + weight_match).squeeze(-1)
        odds = odds + values.bias + values.slope * similarities.amax(dim=-1)
        odds = odds + values.weight_near * (shares * places.near).sum(dim=-1) + more
        nothing = ~valid.any(dim=-1)
        log_weight = F.logsigmoid(odds).masked_fill(nothing, -torch.inf)
        log_rest = F.logsigmoid(-odds).masked_fill(nothing, 0.0)
        return Pointer(log_weight, log_rest, shares, places.ids)


class ConstantPointer(nn.Module):
    """A pointer without training.

    Args:
        bias: added to the logit of its weight
    """

    def __init__(self, bias: float = 0.0):
        super().__init__()
        self.added = bias

    def forward(self, places: Places, features: Tensor, log_probs: Tensor) -> Pointer:
        """See :class:`TrainedPointer`; *features* are not looked at."""
        values = (torch.tensor(value, device=log_probs.device) for value in PointerValues())
        return point(places, log_probs, PointerValues(*values), self.added)


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

    def forward(self, places: Places, features: Tensor, log_probs: Tensor) -> Pointer:
        """
        Args:
            places: of the T tokens
            features: their last hidden states, B x T x C
            log_probs: by the model, of the tokens there, B x T x K, without a gradient
        """
        values = (getattr(self, name) * VALUE_RATE for name in PointerValues._fields)
        with torch.autocast(features.device.type, enabled=False):
            states = self.norm(features.float())
            literalness = (states @ self.literalness).exp()
            more = states @ self.weight + self.added
        return point(places, log_probs, PointerValues(*values), more, literalness)
