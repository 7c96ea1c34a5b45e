"""Models with ``--memory-search hidden`` and a pointer: what memory changes, and what nothing may."""

import pytest
import torch
from torch.testing import assert_close

from eval.common.memory_controls import control_memory
from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.modules import ConstantPointer, TrainedPointer, token_losses
from longmem_fairseq.modules.place_reader import PlaceReader
from tests.helpers.hidden_models import KINDS, read
from tests.helpers.small_models import SAVED, SEGMENT, differ, document, sample_of, train

SEARCH_KEYS = ["decoder.search_keys.mean", "decoder.search_keys.rotation"]


@pytest.fixture(params=KINDS)
def model(request, make):
    return make(**KINDS[request.param])


def test_probabilities_sum_to_one(model):
    probs = read(model, document(1, 4 * SEGMENT, rows=2)).double().exp()
    assert_close(probs.sum(-1), torch.ones(probs.shape[:2]).double(), rtol=0, atol=1e-5)


def test_changing_a_token_leaves_every_earlier_output_alone(model):
    read(model, document(5, 3 * SEGMENT))
    tokens, memory = document(6, SEGMENT), model.decoder.memory
    with memory.frozen():
        before = read(model, tokens, fresh=False)
        for t in range(SEGMENT):
            changed = tokens.clone()
            changed[0, t] = 4 + (tokens[0, t] - 3) % 60
            after = read(model, changed, fresh=False)
            assert torch.equal(before[:, :t], after[:, :t])
            assert differ(before[:, t], after[:, t])


def test_an_empty_memory_is_none(make, model):
    tokens = document(1, 3 * SEGMENT, rows=2)
    options = {"no_sidenet": not model.decoder.has_sidenet}
    without = make(**options, no_memory=True)
    without.load_state_dict(model.state_dict())  # search keys, gate and pointer are left aside
    assert without.decoder.memory is None and without.decoder.pointer is None
    expected, found = read(without, tokens), read(model, tokens)
    assert torch.equal(found[:, :SEGMENT], expected[:, :SEGMENT])
    assert differ(found[:, SEGMENT:], expected[:, SEGMENT:])


@pytest.mark.parametrize("kind", KINDS)
def test_controls_read_an_empty_memory_and_that_of_the_next_stream(make, kind):
    tokens = document(1, 2 * SEGMENT, rows=3)
    model, empty, other, swapped = (make(**KINDS[kind]) for _ in range(4))
    expected = read(model, tokens)
    control_memory(empty, "empty")
    alone = torch.cat([read(model, part) for part in tokens.split(SEGMENT, dim=1)], dim=1)
    assert_close(read(empty, tokens), alone, rtol=0, atol=1e-5)
    control_memory(other, "other")
    output = read(other, tokens)
    read(swapped, tokens[:, :SEGMENT].roll(-1, dims=0))
    assert_close(
        output[:, SEGMENT:], read(swapped, tokens[:, SEGMENT:], fresh=False), rtol=0, atol=1e-4
    )
    assert differ(output[:, SEGMENT:], expected[:, SEGMENT:])


def test_the_first_row_may_remember_and_the_second_not(model):
    """A row that has just begun a document reads nothing, beside one that goes on."""
    long, short = document(1, 3 * SEGMENT), document(2, SEGMENT)
    expected = read(model, long)[:, 2 * SEGMENT :], read(model, short)
    read(model, torch.cat([long[:, : 2 * SEGMENT], document(3, 2 * SEGMENT)]))
    rows = torch.cat([long[:, 2 * SEGMENT :], short])
    output = model(rows, new_document=torch.tensor([False, True]))
    found = model.get_normalized_probs(output, log_probs=True)
    assert_close(found[:1], expected[0], rtol=0, atol=1e-4)
    assert_close(found[1:], expected[1], rtol=0, atol=1e-5)
    loss = -found.gather(-1, rows.unsqueeze(-1)).sum()
    wanted = [p for p in model.parameters() if p.requires_grad]
    for gradient in torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ():
        assert gradient is None or gradient.isfinite().all()


