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
        found = (same.to(self.shares) @ self.shares.unsqueeze(-1)).squeeze(
            -1
        )  # p_memory, B x T x K
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

    def from_token(self, first: int) -> "Pointer":
        """For the tokens from *first* on."""
        return Pointer(*(tensor[:, first:] for tensor in self))


def similarities(found: Retrieved) -> Tensor:
    """Of every query and the K tokens that it found, B x T x K, -inf where there is none."""
    scores = found.scores.repeat_interleave(found.store.chunk_size, dim=-1)
    return scores.masked_fill(found.token_ids < 0, -torch.inf)


def shares_of(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, and zeros where all are -inf."""
    return torch.softmax(scores, dim=-1).nan_to_num(0.0)


class ConstantPointer(nn.Module):
    """A pointer without training: its weight depends on the best similarity alone.

    ``l = sigmoid(SLOPE (similarity - HALF))`` and ``shares = softmax(similarity / TEMPERATURE + TRUST *
    log p_model)`` over the tokens found. The constants were chosen on novels and LaTeX, with
    SmolLM2-135M (docs/results/2026-11-27-memory-that-pays.md).
    """

    HALF, SLOPE, TEMPERATURE, TRUST = 0.99, 9.5, 0.09, 0.17

    def forward(self, found: Retrieved, features: Tensor, logits: Tensor) -> Pointer:
        """
        Args:
            found: by the T tokens
            features: not looked at
            logits: of the model, B x T x V
        """
        scores, ids = similarities(found), found.token_ids.clamp(min=0)  # B x T x K
        own = logits.gather(-1, ids).float() - logits.float().logsumexp(dim=-1, keepdim=True)
        shares = shares_of(scores / self.TEMPERATURE + self.TRUST * own)
        odds = self.SLOPE * (scores.amax(dim=-1) - self.HALF)  # -inf where nothing was found
        return Pointer(F.logsigmoid(odds), F.logsigmoid(-odds), shares, ids)


class TrainedPointer(nn.Module):
    """A pointer whose weight and shares are predicted for every token.

    ``shares = softmax(similarity / t + a log p_model)`` over the tokens found, and ``l = sigmoid(w)``.
    t, a and w come from a small network that sees the last hidden state, the similarities, and how sure
    the model is. It starts as a constant pointer of little weight.

    Args:
        embed_dim: C
        hidden_dim: units of the network
    """

    NUM_FEATURES = 6

    def __init__(self, embed_dim: int, hidden_dim: int = 64):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.reduce = nn.Linear(embed_dim, hidden_dim)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_dim + self.NUM_FEATURES, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, 3),
        )
        nn.init.zeros_(self.mlp[-1].weight)
        with torch.no_grad():  # l = 0.05, t = 0.05, a = 0
            self.mlp[-1].bias.copy_(torch.tensor([-3.0, 3.0, 0.0]))

    def forward(self, found: Retrieved, features: Tensor, logits: Tensor) -> Pointer:
        """
        Args:
            found: by the T tokens
            features: their last hidden states, B x T x C
            logits: of the model, B x T x V
        """
        with torch.autocast(features.device.type, enabled=False):
            scores, ids = similarities(found), found.token_ids.clamp(min=0)  # B x T x K
            total = logits.detach().float().logsumexp(dim=-1, keepdim=True)
            own = logits.detach().gather(-1, ids).float() - total  # B x T x K
            confidence = logits.detach().amax(dim=-1, keepdim=True).float() - total
            valid = scores.isfinite()
            known = scores.masked_fill(~valid, 0.0)
            few = known[..., : min(4, known.size(-1))]
            features = torch.cat(
                [
                    self.reduce(self.norm(features.float())),
                    known[..., :1],
                    few.mean(dim=-1, keepdim=True),
                    known.mean(dim=-1, keepdim=True),
                    confidence,
                    own[..., :1],
                    valid.float().mean(dim=-1, keepdim=True),
                ],
                dim=-1,
            )
            weight, sharpness, trust = self.mlp(features).unbind(dim=-1)  # B x T
            scores = sharpness.exp().unsqueeze(-1) * scores + trust.unsqueeze(-1) * own
            shares = shares_of(scores.masked_fill(~valid, -torch.inf))
            nothing = ~valid.any(dim=-1)
            log_weight = F.logsigmoid(weight).masked_fill(nothing, -torch.inf)
            log_rest = F.logsigmoid(-weight).masked_fill(nothing, 0.0)
            return Pointer(log_weight, log_rest, shares, ids)
