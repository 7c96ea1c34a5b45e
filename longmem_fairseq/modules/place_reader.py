"""How an attention layer reads places of memory that one search found for all heads.

B streams, T tokens, H heads, K places of a query.
"""

import torch
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.modules.places import places_in_memory
from longmem_fairseq.modules.pointer import VALUE_RATE, PointerValues

MIDDLE = 12.0  # score of a place between a chance likeness and a repetition


class PlaceReader(nn.Module):
    """Attention scores of places, and what they say about the weight of memory.

    Keys of a rotary model say little without their positions, and nothing about whether a place
    continues this one; the search does. To a head, a place's score is what it starts as to a pointer,
    ``sharpness * similarity + match``, plus ``content`` times query times key. The logit of its gate
    rises with the best of these scores, by ``slope``. All values are a head's own, and stored divided
    by VALUE_RATE, as a pointer's.

    Args:
        num_heads: H
    """

    def __init__(self, num_heads: int):
        super().__init__()
        values = PointerValues()
        self.sharpness = _per_head(values.sharpness, num_heads)
        self.match = _per_head(values.match, num_heads)  # H x match classes
        self.content = _per_head(0.0, num_heads)
        self.slope = _per_head(0.3, num_heads)

    def scores(self, found: Retrieved) -> Tensor:
        """Of the places, without their content: B x H x T x K, float32; any number where there is
        none."""
        places = places_in_memory(found)
        similarities = places.similarities.clamp(min=-1).unsqueeze(1)  # B x 1 x T x K
        match = (self.match * VALUE_RATE)[:, places.match_classes].transpose(0, 1)  # B x H x T x K
        return _of_heads(self.sharpness) * similarities + match

    def gate_logit(self, scores: Tensor) -> Tensor:
        """Added to that of the head, B x H x T x 1, of scores B x H x T x K."""
        return _of_heads(self.slope) * (scores.amax(dim=-1, keepdim=True) - MIDDLE)

    def scaled(self, queries: Tensor) -> Tensor:
        """Queries B x H x T x D whose products with keys count as much as ``content`` says."""
        return queries * _of_heads(self.content).to(queries.dtype)


def _per_head(values, num_heads: int) -> nn.Parameter:
    values = torch.as_tensor(values) / VALUE_RATE
    return nn.Parameter(values.expand(num_heads, *values.shape).clone())


def _of_heads(values: Tensor) -> Tensor:
    return (values * VALUE_RATE).view(1, -1, 1, 1)