def test_what_is_read_comes_after_what_resembles(make):
    """The same segment twice: each token finds itself, and what is read is what came next."""
    model = make(pointer="trained", no_sidenet=True)
    tokens = document(1, SEGMENT)
    with torch.no_grad():
        model(tokens, new_document=torch.tensor([True]))
        model.decoder.memorize_streams(document(2, 1), new_document=torch.tensor([False]))
        pointer = model(tokens, new_document=torch.tensor([False]))[1]["pointer"]
    successors = torch.cat([tokens[0, 1:], document(2, 1)[0]])
    assert torch.equal(pointer.ids[0, :, 0], successors)


# --- what is saved, and training ---


def test_a_checkpoint_holds_what_is_not_the_backbones(make):
    pointer = [f"decoder.pointer.{name}" for name in TrainedPointer(32).state_dict()]
    attention = "decoder.layers.1.self_attn.place_reader"
    reader = [f"{attention}.{name}" for name in PlaceReader(4).state_dict()]
    assert pointer and not ConstantPointer().state_dict()
    for options, expected in (
        ({"pointer": "trained"}, [*SAVED, *SEARCH_KEYS, *reader, *pointer]),
        ({"pointer": "constant"}, [*SAVED, *SEARCH_KEYS, *reader]),
        (
            {"pointer": "trained", "no_sidenet": True},
            ["decoder.backbone_fingerprint", *SEARCH_KEYS, *pointer],
        ),
    ):
        model = make(**options)
        assert sorted(model.state_dict()) == sorted(expected)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        fixed = {"decoder.backbone_fingerprint", *SEARCH_KEYS}
        assert sorted(trained) == sorted(set(expected) - fixed)


@pytest.mark.parametrize("kind", ["SideNet and trained pointer", "trained pointer"])
def test_training_leaves_the_backbone_and_the_search_keys_bit_identical(make, task, kind):
    model = make(**KINDS[kind])
    before = {name: p.clone() for name, p in model.decoder.backbone.state_dict().items()}
    keys = {name: p.clone() for name, p in model.decoder.search_keys.state_dict().items()}
    pointer = [p.clone() for p in model.decoder.pointer.parameters()]
    model.train()
    _, logs = train(model, task, 3)
    for name, tensor in model.decoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in model.decoder.search_keys.state_dict().items():
        assert torch.equal(tensor, keys[name])
    changed = [
        not torch.equal(*pair)
        for pair in zip(pointer, model.decoder.pointer.parameters(), strict=True)
    ]
    assert all(changed)
    assert "pointer" not in logs[0] and 0 < logs[-1]["pointer"] < 1


def test_the_criterion_is_the_loss_of_the_mixture(model, task):
    read(model, document(1, 2 * SEGMENT, rows=2))
    sample = sample_of(document(2, SEGMENT + 1, rows=2), fresh=False)
    criterion = LongMemCrossEntropyCriterion(task)
    with torch.no_grad(), model.decoder.memory.frozen():
        loss, size, log = criterion(model, sample)
        log_probs = read(model, sample["net_input"]["src_tokens"], fresh=False)
    expected = -log_probs.gather(-1, sample["target"].unsqueeze(-1)).sum()
    assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert size == 2 * SEGMENT and ("pointer" in log) == (model.decoder.pointer is not None)


def test_memory_gain_is_the_loss_without_less_that_with(make, task):
    model = make(pointer="trained").train()
    criterion = LongMemCrossEntropyCriterion(task, memory_gain_interval=1)
    for step in range(3):
        sample = sample_of(document(step, SEGMENT + 1, rows=2), fresh=step == 0)
        source, target = sample["net_input"]["src_tokens"], sample["target"]
        criterion.num_updates = step
        _, _, log = criterion(model, sample)
        row = slice(step % 2, step % 2 + 1)
        logits = model.decoder.read(source[row]).scores
        without = token_losses(logits, target[row], task.source_dictionary.pad()).sum()
        assert_close(log["gain"], (without - criterion.losses[row].sum()).detach())
        assert log["gain_tokens"] == SEGMENT
    assert abs(float(log["gain"])) > 1e-3
