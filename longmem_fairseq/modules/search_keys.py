"""Search keys of tokens: hidden states, made comparable.

B streams, T tokens, C embed_dim, E dimensions of a search key, n tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SearchKeys(nn.Module):
    """Hidden states of one backbone layer, centered, reduced to E dimensions, and normalized.

    Hidden states of a language model lie in a narrow cone around their mean, and a few channels are
    far larger than all others: without the mean every state resembles every other. It is computed once
    and then stays: keys of different times have to be comparable. The reduction is a random rotation,
    which preserves inner products on average and in measurements lost less than principal components
    (docs/results/2026-11-27-memory-that-pays.md).

    Args:
        embed_dim, search_dim: C, E
    """

    def __init__(self, embed_dim: int, search_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.full((embed_dim,), torch.nan))
        generator = torch.Generator("cpu").manual_seed(0)
        numbers = torch.randn(embed_dim, search_dim, generator=generator, device="cpu")
        self.register_buffer("rotation", torch.linalg.qr(numbers.double()).Q.float())

    @property
    def is_fitted(self) -> bool:
        """Whether there is a mean."""
        return not bool(self.mean.isnan().any())

    @torch.no_grad()
    def fit(self, states: Tensor) -> None:
        """Takes the mean of hidden states, n x C.

        Raises:
            ValueError: there are none
        """
        if len(states) == 0:
            raise ValueError("search keys cannot be fitted to a text without tokens")
        self.mean.copy_(states.double().mean(dim=0))

    @torch.no_grad()
    def forward(self, states: Tensor) -> Tensor:
        """B x T x C: B x T x E of length 1, float32."""
        with torch.autocast(states.device.type, enabled=False):
            return F.normalize((states.float() - self.mean) @ self.rotation, dim=-1)
