"""Options of ``--memory-search hidden``, and memories of other models."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.models.memtrm import MemTRMConfig
from tests.helpers.hidden_models import HIDDEN, read
from tests.helpers.small_models import SEGMENT, document


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
        ({"search_layer": 5}, "--search-layer (5) must be between 1 and 4, or left to "),
        ({"search_layer": 0}, "--search-layer (0) must be between 1 and 4, or left to "),
        ({"search_dim": 0}, "--search-dim (0) must be at least 1"),
        (
            {"pointer": "trained", "memory_search": "attention"},
            "--pointer (trained) needs --memory-search hidden, not attention",
        ),
        (
            {"pointer": "constant", "pointer_bias": float("nan")},
            "--pointer-bias (nan) must be finite",
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
        model.decoder.memorize_streams(tokens[:, :SEGMENT], torch.tensor([True]))
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


@pytest.mark.parametrize(
    "trained, wanted, message",
    [
        (
            {"pointer": "constant"},
            {"pointer": "trained"},
            "--pointer (trained) needs a checkpoint that was trained with it: choose constant, or ",
        ),
        (
            {"memory_search": "attention"},
            {},
            "--memory-search (hidden) needs a checkpoint that was trained with it: choose attention",
        ),
    ],
)
def test_a_checkpoint_without_what_is_wanted_is_refused(make, trained, wanted, message):
    state = make(**trained).state_dict()
    with pytest.raises(ValueError) as error:
        make(**wanted).load_state_dict(state)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
