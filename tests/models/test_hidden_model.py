"""Models with ``--memory-search hidden`` and a pointer: what memory changes, and what nothing may."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch.testing import assert_close

from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.models.memtrm import MemTRMConfig
from longmem_fairseq.modules import ConstantPointer, TrainedPointer, token_losses
from tests.helpers.small_models import HALF, SAVED, SEGMENT, differ, document, sample_of, train

HIDDEN = {"memory_search": "hidden", "search_dim": 16, "chunk_size": 1}
SEARCH_KEYS = ["decoder.search_keys.mean", "decoder.search_keys.rotation"]
KINDS = {
    "SideNet and trained pointer": {"pointer": "trained"},
    "SideNet and constant pointer": {"pointer": "constant"},
    "SideNet": {},
    "SideNet and chunks": {"pointer": "trained", "chunk_size": 2},
    "trained pointer": {"pointer": "trained", "no_sidenet": True},
    "constant pointer": {"pointer": "constant", "no_sidenet": True},
}


@pytest.fixture
def make(build):
    """Builds a model of search ``hidden`` with fitted search keys, as if it had been trained."""

    def make_one(**options):
        model = build(perturb=True, **{**HIDDEN, **options})
        if model.decoder.search_keys is not None:
            model.decoder.fit_search_keys([document(90 + i, SEGMENT) for i in range(9)])
        if options.get("pointer") == "trained" and model.decoder.pointer is not None:
            model.decoder.pointer.bias.data += 0.4  # similarities are small here
        return model

    return make_one


@pytest.fixture(params=KINDS)
def model(request, make):
    return make(**KINDS[request.param])


@torch.no_grad()
def read(model, tokens, fresh=True):
    """Log-probabilities of all tokens, read segment by segment."""
    parts = []
    for start in range(0, tokens.size(1), SEGMENT):
        new_document = torch.full((len(tokens),), fresh and start == 0)
        output = model(tokens[:, start : start + SEGMENT], new_document=new_document)
        parts.append(model.get_normalized_probs(output, log_probs=True))
    return torch.cat(parts, dim=1)


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
        model.decoder.memorise(document(2, 1), new_document=torch.tensor([False]))
        pointer = model(tokens, new_document=torch.tensor([False]))[1]["pointer"]
    successors = torch.cat([tokens[0, 1:], document(2, 1)[0]])
    assert torch.equal(pointer.ids[0, :, 0], successors)


# --- what is saved, and training ---


def test_a_checkpoint_holds_what_is_not_the_backbones(make):
    pointer = [f"decoder.pointer.{name}" for name in TrainedPointer(32).state_dict()]
    assert pointer and not ConstantPointer().state_dict()
    for options, expected in (
        ({"pointer": "trained"}, [*SAVED, *SEARCH_KEYS, *pointer]),
        ({"pointer": "constant"}, [*SAVED, *SEARCH_KEYS]),
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
        logits = model.decoder.read(source[row]).logits
        without = token_losses(logits, target[row], task.source_dictionary.pad()).sum()
        assert_close(log["gain"], (without - criterion.losses[row].sum()).detach())
        assert log["gain_tokens"] == SEGMENT
    assert abs(float(log["gain"])) > 1e-3


# --- generation ---


@torch.no_grad()
def recomputed(decoder, tokens):
    """Log-probabilities after the last of B x T tokens, reading them anew in halves of a segment."""
    past = decoder.left_behind(tokens.size(1))
    start = torch.ones(tokens.size(0), dtype=torch.bool)
    decoder.memory.reset()
    for segment in tokens[:, :past].split(HALF, dim=1):
        decoder(segment, new_document=start)
        start = torch.zeros_like(start)
    output = decoder(tokens[:, past:], new_document=start)
    decoder.memory.reset()
    return decoder.get_normalized_probs(output, log_probs=True)[:, -1]


@torch.no_grad()
def test_token_by_token_past_the_window_equals_reading_everything_anew(model):
    decoder, tokens, state = model.decoder, document(1, 4 * SEGMENT + 3, rows=2), {}
    for stop in range(1, tokens.size(1) + 1):
        output = decoder(tokens[:, :stop], incremental_state=state)
        found = decoder.get_normalized_probs(output, log_probs=True)[:, -1]
        if stop % 5 == 0 or stop > 4 * SEGMENT:
            assert_close(found, recomputed(decoder, tokens[:, :stop]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("kind", ["SideNet and trained pointer", "constant pointer"])
def test_fairseqs_generator_uses_the_mixture(make, task, kind, beam):
    """The probabilities that it reports are those of the mixture, and greedy takes the largest."""
    model = make(**KINDS[kind])
    decoder, dictionary = model.decoder, task.source_dictionary
    prompt, new = document(3, 2 * SEGMENT + 2), 6
    generator = SequenceGenerator(
        [model],
        dictionary,
        beam_size=beam,
        max_len_a=1,
        max_len_b=new,
        min_len=prompt.size(1) + new,
    )
    sample = {"net_input": {"src_tokens": prompt, "src_lengths": torch.tensor([prompt.size(1)])}}
    (found,) = task.inference_step(generator, [model], sample)
    assert len(found) == beam
    start = torch.tensor([task.document_start])
    for hypothesis in found:
        tokens = torch.cat([start, hypothesis["tokens"]]).unsqueeze(0)
        scores = []
        for length in range(prompt.size(1) + 1, tokens.size(1) - 1):
            log_probs = recomputed(decoder, tokens[:, :length])
            scores.append(log_probs[0, tokens[0, length]])
            if beam == 1:
                legal = log_probs[0].clone()
                legal[[dictionary.pad(), dictionary.eos()]] = -torch.inf
                assert legal.argmax() == tokens[0, length]
        at = slice(prompt.size(1), prompt.size(1) + len(scores))
        assert_close(hypothesis["positional_scores"][at], torch.stack(scores), atol=1e-4, rtol=0)
        assert len(scores) >= new - 1


def test_logits_of_other_tokens_than_the_pointers_are_refused(make):
    """As fairseq-eval-lm --softmax-batch would give them."""
    model = make(pointer="trained")
    tokens = document(1, SEGMENT)
    model(document(2, SEGMENT), new_document=torch.tensor([True]))
    logits, extra = model(tokens, new_document=torch.tensor([False]))
    with pytest.raises(ValueError, match="--softmax-batch cannot be used"):
        model.get_normalized_probs((logits[:, :3], extra), log_probs=True)


# --- options, and memories of others ---


def test_memory_of_other_search_keys_is_refused(make, tmp_path):
    model = make(pointer="trained")
    read(model, document(1, SEGMENT))
    model.decoder.memory.save(tmp_path / "memory", training=False)
    other = make(pointer="trained")
    other.decoder.memory.load(tmp_path / "memory", training=False)
    for change in ({"search_layer": 2}, {"retrieval_layer_index": 1}):
        other = make(pointer="trained", **change)
        with pytest.raises(ValueError, match="holds keys of the backbone"):
            other.decoder.memory.load(tmp_path / "memory", training=False)
    other = make(pointer="trained")
    other.decoder.fit_search_keys([document(50, SEGMENT)])
    with pytest.raises(ValueError, match="holds keys of the backbone"):
        other.decoder.memory.load(tmp_path / "memory", training=False)
    for change in ({"search_dim": 8}, {"memory_search": "attention", "pointer": "none"}):
        other = make(**{"pointer": "trained", **change})
        with pytest.raises(ValueError, match="holds a memory with search"):
            other.decoder.memory.load(tmp_path / "memory", training=False)


def test_rounding_of_the_rotation_does_not_make_a_memory_foreign(make):
    """Other processors round the decomposition that makes it differently."""
    model = make(pointer="trained")
    expected = model.decoder.memory.options["fingerprint"]
    model.decoder.search_keys.rotation += 1e-7
    model.decoder.identify_memory()
    assert model.decoder.memory.options["fingerprint"] == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"search_layer": 5}, "--search-layer (5) must be between 1 and 4, or -1: "),
        ({"search_layer": 0}, "--search-layer (0) must be between 1 and 4, or -1: "),
        ({"search_dim": 0}, "--search-dim (0) must be at least 1"),
        (
            {"pointer": "trained", "memory_search": "attention"},
            "--pointer (trained) needs --memory-search hidden, not attention",
        ),
        ({"no_sidenet": True}, "--no-sidenet needs --memory-search hidden and a --pointer"),
        (
            {"no_sidenet": True, "memory_search": "attention"},
            "--no-sidenet needs --memory-search hidden and a --pointer",
        ),
        (
            {"config": MemTRMConfig},
            "--memory-search hidden and --pointer need a frozen backbone: choose --arch longmem",
        ),
        (
            {"config": MemTRMConfig, "memory_search": "attention", "pointer": "constant"},
            "--memory-search hidden and --pointer need a frozen backbone: choose --arch longmem",
        ),
        (
            {"memory_index": "IVF64,Flat"},
            "--memory-index (IVF64,Flat) needs 2,496 chunks to be trained, but --memory-size holds 64",
        ),
    ],
)
def test_options_that_do_not_fit(build, options, message):
    with pytest.raises(ValueError) as error:
        build(**{**HIDDEN, **options})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_search_layer_below_the_cached_one(make):
    """Keys and values of layer 3 are cached although states of layer 2 suffice for the search."""
    for options in ({}, {"no_sidenet": True}):
        model = make(pointer="trained", search_layer=2, **options)
        tokens = document(1, 2 * SEGMENT)
        expected = read(model, tokens)
        model.decoder.memorise(tokens[:, :SEGMENT], torch.tensor([True]))
        found = read(model, tokens[:, SEGMENT:], fresh=False)
        assert_close(found, expected[:, SEGMENT:], rtol=0, atol=1e-5)


def test_a_memory_of_search_keys_fitted_at_conversion_is_its_own_after_a_restart(
    build, backbone_path, tmp_path
):
    """A checkpoint that is loaded does not make the memory beside it foreign."""
    state = torch.load(backbone_path)
    state["cfg"]["model"]["fitted_search_layer"] = 3
    state["model"]["decoder.search_mean"] = torch.randn(32)
    torch.save(state, tmp_path / "backbone.pt")
    model = build(path=str(tmp_path / "backbone.pt"), pointer="trained", **HIDDEN)
    before = model.decoder.memory.options["fingerprint"]
    assert model.decoder.search_layer == 3 and " search 3 " in before
    assert torch.equal(model.decoder.search_keys.mean, state["model"]["decoder.search_mean"])
    model.load_state_dict(model.state_dict())
    assert model.decoder.memory.options["fingerprint"] == before
