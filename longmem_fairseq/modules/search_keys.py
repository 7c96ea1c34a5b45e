"""What a token is found by: its hidden state, made comparable.

B streams, T tokens, C embed_dim, E dimensions of a search key, n tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SearchKeys(nn.Module):
    """Hidden states of one backbone layer, centered, projected to E dimensions, and normalized.

    Hidden states of a language model lie in a narrow cone around their mean, and a few channels are
    far larger than all others: without the mean every state resembles every other. Mean and projection
    (the principal components) are computed once and then stay: keys of different times have to be
    comparable.

    Args:
        embed_dim, search_dim: C, E
    """

    def __init__(self, embed_dim: int, search_dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("projection", torch.zeros(embed_dim, search_dim))

    def take_from(self, other: "SearchKeys") -> None:
        """Becomes the first E dimensions of another one.

        Raises:
            ValueError: it has fewer
        """
        search_dim, most = self.projection.size(1), other.projection.size(1)
        if search_dim > most:
            raise ValueError(
                f"--search-dim ({search_dim}) must be at most {most}, which were kept with the backbone"
            )
        self.mean.copy_(other.mean)
        self.projection.copy_(other.projection[:, :search_dim])

    @property
    def is_fitted(self) -> bool:
        return bool(self.projection.any())

    @torch.no_grad()
    def fit(self, states: Tensor) -> None:
        """Takes mean and principal components of hidden states, n x C.

        Raises:
            ValueError: there are fewer of them than dimensions of a key
        """
        search_dim = self.projection.size(1)
        if len(states) <= search_dim:
            raise ValueError(
                f"--search-dim ({search_dim}) needs more than so many tokens of text to be fitted to, "
                f"not {len(states)}"
            )
        states = states.double()
        mean = states.mean(dim=0)
        # every state counts alike, as it will when it is normalized
        centered = F.normalize(states - mean, dim=-1)
        _, components = torch.linalg.eigh(centered.T @ centered)  # ascending
        components = components.flip(1)[:, :search_dim]
        # the sign of a component is arbitrary: the same on every machine
        largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
        self.mean.copy_(mean)
        self.projection.copy_(components * largest.sign())

    @torch.no_grad()
    def forward(self, states: Tensor) -> Tensor:
        """B x T x C: B x T x E of length 1, float32."""
        with torch.autocast(states.device.type, enabled=False):
            return F.normalize((states.float() - self.mean) @ self.projection, dim=-1)
