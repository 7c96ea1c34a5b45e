"""The output head: logits, or no more of them than the loss of given targets needs.

n tokens, C embed_dim, V vocabulary, K ids per token.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.modules.token_losses import row_blocks, token_losses

# Logits computed at a time: few enough to stay in a CPU's last cache until the loss has read them, many
# enough that a matrix product reads the weights seldom. A GPU wants large kernels.
LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**28}

Head = Callable[[Tensor], Tensor]  # n x C -> n x V


class Prediction(NamedTuple):
    """The next token's distribution, for every token.

    logits: ... x V; None where there are losses
    losses: of the targets (nats), 0 for padding; float32, shape of the targets; None without targets
    log_probs: of the ids that were asked for, ... x K, float32, without a gradient; None without ids
    """

    logits: Optional[Tensor] = None
    losses: Optional[Tensor] = None
    log_probs: Optional[Tensor] = None


def predict(
    head: Head,
    vocabulary: int,
    features: Tensor,
    target: Optional[Tensor] = None,
    ids: Optional[Tensor] = None,
    padding_idx: int = -1,
    head_is_trained: bool = False,
) -> Prediction:
    """Predicts logits; or, of given targets, their losses alone, without all logits at once.

    A head that is trained gets all logits: its gradient needs them once more.

    Args:
        vocabulary: V
        features: ... x C
        target: shape of the features but for C
        ids: ... x K tokens whose log-probabilities are wanted too
        padding_idx: a target that does not count
    """
    if target is None or head_is_trained:
        logits = head(features)
        log_probs = None if ids is None else log_probs_of(logits, ids)
        if target is None:
            return Prediction(logits, log_probs=log_probs)
        return Prediction(losses=token_losses(logits, target, padding_idx), log_probs=log_probs)
    chosen = target.new_empty(*target.shape, 0) if ids is None else ids
    rows_at_once = max(1, LOGITS_AT_ONCE[features.device.type] // vocabulary)
    losses, log_probs = _BlockedLosses.apply(
        features, head, target, chosen, padding_idx, rows_at_once
    )
    return Prediction(losses=losses, log_probs=None if ids is None else log_probs)


@torch.no_grad()
def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of ... x K ids by logits ... x V; float32."""
    totals = [
        block.logsumexp(dim=-1) for block, _ in row_blocks(logits, ids.new_empty(ids.shape[:-1]))
    ]
    return logits.gather(-1, ids).float() - torch.cat(totals).view(*ids.shape[:-1], 1)


class _BlockedLosses(torch.autograd.Function):
    """Losses and log-probabilities of ids, a block of tokens at a time.

    A token's loss depends on its own features alone: their gradient is computed while the block's
    logits are there, and only scaled in the backward pass. The kept gradient is n x C, not n x V.
    """

    @staticmethod
    def forward(ctx, features, head: Head, target, ids, padding_idx: int, rows_at_once: int):
        ctx.gradient = None
        parts = []
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            blocks = (t.split(rows_at_once) for t in _flat(features, target, ids))
            for x, expected, chosen in zip(*blocks, strict=True):
                x = x.detach().requires_grad_(ctx.needs_input_grad[0])
                parts.append(_block(head, x, expected, chosen, padding_idx))
        losses, log_probs, gradients = zip(*parts, strict=True)
        if ctx.needs_input_grad[0]:
            ctx.gradient = torch.cat(gradients).view_as(features)
        losses, log_probs = torch.cat(losses).view_as(target), torch.cat(log_probs).view_as(ids)
        ctx.mark_non_differentiable(log_probs)
        return losses, log_probs

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        return (ctx.gradient * grad.unsqueeze(-1), *[None] * 5)


def _flat(features: Tensor, target: Tensor, ids: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    return features.flatten(0, -2), target.flatten(), ids.flatten(0, -2)


def _block(
    head: Head, x: Tensor, target: Tensor, ids: Tensor, padding_idx: int
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Of r tokens (x: r x C): losses r, log-probabilities r x K, and the losses' gradient r x C if *x*
    takes one."""
    logits = head(x)  # r x V
    plain = logits.detach()
    if ids.size(-1) == 0 and not x.requires_grad:  # PyTorch's kernel takes half of the time
        return token_losses(plain, target, padding_idx), plain.new_empty(ids.shape).float(), None
    grad_logits = torch.empty_like(plain) if x.requires_grad else None
    losses, totals, start = [], [], 0
    for block, expected in row_blocks(plain, target):
        padding = expected == padding_idx
        place = expected.masked_fill(padding, 0).unsqueeze(-1)
        top = block.amax(dim=-1, keepdim=True)
        probs = (block - top).exp_()  # times their sum
        sums = probs.sum(dim=-1, keepdim=True)
        totals.append(top + sums.log())
        losses.append((totals[-1] - block.gather(-1, place)).squeeze(-1).masked_fill_(padding, 0))
        if grad_logits is not None:
            probs.div_(sums).scatter_add_(-1, place, torch.full_like(sums, -1.0))
            stop = start + len(block)
            grad_logits[start:stop] = probs.masked_fill_(padding.unsqueeze(-1), 0)
            start = stop
    log_probs = plain.gather(-1, ids).float() - torch.cat(totals)
    if grad_logits is not None:
        logits.backward(grad_logits)  # only *x* takes a gradient: the head is frozen
    return torch.cat(losses), log_probs, x.grad
