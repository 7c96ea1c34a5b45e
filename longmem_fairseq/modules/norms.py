"""The two normalisations of decoder blocks."""

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """In the type of its weight: PyTorch's has none for half-precision input and a float32 weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}
