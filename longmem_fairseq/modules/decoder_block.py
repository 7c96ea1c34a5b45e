"""The transformer block of backbone and SideNet.

B streams, T tokens, C embed_dim, H heads, H' key/value heads.
"""

from functools import partial
from typing import Callable, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.modules.joint_attention import JointAttention, LocalCache
from longmem_fairseq.modules.norms import NORMS

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's and the released backbone's
    "relu": F.relu,
    "silu": F.silu,
}
BLOCKS = ("parallel", "parallel_two_norms", "sequential")


class BlockOutput(NamedTuple):
    """Hidden states B x T x C; the attention's keys and values B x H' x T x D."""

    x: Tensor
    keys: Tensor
    values: Tensor


class DecoderBlock(nn.Module):
    """Attention and MLP around the residual stream x, in one of three orders (*block*).

    - ``parallel`` (GPT-J, PaLM): ``x + Attn(LN(x)) + MLP(LN(x))``, one norm
    - ``parallel_two_norms`` (GPT-NeoX): the MLP has a norm of its own
    - ``sequential`` (GPT-2, LLaMA): ``y = x + Attn(LN(x))``, then ``y + MLP(LN'(y))``

    Args:
        embed_dim, num_heads: C, H
        activation: a key of ``ACTIVATIONS``
        layer_norm_eps: 1e-6 in the released backbone, 1e-5 in the released SideNet
        dropout: on both branches
        block: see above
        norm: a key of ``NORMS``
        ffn_dim: units of the MLP (default: 4C)
        gated_mlp: ``fc2(activation(gate_proj(x)) * fc1(x))`` instead of ``fc2(activation(fc1(x)))``
        mlp_bias: whether its matrices have one
        pre_norms: the input of both branches is normalized
        post_norms: both branches are normalized (once more) before they are added (Gemma 2)
        residual_scale: factor of both branches where they are added (Granite)
        attention: further arguments of :class:`JointAttention`
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        activation: str = "gelu_tanh",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        block: str = "parallel",
        norm: str = "layer_norm",
        ffn_dim: Optional[int] = None,
        gated_mlp: bool = False,
        mlp_bias: bool = True,
        pre_norms: bool = True,
        post_norms: bool = False,
        residual_scale: float = 1.0,
        **attention,
    ):
        super().__init__()
        new_norm = partial(NORMS[norm], embed_dim, eps=layer_norm_eps)
        pre_norm = new_norm if pre_norms else nn.Identity
        ffn_dim = ffn_dim or 4 * embed_dim
        self.block, self.post_norms, self.dropout = block, post_norms, dropout
        self.residual_scale = residual_scale
        self.layer_norm = pre_norm()
        self.self_attn = JointAttention(embed_dim, num_heads, **attention)
        self.mlp_norm = nn.Identity() if block == "parallel" else pre_norm()
        self.gate_proj = nn.Linear(embed_dim, ffn_dim, bias=mlp_bias) if gated_mlp else None
        self.fc1 = nn.Linear(embed_dim, ffn_dim, bias=mlp_bias)
        self.fc2 = nn.Linear(ffn_dim, embed_dim, bias=mlp_bias)
        self.activation = ACTIVATIONS[activation]
        self.attention_post_norm = new_norm() if post_norms else nn.Identity()
        self.mlp_post_norm = new_norm() if post_norms else nn.Identity()

    def forward(
        self,
        x: Tensor,
        attention_bias: Optional[Tensor] = None,
        retrieve: Optional[Callable[[Tensor], Optional[Retrieved]]] = None,
        cross_network_residual: Optional[Tensor] = None,
        cache: Optional[LocalCache] = None,
    ) -> BlockOutput:
        """
        Args:
            x: B x T x C
            attention_bias, retrieve, cache: see :meth:`JointAttention.forward`
            cross_network_residual: B x T x C, what the backbone added to its hidden states over the
                layers that this SideNet layer stands beside
        """
        normed = _computed(self.layer_norm(x))
        attention = self.self_attn(normed, attention_bias, retrieve, cache)
        attended = x + self._branch(self.attention_post_norm(attention.output))
        if self.block == "parallel":
            mlp_input = normed
        else:
            mlp_input = _computed(self.mlp_norm(attended if self.block == "sequential" else x))
        x = attended + self._branch(self.mlp_post_norm(self._mlp(mlp_input)))
        if cross_network_residual is not None:
            x = x + cross_network_residual
        return BlockOutput(x, attention.keys, attention.values)

    def keys_values(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The attention's keys and values alone, B x H' x T x D."""
        return self.self_attn.keys_values(_computed(self.layer_norm(x)))

    @torch.no_grad()
    def silence(self) -> None:
        """Makes both branches add nothing, so that training starts from the identity."""
        if self.post_norms:
            # the norm of a branch near zero would blow it up again: its own weights are what counts
            last = (*self.attention_post_norm.parameters(), *self.mlp_post_norm.parameters())
        else:
            last = (*self.self_attn.out_proj.parameters(), *self.fc2.parameters())
        for parameter in last:
            parameter.zero_()

    def _mlp(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.fc2(self.activation(self.fc1(x)))
        gate, units = self.activation(self.gate_proj(x)), self.fc1(x)
        in_place = not (gate.requires_grad or units.requires_grad)
        return self.fc2(gate.mul_(units) if in_place else gate * units)

    def _branch(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        return x if self.residual_scale == 1 else x * self.residual_scale


def _computed(x: Tensor) -> Tensor:
    """*x* in the type of the matrix products: once, where autocast would cast it for every one."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
