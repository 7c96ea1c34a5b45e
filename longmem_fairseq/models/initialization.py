"""Weights that a backbone starts from."""

import torch
from torch import nn


@torch.no_grad()
def initialize(decoder: nn.Module) -> None:
    """Initializes the weights of a :class:`BackboneDecoder` as GPT-2 does, and so that it learns to
    copy (docs/architecture.md, "Backbones that copy")."""
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 2:
            # smaller for the matrices that write to the residual stream
            writes = name.endswith(("out_proj.weight", "fc2.weight"))
            depth = (2 * len(decoder.layers)) ** -0.5 if writes else 1.0
            nn.init.normal_(parameter, std=0.02 * depth)
        elif name.endswith(("fc1.bias", "fc2.bias", "_proj.bias")):
            nn.init.zeros_(parameter)
    # the first prediction is the frequency of every token: learning it by gradient takes a hundred
    # updates that undo the matching of queries and keys below
    if decoder.output_projection.bias is not None:
        counts = torch.tensor(decoder.dictionary.count, dtype=torch.float)
        frequencies = (counts / counts.sum()).clamp(min=1e-9)
        decoder.output_projection.bias.copy_(frequencies.log())
    # with the above alone, which token it is drowns in what the layers add: a small model then needs
    # several times more tokens before it copies (as a head it has to stay small)
    if not decoder.cfg.tied_head:
        nn.init.normal_(decoder.embed_tokens.weight, std=0.25)
    for block in decoder.layers:
        if block.self_attn.smeared_keys:
            # queries and keys start in one space: a token looks for places whose predecessor resembles
            # it, the matching step of copying, and strongly enough to be heard over the whole segment
            queries, keys = block.self_attn.q_proj.weight, block.self_attn.k_proj.weight
            nn.init.normal_(queries, std=2 * queries.size(1) ** -0.5)
            keys.copy_(queries)
    decoder.embed_tokens.weight[decoder.padding_idx] = 0
