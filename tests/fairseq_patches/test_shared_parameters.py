"""fairseq's trainer logs the parameters that are shared, and no others."""

import torch
from torch import nn

from longmem_fairseq.fairseq_patches.shared_parameters import shared_parameters


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.first, self.second = (nn.Linear(3, 3, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(3, elementwise_affine=False)  # weight and bias are None
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.again = self.first
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.ModuleList([nn.Linear(3, 3)])
        self.inner[0].register_parameter("scale", self.scale)


def test_only_what_is_shared_is_found():
    assert shared_parameters(Shared()) == [
        ["scale", "inner.0.scale"],
        ["embedding.weight", "head.weight"],
        ["first.weight", "again.weight"],
    ]
    assert shared_parameters(nn.Linear(2, 2, bias=False)) == []
