"""Self-attention over the segment, fused with attention to what was retrieved from memory.

B streams, T tokens, C embed_dim, H heads, D head_dim.
"""

from typing import Callable, NamedTuple, Optional

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
    ) -> AttentionOutput:
        """
        Args:
            x: B x T x C, normalised
            attention_bias: H x T x T, additive, -inf for future keys
            retrieve: maps unscaled queries B x H x T x D to :class:`Retrieved`, or to None where
                nothing is memorised; only for a layer with memory
        """
        queries = self._split_heads(self.q_proj(x))
        keys = self._split_heads(self.k_proj(smear(x) if self.smeared_keys else x))
        values = self._split_heads(self.v_proj(x))
        attended = causal_attention(queries, keys, values, attention_bias.to(queries.dtype))
        if retrieve is not None:
            retrieved = retrieve(queries)
            if retrieved is not None:
                attended = self._fuse(attended, queries, retrieved)
        attended = attended.transpose(1, 2).flatten(2)  # B x T x C
        return AttentionOutput(self.out_proj(attended), keys, values)

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
    """Attention of every token to itself and those before it; B x H x T x D, bias H x T x T.

    PyTorch's kernels cannot skip what a dense mask hides. Queries go in blocks, so that most of the
    future is not computed.
    """
    blocks = []
    for start in range(0, max(1, queries.size(2)), QUERY_BLOCK):
        stop = start + QUERY_BLOCK
        mask = bias[:, start:stop, :stop].unsqueeze(0)
        past = keys[:, :, :stop], values[:, :, :stop]
        blocks.append(
            F.scaled_dot_product_attention(queries[:, :, start:stop], *past, attn_mask=mask)
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def smear(x: Tensor) -> Tensor:
    """The first half of the channels of every token is that of the token before it; B x T x C."""
    half = x.size(-1) // 2
    previous = F.pad(x[:, :, :half], (0, 0, 1, 0))[:, :-1]  # also of no tokens
    return torch.cat([previous, x[:, :, half:]], dim=-1)
