"""Training steps: what they change, what they leave alone, what they report; and half precision."""

import copy

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.models.checkpoints import fingerprint
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memtrm import MemTRMConfig
from tests.helpers.small_models import SAVED, SEGMENT, document, read, sample_of, train


def test_training_leaves_the_backbone_bit_identical(build, task):
    model = build()
    decoder = model.decoder
    before = copy.deepcopy(decoder.backbone.state_dict())
    sidenet = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, _ = train(model, task, steps=4)
    after = decoder.backbone.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(fingerprint(after), decoder.backbone_fingerprint)
    assert all(p.grad is None and not p.requires_grad for p in decoder.backbone.parameters())
    assert decoder.training and not any(m.training for m in decoder.backbone.modules())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in held}
    assert names == set(SAVED) - {"decoder.backbone_fingerprint"}
    for name in names:
        assert not torch.equal(model.state_dict()[name], sidenet[name]), name


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_bfloat16_is_close_to_float32(build, config):
    tokens = document(1, 4 * SEGMENT, rows=2)
    # the memory is no larger than what is retrieved: rounding cannot choose other chunks
    sizes = {"memory_size": SEGMENT, "k": SEGMENT, "chunk_size": 2}
    exact = read(build(config, **sizes), tokens)
    rounded = build(config, compute_dtype="bfloat16", **sizes)
    logits = read(rounded, tokens).float()
    error = (logits - exact).pow(2).mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.03
    assert rounded.decoder.memory.bank.ring.store.keys.dtype == torch.bfloat16
    trained = {p.dtype for p in rounded.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    if config is LongMemConfig:
        assert rounded.decoder.backbone.state_dict()["layers.0.fc1.weight"].dtype == torch.bfloat16


def test_bfloat16_training_gets_gradients_close_to_float32(build, task):
    gradients = []
    for dtype in ("float32", "bfloat16"):
        model = build(perturb=True, compute_dtype=dtype, k=SEGMENT, memory_size=SEGMENT)
        criterion = LongMemCrossEntropyCriterion(task)
        model.train()
        for step in range(2):
            model.zero_grad()
            sample = sample_of(document(step, SEGMENT + 1, rows=2), fresh=step == 0)
            criterion(model, sample)[0].backward()
        named = sorted(model.named_parameters())
        gradients.append({name: p.grad for name, p in named if p.requires_grad})
    for name, exact in gradients[0].items():
        rounded = gradients[1][name]
        assert rounded.dtype == torch.float32
        error = (rounded - exact).norm() / exact.norm()
        assert error < 0.1, f"{name}: {error}"


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_the_trainers_dummy_batch_leaves_memory_alone(build, task, config):
    model = build(config)
    optimizer, _ = train(model, task, steps=2)
    bank = model.decoder.memory.bank
    model.decoder.memory.flush()
    before = copy.deepcopy((bank.header(), bank.state_dict()))
    optimizer.zero_grad()
    sample = sample_of(document(9, SEGMENT + 1, rows=2), fresh=True)
    criterion = LongMemCrossEntropyCriterion(task)
    loss, _, _ = task.train_step(sample, model, criterion, optimizer, 2, ignore_grad=True)
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert model.decoder.memory.bank is bank and not model.decoder.memory.read_only
    model.decoder.memory.flush()
    assert bank.header() == before[0] and bank.num_written == [8, 8]
    for name, tensor in bank.state_dict().items():
        assert torch.equal(tensor, before[1][name]), name


def test_criterion_sums_losses_and_reports_memory(build, task):
    model = build()
    _, logs = train(model, task, steps=2)
    assert [log["memory_tokens"] for log in logs] == [0, 8]
    assert [log["memory_batches"] for log in logs] == [1, 1]
    assert logs[0]["gate"].item() == 0.5
    model.eval()
    sample = sample_of(document(3, SEGMENT + 1, rows=2), fresh=True)
    sample["target"][0, 5:] = task.target_dictionary.pad()
    sample["ntokens"] = 13
    loss, size, log = LongMemCrossEntropyCriterion(task)(model, sample)
    logits = read(model, sample["net_input"]["src_tokens"])
    probabilities = logits.log_softmax(-1)
    expected = -sum(
        probabilities[row, t, sample["target"][row, t]]
        for row in range(2)
        for t in range(5 if row == 0 else 8)
    )
    assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert size == log["sample_size"] == 13
