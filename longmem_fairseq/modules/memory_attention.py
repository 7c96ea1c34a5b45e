"""Attention of every query to the keys and values that it retrieved itself.

B streams, T tokens, D head_dim, H heads, R retrieved chunks of c tokens, K = R * c retrieved tokens,
Q = B * H * T queries, q queries of one block.

Every query has its own K keys, so there is no matrix product to share between queries, and reading
them is most of the work: blocks of queries are gathered, used and dropped, while they are in the
caches. The backward pass gathers them again. The retrieved tensors are constants (the backbone is
frozen, the bank is detached).
"""

from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory import Retrieved

# Numbers gathered at a time, keys and values together. Measured on a CPU: 2M are 6 times faster than
# all at once (128M); a GPU wants large kernels.
GATHER_BUDGET = {"cpu": 2**21, "cuda": 2**28}


class _MemoryAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries: Tensor, bias: Optional[Tensor], retrieved: Retrieved) -> Tensor:
        # the store's tensors are saved so that autograd notices if they are written in between
        ctx.save_for_backward(queries, bias, *retrieved.store.buffers().values())
        ctx.retrieved = retrieved
        output = torch.empty_like(queries)
        for block, keys, values, valid in _blocks(queries, retrieved):
            weights = _weights(queries[block], keys, valid, bias, block)  # q x K
            output[block] = _weighted_sum(weights, values).to(output.dtype)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor):
        queries, bias = ctx.saved_tensors[:2]
        grad_queries = torch.empty_like(queries)
        grad_bias = None if bias is None else torch.empty_like(bias)
        for block, keys, values, valid in _blocks(queries, ctx.retrieved):
            weights = _weights(queries[block], keys, valid, bias, block)  # q x K
            grad_weights = _products(grad[block], values)  # q x K
            mean = (grad_weights * weights).sum(dim=-1, keepdim=True)
            grad_scores = weights * (grad_weights - mean)
            if grad_bias is not None:
                grad_bias[block] = grad_scores
            scale = queries.size(-1) ** -0.5
            grad_queries[block] = _weighted_sum(grad_scores * scale, keys).to(queries.dtype)
        return grad_queries, grad_bias, None


def _blocks(
    queries: Tensor, retrieved: Retrieved
) -> Iterator[Tuple[slice, Tensor, Tensor, Tensor]]:
    """For blocks of the Q queries: which ones, keys and values q x K x D, validity q x K."""
    store = retrieved.store
    rows = retrieved.rows.flatten(0, 2)  # Q x R
    chunks = retrieved.chunks.flatten(0, 2)  # Q x R
    numbers = 2 * rows.size(1) * store.chunk_size * store.head_dim
    size = max(1, GATHER_BUDGET[queries.device.type] // numbers)
    for start in range(0, queries.size(0), size):
        block = slice(start, start + size)
        keys, values = store.gather(rows[block].flatten())
        shape = (-1, rows.size(1) * store.chunk_size, store.head_dim)
        valid = chunks[block].ge(0).repeat_interleave(store.chunk_size, dim=-1)  # q x K
        yield block, keys.view(shape), values.view(shape), valid


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    """q x D times q x K x D: q x K, float32 or what *queries* have beyond."""
    queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
    return (queries.unsqueeze(1) * keys.float()).sum(dim=-1)


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """q x K times q x K x D: q x D, in the type of *weights*."""
    return (weights.unsqueeze(-1) * values.float()).sum(dim=1)


def _weights(
    queries: Tensor, keys: Tensor, valid: Tensor, bias: Optional[Tensor], block: slice
) -> Tensor:
    scores = _products(queries, keys) * queries.size(-1) ** -0.5
    if bias is not None:
        scores = scores + bias[block]
    scores = scores.masked_fill(~valid, float("-inf"))
    # a query that found nothing has only -inf: its softmax is NaN, its weights are 0
    return torch.softmax(scores, dim=-1).nan_to_num(0.0)


def memory_weights(
    queries: Tensor, retrieved: Retrieved, bias: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """The weight that :func:`memory_attention` gives to every chunk, for inspection.

    Args:
        queries: B x H x T x D, unscaled
        retrieved: what they found
        bias: see :func:`memory_attention`

    Returns:
        the share of its attention to memory that every query gives to each chunk (those of a query
        sum to 1, 0 where there was no chunk), and its inner product with the chunk's mean key, by
        which it was found; B x H x T x R each, float32
    """
    shares, scores, size = [], [], retrieved.store.chunk_size
    flat, bias = queries.flatten(0, 2), None if bias is None else bias.flatten(0, 2)  # Q x D, Q x K
    for block, keys, _, valid in _blocks(flat, retrieved):
        weights = _weights(flat[block], keys, valid, bias, block)
        shares.append(weights.unflatten(-1, (-1, size)).sum(dim=-1))
        scores.append(_products(flat[block], keys).unflatten(-1, (-1, size)).mean(dim=-1))
    return tuple(torch.cat(found).view(retrieved.chunks.shape) for found in (shares, scores))


def memory_attention(
    queries: Tensor, retrieved: Retrieved, bias: Optional[Tensor] = None
) -> Tensor:
    """softmax(q k_mem^T D^-0.5 + bias) v_mem; 0 where nothing is valid.

    Args:
        queries: B x H x T x D, unscaled
        retrieved: what they found. Until the backward pass is over the bank must not be written.
        bias: B x H x T x K, float32; it and the queries get gradients, the memory none

    Returns:
        B x H x T x D
    """
    bias = None if bias is None else bias.flatten(0, 2)
    attended = _MemoryAttention.apply(queries.flatten(0, 2), bias, retrieved)
    return attended.view_as(queries)
