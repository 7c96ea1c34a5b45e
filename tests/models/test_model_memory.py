"""Models that read their past: what memory changes in their outputs, and what nothing may change."""

import pytest
import torch
from torch.testing import assert_close

from eval.common.memory_controls import control_memory
from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memtrm import MemTRMConfig
from tests.helpers.small_models import SEGMENT, differ, document, read


def test_a_closed_gate_is_the_sidenet_without_memory(build):
    tokens = document(1, 4 * SEGMENT, rows=2)
    model, without = build(perturb=True), build(perturb=True, no_memory=True)
    assert without.decoder.memory is None
    without.load_state_dict(model.state_dict())  # a trained gate is left aside
    expected = read(without, tokens)
    assert_close(read(model, tokens)[:, :SEGMENT], expected[:, :SEGMENT], rtol=0, atol=1e-6)
    assert differ(read(model, tokens)[:, SEGMENT:], expected[:, SEGMENT:])
    model.decoder.layers[1].self_attn.memory_bias.data.fill_(-1e4)
    assert_close(read(model, tokens), expected, rtol=0, atol=1e-6)


def models_with_a_past(build, backbone):
    past = document(5, 3 * SEGMENT)
    for model in (backbone, build(perturb=True), build(config=MemTRMConfig)):
        read(model, past)
        memory = getattr(model.decoder, "memory", None)
        yield model, memory


def test_changing_a_token_leaves_every_earlier_output_alone(build, backbone):
    tokens = document(6, SEGMENT)
    for model, memory in models_with_a_past(build, backbone):
        for t in range(SEGMENT):
            changed = tokens.clone()
            changed[0, t] = 4 + (tokens[0, t] - 3) % 60
            outputs = []
            for segment in (tokens, changed):
                if memory is None:
                    outputs.append(read(model, segment, fresh=False))
                else:
                    with memory.frozen():
                        outputs.append(read(model, segment, fresh=False))
                    assert memory.bank.num_tokens == [24]
            before, after = outputs
            assert torch.equal(before[:, :t], after[:, :t])
            assert differ(before[:, t], after[:, t])


