"""The mean hidden state of a converted backbone: taken once, and kept with it for search keys.

T tokens, C embed_dim.
"""

from pydoc_data.topics import topics
from typing import Dict

import torch
from omegaconf import OmegaConf
from torch import Tensor

from longmem_fairseq.models.backbone import BackboneDecoder
from longmem_fairseq.tokenizers import Tokenizer


def add_search_mean(
    cfg, weights: Dict[str, Tensor], tokenizer: Tokenizer, window: int, num_tokens: int, layer: int
) -> None:
    """Adds the mean hidden state of a layer to a backbone's weights, and the layer to its options.

    It is that of the reference of the Python language, prose and code that come with Python.

    Args:
        cfg: configuration of the backbone
        weights: state dict of its decoder
        window: tokens of a segment
        num_tokens: of the text
        layer: number of the hidden state
    """
    with torch.device("meta"):
        decoder = BackboneDecoder(OmegaConf.structured(cfg), tokenizer.dictionary, window)
    decoder.load_state_dict(weights, assign=True)
    decoder.tie_head()
    decoder.freeze()
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = torch.from_numpy(tokenizer.indices(text[: 8 * num_tokens])).long()[:num_tokens]
    states = []
    for segment in ids.split(window - 1):
        tokens = torch.cat([torch.tensor([tokenizer.document_start]), segment])
        # without the first token, an attention sink many times as long as all others
        states.append(decoder.hidden_state(tokens.unsqueeze(0), layer)[0, 1:].float())
    cfg.fitted_search_layer = layer
    weights["search_mean"] = torch.cat(states).double().mean(dim=0).float()
