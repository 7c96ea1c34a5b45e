"""Normalization of hidden states, and of queries and keys.

B streams, H heads, T tokens, D head_dim.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """In the type of its weight: PyTorch's has none for half-precision input and a float32 weight.

    Without a gradient in fewer passes than PyTorch's own on a CPU, in half of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """... x C in and out."""
        x = x.to(self.weight.dtype)
        trained = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if trained or x.device.type != "cpu":
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.size(-1)).add_(self.eps).rsqrt_()
        return (x * scale).mul_(self.weight)


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
