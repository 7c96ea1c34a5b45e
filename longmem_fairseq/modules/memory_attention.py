"""Attention of every query to the keys and values that it retrieved itself.

B streams, T tokens, D head_dim, H heads, K retrieved tokens.

Every query has its own K keys, so there is no matrix product to share between queries: batched
products of one row each are several times slower on a CPU than multiply-and-sum. The retrieved
tensors are constants (the backbone is frozen, the bank is detached), which leaves one gradient.
"""

import torch
from torch import Tensor


class _MemoryAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        weights = _weights(queries, keys, valid)  # B x H x T x K
        ctx.save_for_backward(queries, keys, values, valid)
        return (weights.unsqueeze(-1) * values).sum(dim=-2)  # B x H x T x D

    @staticmethod
    def backward(ctx, grad: Tensor):
        queries, keys, values, valid = ctx.saved_tensors
        weights = _weights(queries, keys, valid)
        grad_weights = (grad.unsqueeze(-2) * values).sum(dim=-1)  # B x H x T x K
        mean = (grad_weights * weights).sum(dim=-1, keepdim=True)
        grad_scores = weights * (grad_weights - mean) * queries.size(-1) ** -0.5
        return (grad_scores.unsqueeze(-1) * keys).sum(dim=-2), None, None, None


def _weights(queries: Tensor, keys: Tensor, valid: Tensor) -> Tensor:
    scores = (queries.unsqueeze(-2) * keys).sum(dim=-1) * queries.size(-1) ** -0.5
    scores = scores.masked_fill(~valid, float("-inf"))
    # a query that found nothing has only -inf: its softmax is NaN, its weights are 0
    return torch.softmax(scores.float(), dim=-1).nan_to_num(0.0).to(queries.dtype)


def memory_attention(queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """softmax(q k_mem^T D^-0.5) v_mem; 0 where nothing is valid.

    Args:
        queries: B x H x T x D, unscaled; the only argument that gets a gradient
        keys, values: B x H x T x K x D
        valid: B x H x T x K, bool

    Returns:
        B x H x T x D
    """
    return _MemoryAttention.apply(queries, keys.to(queries.dtype), values.to(queries.dtype), valid)
