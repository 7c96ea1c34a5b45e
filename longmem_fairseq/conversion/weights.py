"""The tensors of a checkpoint as those of our decoder."""

import logging
import re
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.conversion.families import Family, join_heads
from longmem_fairseq.conversion.source import Checkpoint, Weight
from longmem_fairseq.models.backbone import LongMemBackboneConfig
from longmem_fairseq.models.decoder_config import key_value_sizes
from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds
from longmem_fairseq.utils.refusal import refused

EMBEDDING, HEAD, HEAD_BIAS = (
    "embed_tokens.weight",
    "output_projection.weight",
    "output_projection.bias",
)
# The head's bias of fairseq's special symbols that the model does not have: they are never predicted.
ABSENT_BIAS = -1e4

logger = logging.getLogger(__name__)


class Names(Dict[str, str]):
    """By our name of a tensor, the one that the checkpoint gives it."""

    def __init__(self, family: Family):
        super().__init__()
        self.family = family

    def __missing__(self, ours: str) -> str:
        """Of one that the checkpoint lacks: as in another layer, or else as the family calls it."""
        module, _, parameter = ours.rpartition(".")
        block = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
        if block:
            for other, theirs in self.items():
                if re.fullmatch(rf"layers\.\d+\.{re.escape(f'{block[2]}.{parameter}')}", other):
                    return re.sub(r"\.\d+\.", f".{block[1]}.", theirs, count=1)
        for key, name in self.family.modules.items():
            if name == (block[2] if block else module):
                where = f"{self.family.blocks}.{block[1]}." if block else ""
                return f"{key.replace('*.', where)}.{parameter}"
        return ours


def convert_weights(
    checkpoint: Checkpoint,
    family: Family,
    config: Dict[str, Any],
    cfg: LongMemBackboneConfig,
    ids: CheckpointIds,
    dtype: Optional[torch.dtype],
) -> Tuple[Dict[str, Tensor], Names]:
    """The state dict of our decoder, with vectors (norms, biases) in float32 in any case, and the
    checkpoint's names of the tensors.

    Whether the head is the embedding, the weights decide: *cfg* is changed where it says otherwise.

    Raises:
        ValueError: a tensor does not fit config.json, is unknown, or has numbers that are not finite
    """
    weights: Dict[str, Tensor] = {}
    names = Names(family)
    for weight in checkpoint.weights(config):
        ours = family.our_name(weight.theirs)
        if not ours:
            continue
        _check_finite(weight, weight.tensor, "the file is damaged")
        shape = tuple(weight.tensor.shape)
        with refused(f"{weight.path}: {weight.name} of shape {shape} does not fit config.json"):
            changed = family.change(ours, weight.tensor, config)
            parts = dict(separated(ours, changed, cfg))
            for name in {EMBEDDING, HEAD, HEAD_BIAS} & parts.keys():
                parts[name] = dictionary_rows(parts[name], ids)
        for name, part in parts.items():
            stored = torch.float32 if part.dim() < 2 else dtype or part.dtype
            # a copy: a view is saved with all of the tensor that it is a view of
            weights[name] = part.to(stored, copy=True).contiguous()
            names[name] = weight.name
            _check_finite(
                weight,
                weights[name],
                f"{stored} has no larger ones, bfloat16 and float32 have",
            )
    join_heads(weights)
    _settle_head(weights, cfg, names)
    if len(ids.absent) > 0:
        bias = weights.setdefault(HEAD_BIAS, torch.zeros(len(ids.to_checkpoint)))
        bias[torch.from_numpy(ids.absent)] = ABSENT_BIAS
    return weights, names


def _check_finite(weight: Weight, tensor: Tensor, reason: str) -> None:
    wrong = int((~torch.isfinite(tensor)).sum())
    if wrong:
        raise ValueError(
            f"{weight.path}: {weight.name} has {wrong:,} numbers that are infinite or NaN: {reason}"
        )


def _settle_head(weights: Dict[str, Tensor], cfg: LongMemBackboneConfig, names: Names) -> None:
    if not cfg.tied_head:
        return
    if EMBEDDING not in weights and HEAD in weights:
        weights[EMBEDDING] = weights[HEAD]
    elif HEAD in weights and not torch.equal(weights[HEAD], weights[EMBEDDING]):
        logger.warning(
            "config.json says that the head is the embedding, but %s differs from %s: it is used",
            names[HEAD],
            names[EMBEDDING],
        )
        cfg.tied_head = False
    elif EMBEDDING in weights:
        weights[HEAD] = weights[EMBEDDING]


def separated(
    name: str, tensor: Tensor, cfg: LongMemBackboneConfig
) -> Iterator[Tuple[str, Tensor]]:
    """The projections that *name* holds in one, apart; see :class:`Family`."""
    if ".gate_up." in name:
        for projection, part in zip(("gate_proj", "fc1"), tensor.chunk(2), strict=True):
            yield name.replace("gate_up", projection), part
        return
    if ".qkv." not in name:
        yield name, tensor
        return
    heads = cfg.num_attention_heads
    kv_heads, head_dim = key_value_sizes(cfg)
    rows = (kv_heads, heads // kv_heads + 2, head_dim)
    if tensor.size(0) != rows[0] * rows[1] * rows[2]:
        raise ValueError(f"{name} has {tensor.size(0)} rows, expected {' x '.join(map(str, rows))}")
    grouped = tensor.unflatten(0, rows)
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    for projection, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
        yield name.replace("qkv", projection), part.flatten(0, 2)


def dictionary_rows(tensor: Tensor, ids: CheckpointIds) -> Tensor:
    """The rows of an embedding in the order of the dictionary; zeros for symbols the model lacks."""
    if tensor.size(0) != ids.num_ids:
        raise ValueError(
            f"it has {tensor.size(0)} rows, and config.json a vocab_size of {ids.num_ids}"
        )
    rows = tensor.new_zeros(len(ids.to_checkpoint), *tensor.shape[1:])
    rows[torch.from_numpy(ids.to_dictionary).long()] = tensor
    return rows
