"""Training by the fast path of every operation against training by plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from longmem_fairseq.models import backbone
from longmem_fairseq.modules import (
    DecoderBlock,
    Prediction,
    Rotary,
    causal_attention,
    joint_attention,
)
from longmem_fairseq.modules.norms import RMSNorm
from tests.helpers.small_models import build_model, save_backbone, train

LLAMA = {
    "norm": "rms_norm",
    "positions": "rotary",
    "activation_fn": "silu",
    "block": "sequential",
    "gated_mlp": True,
    "num_kv_heads": 2,
    "tied_head": True,
    "no_head_bias": True,
}


def plain_attention(queries, keys, values, bias=None, softcap=0.0):
    group = queries.size(1) // keys.size(1)
    keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (keys, values))
    scores = queries @ keys.transpose(-2, -1) * queries.size(-1) ** -0.5
    if bias is None:
        bias = torch.full(scores.shape[-2:], -torch.inf).triu(keys.size(2) - queries.size(2) + 1)
    return (scores + bias).softmax(dim=-1) @ values


def plain_prediction(
    head, vocabulary, features, target, ids=None, padding_idx=-1, head_is_trained=False
):
    logits = head(features)
    losses = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=padding_idx, reduction="none"
    )
    return Prediction(losses=losses.view_as(target))


def plain_rotary(rotary, x, positions):
    angles = torch.tensor(list(positions)).view(-1, 1) * rotary.frequencies()
    angles = torch.cat([angles, angles], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def plain_mlp(block, x):
    return block.fc2(F.silu(block.gate_proj(x)) * block.fc1(x))


def plain_norm(norm, x):
    return x * (x.square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt() * norm.weight


@pytest.mark.parametrize("blocked", [False, True])
def test_a_hundred_updates_have_the_losses_of_the_plain_path(blocked, task, tmp_path, monkeypatch):
    """Attention in blocks, where it does not pay here, too."""
    path = save_backbone(tmp_path / "llama.pt", task.source_dictionary, 1, **LLAMA)
    monkeypatch.setattr(causal_attention, "blocks_pay", lambda queries, keys: blocked)
    fast = losses(task, path)
    monkeypatch.setattr(joint_attention, "causal_attention", plain_attention)
    monkeypatch.setattr(backbone, "predict", plain_prediction)
    monkeypatch.setattr(Rotary, "__call__", plain_rotary)
    monkeypatch.setattr(DecoderBlock, "_mlp", plain_mlp)
    monkeypatch.setattr(RMSNorm, "forward", plain_norm)
    assert_close(fast, losses(task, path), rtol=1e-4, atol=0)


def losses(task, path):
    """Of a hundred updates of a new SideNet."""
    _, logs = train(build_model(task, path, activation_fn="backbone"), task, steps=100)
    return torch.tensor([float(log["loss"]) for log in logs])