def test_memory_reaches_the_outputs_of_later_segments(build, backbone):
    """A token far before the window changes what the models with memory say, not the backbone."""
    tokens = document(6, 4 * SEGMENT)
    changed = tokens.clone()
    changed[0, :SEGMENT] = document(7, SEGMENT)
    for model in (build(perturb=True), build(config=MemTRMConfig)):
        assert differ(read(model, tokens)[:, 16:], read(model, changed)[:, 16:])
    assert torch.equal(read(backbone, tokens)[:, 16:], read(backbone, changed)[:, 16:])


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_reset_isolates_documents(build, config):
    first, second = document(1, 3 * SEGMENT - 3), document(2, 3 * SEGMENT)
    fresh = read(build(config), second)
    model = build(config)
    read(model, first)
    assert torch.equal(read(model, second), fresh)
    read(model, first)
    assert differ(read(model, second, fresh=False), fresh)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_rows_reset_on_their_own(build, config):
    """Row 1 starts another document while row 0 goes on."""
    long, short = document(1, 4 * SEGMENT), document(2, 2 * SEGMENT)
    expected = read(build(config), long), read(build(config), short)
    model, outputs = build(config), []
    for step in range(4):
        part = slice(step * SEGMENT, (step + 1) * SEGMENT)
        again = slice(step % 2 * SEGMENT, (step % 2 + 1) * SEGMENT)
        rows = torch.cat([long[:, part], short[:, again]])
        with torch.no_grad():
            flags = torch.tensor([step == 0, step % 2 == 0])
            outputs.append(model(rows, new_document=flags)[0])
    outputs = torch.cat(outputs, dim=1)
    assert_close(outputs[:1], expected[0], rtol=0, atol=1e-4)
    assert_close(outputs[1:, : 2 * SEGMENT], expected[1], rtol=0, atol=1e-4)
    assert_close(outputs[1:, 2 * SEGMENT :], expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_memorizing_gives_the_memory_of_reading(build, config):
    """To a row that takes a document over, while the row beside it, which goes on, stays as it is."""
    other, past, rest = document(1, SEGMENT), document(2, 2 * SEGMENT), document(3, SEGMENT, rows=2)
    expected = []
    for row, earlier in enumerate((other, past)):
        model = build(config)
        read(model, earlier)
        expected.append(read(model, rest[row : row + 1], fresh=False))
    model = build(config)
    read(model, torch.cat([other, document(4, SEGMENT)]))
    for number, segment in enumerate(past.split(SEGMENT, dim=1)):
        rows = torch.cat([torch.full_like(segment, model.decoder.padding_idx), segment])
        model.decoder.memorize_streams(rows, torch.tensor([False, number == 0]))
    assert_close(read(model, rest, fresh=False), torch.cat(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
@pytest.mark.parametrize("memory_size", [64, 16])
def test_one_stream_and_three_streams_agree(build, config, memory_size):
    tokens = document(1, 5 * SEGMENT - 2, rows=3)
    together = read(build(config, memory_size=memory_size), tokens)
    for row in range(3):
        alone = read(build(config, memory_size=memory_size), tokens[row : row + 1])
        assert_close(together[row : row + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_padding_changes_nothing(build, config):
    """Neither right of a last segment nor in a row that has run out."""
    tokens, pad = document(1, 3 * SEGMENT - 3), 1
    padded = torch.full((2, 3 * SEGMENT), pad)
    padded[0, : tokens.size(1)] = tokens
    padded[1, : SEGMENT + 1] = document(2, SEGMENT + 1)
    model = build(config)
    output = read(model, padded)
    assert_close(output[:1, : tokens.size(1)], read(build(config), tokens), rtol=0, atol=1e-4)
    assert model.decoder.memory.bank.num_tokens == [20, 8]  # 21 and 9 tokens, chunks of 2
    assert model.decoder.memory.bank.num_pending == [1, 1]
    assert not output.isnan().any()


@pytest.mark.parametrize("scope", ["stream", "batch"])
def test_a_segment_without_tokens_is_harmless(build, backbone, task, scope):
    """A shard gets one when all of its streams have run out."""
    empty, flags = torch.empty(2, 0, dtype=torch.long), torch.tensor([False, False])
    assert backbone(empty)[0].shape == (2, 0, 64)
    for config in (LongMemConfig, MemTRMConfig):
        model, tokens = build(config, memory_scope=scope), document(1, 2 * SEGMENT, rows=2)
        read(model, tokens)
        model.train()
        model.zero_grad()
        sample = {
            "net_input": {"src_tokens": empty, "new_document": flags},
            "target": empty,
            "ntokens": 0,
            "nsentences": 2,
        }
        for _ in range(2):
            loss, _, _ = LongMemCrossEntropyCriterion(task)(model, sample)
            loss.backward()
            assert loss.item() == 0
        model.eval()
        assert model(empty, new_document=flags)[0].shape == (2, 0, 64)
        model.decoder.memory.flush()
        assert set(model.decoder.memory.banks[False].num_tokens) <= {16, 32}


def test_batch_scope_shares_one_bank(build):
    """Row 1 finds what row 0 read; new documents forget once all rows start one."""
    tokens = document(1, 2 * SEGMENT, rows=2)
    model = build(perturb=True, memory_scope="batch")
    shared = read(model, tokens)
    assert model.decoder.memory.bank.num_tokens == [32]
    assert differ(shared[:, SEGMENT:], read(build(perturb=True), tokens)[:, SEGMENT:])
    assert torch.equal(read(model, tokens), shared)
    one_row = torch.tensor([True, False])
    model(tokens[:, :SEGMENT], new_document=one_row)
    model.decoder.memory.flush()  # what needs a gradient waits for the next forward
    assert model.decoder.memory.bank.num_tokens == [48]


def test_flat_and_torch_search_give_the_same_logits(build):
    tokens = document(1, 5 * SEGMENT, rows=2)
    plain, *others = (
        read(build(perturb=True, memory_index=index), tokens) for index in ("torch", "flat", "Flat")
    )
    for other in others:
        assert_close(other, plain, rtol=0, atol=1e-4)


def test_logits_do_not_depend_on_where_memory_is(build, tmp_path):
    tokens = document(1, 5 * SEGMENT, rows=2)
    expected = read(build(perturb=True), tokens)
    for storage in ("host", "disk"):
        model = build(perturb=True, memory_storage=storage, memory_dir=str(tmp_path))
        assert torch.equal(read(model, tokens), expected)


@pytest.mark.parametrize(
    "memory_dtype, dtype, error",
    [("compute", torch.float32, 0), ("int8", torch.int8, 0.02), ("float16", torch.float16, 0.002)],
)
def test_memory_of_a_smaller_type_is_close(build, memory_dtype, dtype, error):
    tokens = document(1, 4 * SEGMENT, rows=2)
    # the memory is no larger than what is retrieved: rounding cannot choose other chunks
    sizes = {"memory_size": SEGMENT, "k": SEGMENT, "perturb": True}
    exact, model = read(build(**sizes), tokens), build(memory_dtype=memory_dtype, **sizes)
    found = (read(model, tokens) - exact).pow(2).mean().sqrt() / exact.std()
    assert error / 100 <= found <= error
    assert model.decoder.memory.bank.ring.store.keys.dtype == dtype


def test_a_bank_knows_whose_keys_it_holds(build):
    """Those of a frozen backbone can be used by another SideNet, those of a MemTRM by itself alone."""
    longmem, memtrm = build(), build(MemTRMConfig)
    for model in (longmem, memtrm):
        read(model, document(1, SEGMENT))
    expected = longmem.decoder.backbone_fingerprint.numpy().tobytes().hex()
    assert longmem.decoder.memory.bank.layout.fingerprint == f"{expected} layer 3"
    assert memtrm.decoder.memory.bank.layout.fingerprint == ""


def test_memory_of_another_layer_is_refused(build, tmp_path):
    path, model = str(tmp_path / "memory"), build()
    read(model, document(1, SEGMENT))
    model.decoder.memory.save(path, training=False)
    backbone = model.decoder.memory.bank.layout.fingerprint[:16]
    with pytest.raises(ValueError) as error:
        build(retrieval_layer_index=1).decoder.memory.load(path, training=False)
    assert str(error.value) == (
        f"{path} holds keys of the backbone {backbone} layer 3, not of {backbone} layer 1: encode the "
        "documents again with this backbone"
    )


def test_memory_goes_on_from_a_file(build, tmp_path):
    path = str(tmp_path / "memory.safetensors")
    tokens = document(1, 5 * SEGMENT - 3, rows=2)
    model, other = build(perturb=True).train(), build(perturb=True).train()
    read(model, tokens[:, : 2 * SEGMENT + 3])
    model.decoder.memory.save(path)
    other.decoder.memory.load(path)
    expected = read(model, tokens[:, 2 * SEGMENT + 3 :], fresh=False)
    assert torch.equal(read(other, tokens[:, 2 * SEGMENT + 3 :], fresh=False), expected)


def test_training_and_evaluation_do_not_see_each_other(build):
    model, tokens = build(perturb=True), document(1, 3 * SEGMENT)
    model.train()
    trained = [read(model, part, fresh=i == 0) for i, part in enumerate(tokens.split(SEGMENT, 1))]
    evaluated = build(perturb=True)
    for i, part in enumerate(tokens.split(SEGMENT, 1)):
        model.train()
        assert torch.equal(read(model, part, fresh=i == 0), trained[i])
        model.eval()
        other = document(10 + i, SEGMENT)
        assert torch.equal(read(model, other, i == 0), read(evaluated, other, i == 0))
    assert set(model.decoder.memory.banks) == {True, False}


def test_empty_memory_is_the_sidenet_without_a_bank(build):
    tokens = document(1, 3 * SEGMENT, rows=2)
    own, empty, without = (build(perturb=True, no_memory=no) for no in (False, False, True))
    control_memory(own, "own")
    control_memory(empty, "empty")
    assert_close(read(empty, tokens), read(without, tokens), rtol=0, atol=1e-6)
    assert differ(read(own, tokens), read(without, tokens))


def test_other_memory_is_that_of_the_next_stream(build):
    tokens = document(1, 2 * SEGMENT, rows=3)
    model = build(perturb=True)
    control_memory(model, "other")
    output = read(model, tokens)
    swapped = build(perturb=True)
    read(swapped, tokens[:, :SEGMENT].roll(-1, dims=0))
    expected = read(swapped, tokens[:, SEGMENT:], fresh=False)
    assert_close(output[:, SEGMENT:], expected, rtol=0, atol=1e-5)
    assert differ(output[:, SEGMENT:], read(build(perturb=True), tokens)[:, SEGMENT:])


def test_controls_need_a_memory(build, backbone):
    for model in (backbone, build(no_memory=True)):
        with pytest.raises(ValueError) as error:
            control_memory(model, "other")
        assert str(error.value) == "--memory other needs a model with a memory bank"
