"""Causal attention inside a segment.

B streams, T tokens, P tokens that were read before, H heads, H' key/value heads of G = H / H' heads
each, D head_dim.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from longmem_fairseq.modules.blocked_attention import blocked_attention, blocks_pay
from longmem_fairseq.modules.causal_bias import causal_mask

QUERY_BLOCK = 256  # measured with 1,024 tokens on a CPU: 128 and 512 are slower


def causal_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Optional[Tensor] = None,
    softcap: float = 0.0,
) -> Tensor:
    """Attention of every token to itself and those before it.

    On a CPU queries go in blocks, so that most of the future is not computed: PyTorch's kernels cannot
    skip what a mask hides, and with ``is_causal`` they skip blocks of 512 keys.

    Args:
        queries: B x H x T x D, of the last T tokens
        keys, values: B x H' x (P + T) x D; head h reads the keys of head h // G
        bias: H x T x (P + T) (or 1 instead of H), additive, -inf for what is hidden (default: every
            token sees all up to itself)
        softcap: see :class:`JointAttention`
    """
    if softcap == 0 and blocks_pay(queries, keys):
        return blocked_attention(queries, keys, values, bias)
    num_tokens, num_before = queries.size(2), keys.size(2) - queries.size(2)
    if num_tokens == 1 and softcap == 0:
        return _one_token(queries, keys, values, bias)
    if keys.size(1) != queries.size(1) and (keys.is_cuda or softcap > 0):
        # with a mask, few CUDA kernels know groups; the one that is always there writes out all scores
        group = queries.size(1) // keys.size(1)
        keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (keys, values))
    size = max(1, num_tokens) if keys.is_cuda and bias is None else QUERY_BLOCK
    blocks = []
    for start in range(0, max(1, num_tokens), size):
        stop = min(start + size, num_tokens)
        last = num_before + stop
        block, past = queries[:, :, start:stop], (keys[:, :, :last], values[:, :, :last])
        if bias is not None:
            mask = bias[:, start:stop, :last].unsqueeze(0).to(queries.dtype)
        elif softcap == 0 and stop - start in (1, last):  # the kernel's own
            mask = None
        else:
            mask = causal_mask(size, keys.size(2), queries.dtype, queries.device)
            mask = mask[size - (stop - start) :, -last:]
        blocks.append(_attention(block, *past, mask, softcap))
    if len(blocks) == 1:
        return blocks[0]
    # B x T x H x D in memory, as PyTorch's kernels write it and the output projection reads it
    return torch.cat([block.transpose(1, 2) for block in blocks], dim=1).transpose(1, 2)


def _one_token(queries: Tensor, keys: Tensor, values: Tensor, bias: Optional[Tensor]) -> Tensor:
    """The G heads that share keys as G queries of one head: on a CPU PyTorch reads the keys G times
    otherwise (1.1 ms instead of 0.26 for 544 tokens of SmolLM2 in bfloat16)."""
    num_kv_heads = keys.size(1)
    grouped = queries.view(queries.size(0), num_kv_heads, -1, queries.size(3))  # B x H' x G x D
    if bias is not None:  # H (or 1) x 1 x (P + 1)
        shape = (1, num_kv_heads, grouped.size(2), bias.size(2))
        bias = bias.expand(queries.size(1), -1, -1).reshape(shape).to(queries.dtype)
    attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias)
    return attended.reshape(queries.shape)


def _attention(queries, keys, values, mask: Optional[Tensor], softcap: float) -> Tensor:
    if softcap > 0:
        # written out: PyTorch's attention adds a mask, and can do nothing else to the scores
        scores = queries @ keys.transpose(-2, -1) * queries.size(-1) ** -0.5  # B x H x T x (P + T)
        scores = softcap * torch.tanh(scores / softcap) + mask
        return torch.softmax(scores, dim=-1).to(values.dtype) @ values
    causal = mask is None and queries.size(2) > 1
    grouped = keys.size(1) != queries.size(1)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )
