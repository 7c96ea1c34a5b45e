"""Search keys of a converted backbone: fitted once, and kept with it.

T tokens, C embed_dim.
"""

from pydoc_data.topics import topics
from typing import Dict

import torch
from omegaconf import OmegaConf
from torch import Tensor

from longmem_fairseq.models.backbone import MOST_SEARCH_DIM, BackboneDecoder
from longmem_fairseq.models.memory_config import default_search_layer
from longmem_fairseq.modules import SearchKeys
from longmem_fairseq.tokenizers import Tokenizer


def fit_search_keys(
    cfg, weights: Dict[str, Tensor], tokenizer: Tokenizer, window: int, num_tokens: int
) -> None:
    """Adds search keys to a backbone's weights, and their layer to its configuration.

    They are fitted to the reference of the Python language, prose and code that come with Python.

    Args:
        cfg: configuration of the backbone
        weights: state dict of its decoder
        window: tokens of a segment
        num_tokens: of the text

    Raises:
        ValueError: see :meth:`SearchKeys.fit`
    """
    with torch.device("meta"):
        decoder = BackboneDecoder(OmegaConf.structured(cfg), tokenizer.dictionary, window)
    decoder.load_state_dict(weights, assign=True)
    decoder.tie_head()
    decoder.freeze()
    layer = default_search_layer(cfg.num_layers)
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = torch.from_numpy(tokenizer.indices(text[: 8 * num_tokens])).long()[:num_tokens]
    states = []
    for segment in ids.split(window - 1):
        tokens = torch.cat([torch.tensor([tokenizer.document_start]), segment])
        # without the first, an attention sink, which is not searched either
        states.append(decoder.hidden_state(tokens.unsqueeze(0), layer)[0, 1:].float())
    keys = SearchKeys(cfg.embed_dim, min(cfg.embed_dim, MOST_SEARCH_DIM))
    keys.fit(torch.cat(states))
    cfg.fitted_search_layer = layer
    weights.update({f"search_keys.{name}": t for name, t in keys.state_dict().items()})
