"""A SideNet with memory beside a converted backbone: it starts there, trains, and generates."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.commands import convert  # noqa: E402
from longmem_fairseq.models.checkpoints import load_backbone  # noqa: E402
from longmem_fairseq.models.memtrm import MemTRMConfig  # noqa: E402
from longmem_fairseq.tasks import LongMemLanguageModelingTask  # noqa: E402
from longmem_fairseq.tasks.longmem_language_modeling import (  # noqa: E402
    LongMemLanguageModelingConfig,
)
from tests.helpers.hf_models import VOCAB, make_model  # noqa: E402
from tests.helpers.small_models import SEGMENT, build_model, read, recomputed, train  # noqa: E402

NAMES = ["gpt2", "bloom", "neox", "falcon-7b", "llama3", "mistral", "qwen3", "gemma2", "gemma3"]
NAMES += [
    "gpt-neo",
    "gptj",
    "smollm3",
    "granite",
    "phi4-mini",
    "olmo2",
    "cohere-plus",
    "stablelm-12b",
]


@pytest.fixture(scope="module", params=NAMES)
def converted(request, tmp_path_factory):
    """Task and path of a converted backbone."""
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param, folder / "hf")
    arguments = ["--model", str(folder / "hf"), "--dest", str(folder / "ours"), "--no-tokenizer"]
    convert.main(arguments)
    cfg = LongMemLanguageModelingConfig(data=str(folder / "ours"), tokens_per_sample=SEGMENT)
    return LongMemLanguageModelingTask(cfg), str(folder / "ours" / "checkpoint.pt")


def document(num_tokens, rows=1):
    return torch.randint(4, VOCAB, (rows, num_tokens), generator=torch.Generator().manual_seed(1))


def test_identity_starts_at_the_backbone(converted):
    """Also where memory is read: with two heads a key/value head, rotary, windows and post-norms."""
    task, path = converted
    backbone, _ = load_backbone(path, task.source_dictionary, SEGMENT)
    model = build_model(task, path, sidenet_init="identity")
    tokens = document(3 * SEGMENT, rows=2)
    expected = torch.cat([backbone(part)[0] for part in tokens.split(SEGMENT, dim=1)], dim=1)
    assert_close(read(model, tokens), expected, rtol=0, atol=1e-4)
    attention = backbone.layers[0].self_attn
    assert model.decoder.memory.num_heads == attention.num_kv_heads
    assert model.decoder.memory.bank.num_tokens == [24, 24]


@torch.no_grad()
@pytest.mark.parametrize("backbone_dtype", ["compute", "int8"])
def test_bfloat16_is_close(converted, backbone_dtype):
    task, path = converted
    tokens, logits = document(3 * SEGMENT, rows=2), []
    for options in ({}, {"compute_dtype": "bfloat16", "backbone_dtype": backbone_dtype}):
        logits.append(read(build_model(task, path, sidenet_init="identity", **options), tokens))
    exact, rounded = (tensor[..., 4:].float().log_softmax(-1).exp() for tensor in logits)
    assert 0 < (exact - rounded).abs().sum(-1).mean() < 0.2


@pytest.mark.parametrize("kind", ["longmem", "memtrm", "distance"])
def test_token_by_token_past_the_window(converted, kind):
    task, path = converted
    options = {"config": MemTRMConfig} if kind == "memtrm" else {}
    if kind == "distance":
        if torch.load(path)["cfg"]["model"]["positions"] != "rotary":
            pytest.skip("only with rotary positions")
        options = {"memory_distance": 20, "memory_heads": "shared"}
    decoder = build_model(task, path, perturb=True, **options).decoder
    tokens, state = document(3 * SEGMENT + 3, rows=2), {}
    with torch.no_grad():
        for stop in range(1, tokens.size(1) + 1):
            logits = decoder(tokens[:, :stop], incremental_state=state)[0][:, -1]
            if stop % 5 == 0 or stop > 3 * SEGMENT:
                expected = recomputed(decoder, tokens[:, :stop])
                assert_close(logits, expected, atol=1e-4, rtol=0)


def test_training_leaves_the_backbone_alone(converted):
    task, path = converted
    model = build_model(task, path, sidenet_init="identity")
    backbone = {n: t.clone() for n, t in model.decoder.backbone.state_dict().items()}
    start = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    _, logs = train(model, task, steps=3)
    assert all(0 < float(log["loss"]) < 1e4 for log in logs)
    for name, tensor in model.decoder.backbone.state_dict().items():
        assert torch.equal(tensor, backbone[name])
    saved, gate = model.state_dict(), "decoder.layers.1.self_attn.memory_bias"
    assert not torch.equal(saved[gate], start[gate])
    assert not any("backbone." in name for name in saved)
