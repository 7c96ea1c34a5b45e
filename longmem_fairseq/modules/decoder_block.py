"""The transformer block of backbone and SideNet.

B streams, T tokens, C embed_dim, H heads.
"""

from functools import partial
from typing import Callable, NamedTuple, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.modules.joint_attention import JointAttention, LocalCache

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's and the released backbone's
    "relu": F.relu,
}


class BlockOutput(NamedTuple):
    """Hidden states B x T x C; the attention's keys and values B x H x T x D."""

    x: Tensor
    keys: Tensor
    values: Tensor


class DecoderBlock(nn.Module):
    """Parallel block (GPT-J, PaLM): ``x + Attn(LN(x)) + MLP(LN(x))``, one LayerNorm.

    Args:
        embed_dim, num_heads: C, H; the MLP has 4C units
        activation: a key of ``ACTIVATIONS``
        layer_norm_eps: 1e-6 in the released backbone, 1e-5 in the released SideNet
        dropout: on both branches
        attention: further arguments of :class:`JointAttention`
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        activation: str = "gelu_tanh",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        **attention,
    ):
        super().__init__()
        self.layer_norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.self_attn = JointAttention(embed_dim, num_heads, **attention)
        self.fc1 = nn.Linear(embed_dim, 4 * embed_dim)
        self.fc2 = nn.Linear(4 * embed_dim, embed_dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(
        self,
        x: Tensor,
        attention_bias: Tensor,
        retrieve: Optional[Callable[[Tensor], Optional[Retrieved]]] = None,
        cross_network_residual: Optional[Tensor] = None,
        cache: Optional[LocalCache] = None,
    ) -> BlockOutput:
        """
        Args:
            x: B x T x C
            attention_bias: H x T x (P + T), with P tokens in *cache*
            retrieve, cache: see :meth:`JointAttention.forward`
            cross_network_residual: B x T x C, what the backbone added to its hidden states over the
                layers that this SideNet layer stands beside
        """
        normed = self.layer_norm(x)
        attention = self.self_attn(normed, attention_bias, retrieve, cache)
        mlp = self.fc2(self.activation(self.fc1(normed)))
        x = x + self._dropout(attention.output) + self._dropout(mlp)
        if cross_network_residual is not None:
            x = x + cross_network_residual
        return BlockOutput(x, attention.keys, attention.values)

    def keys_values(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The attention's keys and values alone, B x H x T x D."""
        return self.self_attn.keys_values(self.layer_norm(x))

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
