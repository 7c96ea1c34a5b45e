"""Causal attention as matrix products, for processors that multiply bfloat16 fast but without AMX.

PyTorch's attention on a CPU hardly uses their bfloat16 products: with the shapes of SmolLM2-135M this
takes less than half of its time, and the whole model 0.73 of it. Scores are rounded to bfloat16, as in
attention that is written out: a token's loss differs from that of float32 by 0.038 nats (root mean
square), and by 0.037 with PyTorch's attention.

B streams, T tokens, H heads, H' key/value heads, G = H / H', D head_dim, P tokens that were read
before, t tokens of a block, L tokens that the last of them sees.
"""

from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.modules.causal_bias import causal_mask
from longmem_fairseq.utils.processor import has_instructions

BLOCK = 256  # queries; 128 is as fast, 512 slower


def blocks_pay(queries: Tensor, keys: Tensor) -> bool:
    """Whether :func:`blocked_attention` is faster than PyTorch's attention.

    Args:
        queries: B x H x T x D
        keys: of the same type
    """
    if queries.device.type != "cpu" or not queries.dtype == keys.dtype == torch.bfloat16:
        return False
    fast = has_instructions("avx512_bf16") and not has_instructions("amx_bf16")
    return fast and queries.size(2) >= 32


def blocked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Optional[Tensor] = None
) -> Tensor:
    """Arguments and result of :func:`~longmem_fairseq.modules.causal_attention.causal_attention`."""
    with torch.autocast(queries.device.type, enabled=False):
        return _Blocked.apply(queries, keys, values, bias)


class _Blocked(torch.autograd.Function):
    """Keeps no scores for the backward pass, which computes them again block by block."""

    @staticmethod
    def forward(
        ctx, queries: Tensor, keys: Tensor, values: Tensor, bias: Optional[Tensor]
    ) -> Tensor:
        ctx.save_for_backward(queries, keys, values, bias)
        # B x T x H x D in memory, as the output projection reads it
        output = torch.empty_like(queries.transpose(1, 2), memory_format=torch.contiguous_format)
        for row, block, past, mask in _blocks(queries, keys, bias):
            attended = _attend(
                queries[row, :, block], keys[row, :, past], values[row, :, past], mask
            )
            output[row, block] = attended.transpose(0, 1)
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        queries, keys, values, bias = ctx.saved_tensors
        wanted = torch.empty_like(queries)
        # sums of many blocks
        sums = [torch.zeros(tensor.shape, dtype=torch.float32) for tensor in (keys, values)]
        for row, block, past, mask in _blocks(queries, keys, bias):
            slices = queries[row, :, block], keys[row, :, past], values[row, :, past]
            inputs = [tensor.detach().requires_grad_() for tensor in slices]
            with torch.enable_grad(), torch.autocast(queries.device.type, enabled=False):
                attended = _attend(*inputs, mask)
            wanted[row, :, block], *more = torch.autograd.grad(
                attended, inputs, grad[row, :, block]
            )
            for total, part in zip(sums, more, strict=True):
                total[row, :, past] += part
        of_keys, of_values = (total.to(keys.dtype) for total in sums)
        return wanted, of_keys, of_values, None


def _blocks(
    queries: Tensor, keys: Tensor, bias: Optional[Tensor]
) -> Iterator[Tuple[int, slice, slice, Tensor]]:
    """Row, queries, keys and mask of every block: of its own tokens t x t, or with a bias H x t x L."""
    num_tokens, num_before = queries.size(2), keys.size(2) - queries.size(2)
    for start in range(0, num_tokens, BLOCK):
        block = slice(start, min(start + BLOCK, num_tokens))
        past = slice(0, num_before + block.stop)
        if bias is None:
            size = block.stop - start
            mask = causal_mask(BLOCK, BLOCK, queries.dtype, queries.device)[:size, :size]
        else:
            mask = bias[:, block, past].to(queries.dtype)
        for row in range(queries.size(0)):
            yield row, block, past, mask


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Of queries H x t x D to keys and values H' x L x D, H x t x D."""
    num_heads, num_queries, head_dim = queries.shape
    # the G heads that share keys are rows of one product
    grouped = (queries * head_dim**-0.5).reshape(keys.size(0), -1, head_dim)
    scores = torch.bmm(grouped, keys.transpose(1, 2)).view(num_heads, num_queries, -1)
    scores[..., -mask.size(-1) :] += mask
    weights = torch.softmax(scores, dim=-1).view(keys.size(0), -1, keys.size(1))
    return torch.bmm(weights, values).view(queries.shape)
