"""Backbones made of Hugging Face models compute what transformers computes."""

import pytest
import torch
from fairseq.data import Dictionary
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.models.checkpoints import load_backbone  # noqa: E402
from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds  # noqa: E402
from tests.helpers.hf_models import MODELS, VOCAB, make_model  # noqa: E402

WINDOW = 24
NEIGHBORS = (
    "gptj",
    "cohere",
    "cohere2",
)  # families whose rotary turns channels 0 and 1, 2 and 3, ...
LAYER = 2  # whose keys and values are compared; with a sliding window where a family has some


def convert(folder, dest, *options):
    arguments = ["--model", str(folder), "--dest", str(dest), "--tokens-per-sample", str(WINDOW)]
    convert_checkpoint([*arguments, "--no-tokenizer", *options])
    return load(dest)


def load(dest):
    dictionary = Dictionary.load(str(dest / "dict.txt"))
    decoder, _ = load_backbone(str(dest / "checkpoint.pt"), dictionary, WINDOW)
    return decoder.eval(), CheckpointIds.load(dest, dictionary)


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = make_model(request.param, folder / "hf")
    return theirs, *convert(folder / "hf", folder / "ours")


def neighbors(keys, rotary_dim):
    """Channels that are turned together, beside each other."""
    turned = keys[..., :rotary_dim].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return torch.cat([turned, keys[..., rotary_dim:]], dim=-1)


def random_ids(*shape):
    return torch.randint(3, VOCAB - 1, shape, generator=torch.Generator().manual_seed(1))


def to_dictionary(ids, tokens):
    return torch.from_numpy(ids.to_dictionary).long()[tokens]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 23])
def test_logits_states_keys_and_values_are_equal(pair, length):
    theirs, ours, ids = pair
    tokens = random_ids(2, length)
    expected = theirs(tokens, output_hidden_states=True, use_cache=True)
    encoded = ours.encode(to_dictionary(ids, tokens), memory_layer=LAYER)
    normed = ours.layer_norm(encoded.hidden_states[-1])
    logits = ours.output_layer(normed)
    assert_close(logits[..., ids.to_dictionary], expected.logits, atol=1e-4, rtol=0)
    if not ours.cfg.logit_softcap:
        assert (logits.softmax(-1)[..., ids.absent] < 1e-9).all()
    states = [*encoded.hidden_states[:-1], normed]
    for state, its in zip(states, expected.hidden_states, strict=True):
        assert_close(state, its, atol=1e-4, rtol=0)
    turned = ours.layers[LAYER].self_attn._turned(encoded.keys, range(length))
    cached = expected.past_key_values.layers[LAYER]
    for own, its in ((turned, cached.keys), (encoded.values, cached.values)):
        if own is turned and theirs.config.model_type in NEIGHBORS:
            own = neighbors(own, ours.cfg.rotary_dim)
        if own.size(1) < its.size(1):  # Falcon repeats the heads of a group
            own = own.repeat_interleave(its.size(1) // own.size(1), dim=1)
        assert_close(own[:, :, -its.size(2) :], its, atol=1e-4, rtol=0)
    assert own.abs().amax() > 0.1


@torch.no_grad()
def test_left_over_padding_changes_nothing(pair):
    theirs, ours, ids = pair
    tokens, mask = random_ids(2, 13), torch.ones(2, 13, dtype=torch.long)
    mask[1, 9:] = 0
    indices = to_dictionary(ids, tokens).masked_fill(mask == 0, ours.padding_idx)
    expected = theirs(tokens, attention_mask=mask).logits
    logits = ours(indices)[0][..., ids.to_dictionary]
    assert_close(logits[mask == 1], expected[mask == 1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_token_by_token_equals_the_whole(pair):
    _, ours, ids = pair
    tokens = to_dictionary(ids, random_ids(2, WINDOW))
    state, start = {}, 0
    for stop in (4, 5, 6, 9, 16, 17, WINDOW):
        logits = ours(tokens[:, :stop], incremental_state=state, last_only=False)[0]
        whole = ours(tokens[:, :stop])[0]  # of what was read so far: longrope looks at the length
        assert_close(logits[:, start - stop :], whole[:, start:], atol=1e-4, rtol=0)
        start = stop
