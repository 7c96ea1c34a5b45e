"""Models with ``--memory-search hidden`` for tests; the fixtures ``make`` and ``model`` of
tests/models/conftest.py build them."""

import torch

from tests.helpers.small_models import SEGMENT, document

HIDDEN = {"memory_search": "hidden", "search_dim": 16, "chunk_size": 1}
KINDS = {
    "SideNet and trained pointer": {"pointer": "trained"},
    "SideNet and constant pointer": {"pointer": "constant"},
    "SideNet": {},
    "SideNet and chunks": {"pointer": "trained", "chunk_size": 2},
    "trained pointer": {"pointer": "trained", "no_sidenet": True},
    "constant pointer": {"pointer": "constant", "no_sidenet": True},
}


def fitted(build, **options):
    """A model with fitted search keys, as if it had been trained."""
    model = build(perturb=True, **{**HIDDEN, **options})
    if model.decoder.search_keys is not None:
        model.decoder.fit_search_keys([document(90 + i, SEGMENT) for i in range(9)])
    if options.get("pointer") == "trained" and model.decoder.pointer is not None:
        model.decoder.pointer.bias.data += 0.4  # similarities are small here
    return model


@torch.no_grad()
def read(model, tokens, fresh=True):
    """Log-probabilities of all tokens, read segment by segment."""
    parts = []
    for start in range(0, tokens.size(1), SEGMENT):
        new_document = torch.full((len(tokens),), fresh and start == 0)
        output = model(tokens[:, start : start + SEGMENT], new_document=new_document)
        parts.append(model.get_normalized_probs(output, log_probs=True))
    return torch.cat(parts, dim=1)
