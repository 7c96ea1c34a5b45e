"""Normalization of hidden states, and of queries and keys.

B streams, H heads, T tokens, D head_dim.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """In the type of its weight: PyTorch's has none for half-precision input and a float32 weight."""

    def forward(self, x: Tensor) -> Tensor:
        """... x C in and out."""
        return super().forward(x.to(self.weight.dtype))


class AllHeadsRMSNorm(RMSNorm):
    """Over the channels of all heads at once (OLMo 2)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float):
        super().__init__(num_heads * head_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """B x H x T x D in and out."""
        tokens = x.transpose(1, 2)  # B x T x H x D
        return super().forward(tokens.flatten(2)).view(tokens.shape).transpose(1, 2)


class HeadsLayerNorm(nn.LayerNorm):
    """Over the channels of each head, with a weight per head and channel and without a bias (Cohere,
    StableLM 2)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float):
        super().__init__(num_heads * head_dim, eps=eps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B x H x T x D in and out."""
        normed = F.layer_norm(x.to(self.weight.dtype), x.shape[-1:], eps=self.eps)
        return normed * self.weight.view(x.size(1), 1, -1)


def _head_rms_norm(num_heads: int, head_dim: int, eps: float) -> RMSNorm:
    return RMSNorm(head_dim, eps=eps)


NORMS = {  # of C channels and an eps
    "layer_norm": nn.LayerNorm,
    "layer_norm_no_bias": partial(nn.LayerNorm, bias=False),
    "rms_norm": RMSNorm,
}
QK_NORMS = {  # of B x H x T x D; made of H, D and an eps
    "head_rms_norm": _head_rms_norm,
    "all_heads_rms_norm": AllHeadsRMSNorm,
    "heads_layer_norm": HeadsLayerNorm,
}
