"""Self-attention over the segment, fused with attention to what was retrieved from memory.

B streams, T tokens, C embed_dim, H heads, D head_dim, P tokens that were read before.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.modules.memory_attention import memory_attention

QUERY_BLOCK = 256  # measured with 1,024 tokens on a CPU: 128 and 512 are slower


class AttentionOutput(NamedTuple):
    """Output B x T x C; keys and values B x H x T x D, free of any position term."""

    output: Tensor
    keys: Tensor
    values: Tensor


class LocalCache:
    """What an attention layer keeps of the tokens of its window, read one after another.

    Args:
        window: the most tokens that there may be
    """

    def __init__(self, window: int):
        self.window, self.num_tokens = window, 0
        self.keys: Optional[Tensor] = None  # B x H x window x D
        self.values: Optional[Tensor] = None
        self.last: Optional[Tensor] = None  # B x 1 x C, the layer's input at the last token

    def extend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tuple[Tensor, Tensor]:
        """Adds T tokens (x: B x T x C) and returns all keys and values, B x H x (P + T) x D."""
        if self.keys is None:
            shape = (*keys.shape[:2], self.window, keys.size(3))
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        start, self.num_tokens = self.num_tokens, self.num_tokens + keys.size(2)
        self.keys[:, :, start : self.num_tokens] = keys
        self.values[:, :, start : self.num_tokens] = values
        self.last = x[:, -1:]
        return self.keys[:, :, : self.num_tokens], self.values[:, :, : self.num_tokens]

    def reorder(self, order: Tensor) -> None:
        """Row i goes on as row ``order[i]``."""
        if self.keys is not None:
            self.keys, self.values = self.keys[order], self.values[order]
            self.last = self.last[order]


class JointAttention(nn.Module):
    """Causal ALiBi attention; in the memory layer fused with memory (section 3.3 of the paper).

    ``A = (1 - g) A_local + g A_mem`` with two separate softmaxes and ``g = sigmoid(memory_bias)``,
    one scalar a head; where nothing has been memorised, ``A = A_local``.

    Args:
        embed_dim, num_heads: C, H
        has_memory: this layer reads memory, that is, it has a gate
        smeared_keys: half of the channels that feed ``k_proj`` come from the previous token, so that
            a key says what came before it (Olsson et al. 2022, "In-context Learning and Induction
            Heads", section on smeared keys)
        gate_lr_multiplier: the gate moves this many times faster than the learning rate says
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        has_memory: bool = False,
        smeared_keys: bool = False,
        gate_lr_multiplier: float = 1.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.smeared_keys = smeared_keys
        self.gate_lr_multiplier = gate_lr_multiplier
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.memory_bias = nn.Parameter(torch.zeros(num_heads)) if has_memory else None
        if not has_memory:
            self.register_load_state_dict_pre_hook(_drop_gate)

    @property
    def gate(self) -> Tensor:
        """Weight of memory, H numbers in (0, 1)."""
        return torch.sigmoid(self.memory_bias * self.gate_lr_multiplier)

    def forward(
        self,
        x: Tensor,
        attention_bias: Tensor,
        retrieve: Optional[Callable[[Tensor], Optional[Retrieved]]] = None,
        cache: Optional[LocalCache] = None,
    ) -> AttentionOutput:
        """
        Args:
            x: B x T x C, normalised
            attention_bias: H x T x (P + T), additive, -inf for future keys
            retrieve: maps unscaled queries B x H x T x D to :class:`Retrieved`, or to None where
                nothing is memorised; only for a layer with memory
            cache: the P tokens before, to which these are added (default: there are none)
        """
        queries = self._split_heads(self.q_proj(x))
        keys, values = self.keys_values(x, cache)
        past = (keys, values) if cache is None else cache.extend(x, keys, values)
        attended = causal_attention(queries, *past, attention_bias.to(queries.dtype))
        if retrieve is not None:
            retrieved = retrieve(queries)
            if retrieved is not None:
                attended = self._fuse(attended, queries, retrieved)
        attended = attended.transpose(1, 2).flatten(2)  # B x T x C
        return AttentionOutput(self.out_proj(attended), keys, values)

    def keys_values(self, x: Tensor, cache: Optional[LocalCache] = None) -> Tuple[Tensor, Tensor]:
        """Keys and values of B x T x C, each B x H x T x D; *cache* as in :meth:`forward`."""
        seen = smear(x, None if cache is None else cache.last) if self.smeared_keys else x
        return self._split_heads(self.k_proj(seen)), self._split_heads(self.v_proj(x))

    def _fuse(self, local: Tensor, queries: Tensor, retrieved: Retrieved) -> Tensor:
        found = memory_attention(queries, retrieved)
        gate = self.gate.to(local.dtype).view(1, -1, 1, 1)
        anything = retrieved.chunks.ge(0).any(dim=-1, keepdim=True)  # B x H x T x 1
        return torch.where(anything, (1 - gate) * local + gate * found, local)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # B x H x T x D


def _drop_gate(module: JointAttention, state_dict, prefix: str, *unused) -> None:
    # a checkpoint trained with memory may be evaluated without: its gate has nothing to weigh
    state_dict.pop(prefix + "memory_bias", None)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of every token to itself and those before it.

    PyTorch's kernels cannot skip what a dense mask hides. Queries go in blocks, so that most of the
    future is not computed.

    Args:
        queries: B x H x T x D, of the last T tokens
        keys, values: B x H x (P + T) x D
        bias: H x T x (P + T), additive
    """
    blocks, num_before = [], keys.size(2) - queries.size(2)
    for start in range(0, max(1, queries.size(2)), QUERY_BLOCK):
        stop = start + QUERY_BLOCK
        last = num_before + stop
        mask = bias[:, start:stop, :last].unsqueeze(0)
        past = keys[:, :, :last], values[:, :, :last]
        blocks.append(
            F.scaled_dot_product_attention(queries[:, :, start:stop], *past, attn_mask=mask)
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def smear(x: Tensor, last: Optional[Tensor] = None) -> Tensor:
    """The first half of the channels of every token is that of the token before it.

    Args:
        x: B x T x C
        last: B x 1 x C, the token before the first (default: zeros)
    """
    half = x.size(-1) // 2
    before = torch.zeros_like(x[:, :1]) if last is None else last
    previous = torch.cat([before, x], dim=1)[:, : x.size(1), :half]  # also of no tokens
    return torch.cat([previous, x[:, :, half:]], dim=-1)
