"""Backbone, LongMem and MemTRM by hand, their saved keys, and the options that they refuse."""

import argparse

import pytest
import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch.testing import assert_close

from longmem_fairseq.models.checkpoints import fingerprint
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memtrm import MemTRM, MemTRMConfig
from longmem_fairseq.modules import ACTIVATIONS
from tests.helpers.small_models import (
    SAVED,
    SEGMENT,
    differ,
    document,
    load_backbone,
    read,
    save_backbone,
)


def test_backbone_by_hand(backbone):
    """Hidden states, the last norm, and the keys and values of the layer asked for."""
    decoder, tokens = backbone.decoder, document(1, 6)
    bias = decoder.attention_bias(6, torch.float32, tokens.device)
    states = [decoder.embed_tokens.weight[tokens]]
    for layer in decoder.layers:
        states.append(layer(states[-1], bias).x)
    encoded = decoder.encode(tokens, memory_layer=2)
    assert len(encoded.hidden_states) == 5
    for state, expected in zip(encoded.hidden_states, states, strict=True):
        assert torch.equal(state, expected)
    normed = decoder.layer_norm(states[-1])
    source = decoder.layers[2].layer_norm(states[2])
    for found, projection in (
        (encoded.keys, decoder.layers[2].self_attn.k_proj),
        (encoded.values, decoder.layers[2].self_attn.v_proj),
    ):
        expected = projection(source).view(1, 6, 4, 8).transpose(1, 2)
        assert_close(found, expected)
    head = decoder.output_projection
    expected = normed @ head.weight.t() + head.bias
    logits, extra = backbone(tokens)
    assert_close(logits, expected)
    assert extra == dict.fromkeys(("pointer", "lookup", "attn"))
    kept = decoder.encode(tokens, keep=range(0, 99, 2)).hidden_states
    assert [state is not None for state in kept] == [True, False, True, False, True]
    assert decoder.encode(tokens).keys is None


def test_released_init_copies_the_backbones_layers(build):
    decoder = build().decoder
    for i, layer in enumerate(decoder.layers):
        source = decoder.backbone.layers[2 * i + 1].state_dict()
        copied = layer.state_dict()
        if i == 1:
            assert torch.equal(copied.pop("self_attn.memory_bias"), torch.zeros(4))
        assert list(copied) == list(source)
        assert all(torch.equal(copied[name], source[name]) for name in source)
        assert layer.layer_norm.eps == 1e-5
        assert layer.self_attn.smeared_keys == (i == 1)
    assert torch.equal(decoder.layer_norm.weight, decoder.backbone.layer_norm.weight)
    assert torch.equal(decoder.layer_norm.bias, decoder.backbone.layer_norm.bias)


@pytest.mark.parametrize("sidenet_init", ["released", "identity"])
def test_sidenet_by_hand(build, sidenet_init):
    """Cross-network residuals; in the released form the last one ends after the final norm."""
    decoder = build(no_memory=True, sidenet_init=sidenet_init, perturb=True).decoder
    tokens = document(1, 6)
    h = decoder.backbone.encode(tokens).hidden_states
    last = h[4] if sidenet_init == "identity" else decoder.backbone.layer_norm(h[4])
    bias = decoder.backbone.attention_bias(6, torch.float32, tokens.device)
    x = decoder.layers[0](h[0], bias).x + h[2] - h[0]
    x = decoder.layers[1](x, bias).x + last - h[2]
    expected = decoder.backbone.output_projection(decoder.layer_norm(x))
    assert_close(decoder(tokens)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape, options, expected",
    [
        ({}, {}, "gelu"),
        ({"block": "sequential"}, {}, "gelu_tanh"),
        ({"positions": "rotary"}, {}, "gelu_tanh"),  # GPT-J's
        ({"activation_fn": "silu"}, {}, "silu"),
        ({}, {"activation_fn": "backbone"}, "gelu_tanh"),
        ({}, {"activation_fn": "relu"}, "relu"),
    ],
)
def test_the_sidenets_activation(task, build, tmp_path, shape, options, expected):
    path = save_backbone(tmp_path / "backbone.pt", task.source_dictionary, seed=1, **shape)
    layers = build(path=path, **options).decoder.layers
    assert all(layer.activation is ACTIVATIONS[expected] for layer in layers)


def test_identity_init_starts_at_the_backbone(build, backbone):
    """Also where memory is read."""
    model, tokens = build(sidenet_init="identity"), document(1, 3 * SEGMENT, rows=2)
    expected = torch.cat([backbone(part)[0] for part in tokens.split(SEGMENT, dim=1)], dim=1)
    assert_close(read(model, tokens), expected, rtol=0, atol=1e-5)
    assert model.decoder.memory.bank.num_tokens == [24, 24]


def test_identity_init_silences_norms_with_a_bias_too(build, task, tmp_path):
    path = save_backbone(tmp_path / "b.pt", task.source_dictionary, 1, post_norms=True)
    backbone, tokens = load_backbone(path, task), document(1, SEGMENT)
    model = build(path=path, sidenet_init="identity", no_memory=True)
    assert_close(read(model, tokens), backbone(tokens)[0], rtol=0, atol=1e-5)


def test_norms_of_a_backbone_saved_in_half_precision_are_float32(build, backbone_path, tmp_path):
    state, path = torch.load(backbone_path), tmp_path / "half.pt"
    state["model"] = {name: weight.half() for name, weight in state["model"].items()}
    torch.save(state, path)
    model = build(path=str(path))
    assert model.decoder.backbone.layer_norm.weight.dtype == torch.float32
    assert read(model, document(1, 2 * SEGMENT)).isfinite().all()


@pytest.mark.parametrize("cfg", [argparse.Namespace(arch="transformer_lm"), {"embed_dim": 8}])
def test_backbones_of_other_programs_are_refused(build, backbone_path, tmp_path, cfg):
    state, path = torch.load(backbone_path), tmp_path / "foreign.pt"
    state["cfg"]["model"] = cfg
    torch.save(state, path)
    with pytest.raises(
        ValueError, match="holds a model of architecture unknown, expected longmem_b"
    ):
        build(path=str(path))


def test_a_checkpoint_holds_the_sidenet_alone(build):
    assert sorted(build().state_dict()) == sorted(SAVED)
    saved = sorted(build(no_memory=True).state_dict())
    assert saved == sorted(set(SAVED) - {"decoder.layers.1.self_attn.memory_bias"})


def test_a_sidenet_goes_back_to_its_backbone_and_to_no_other(build, task, tmp_path):
    tokens = document(1, 3 * SEGMENT)
    trained, loaded = build(perturb=True), build()
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(read(loaded, tokens), read(trained, tokens))
    path = save_backbone(tmp_path / "other.pt", task.source_dictionary, 7, smeared_key_layers=[3])
    other = build(path=path)
    ours, theirs = (
        model.decoder.backbone_fingerprint.numpy().tobytes().hex()[:16]
        for model in (trained, other)
    )
    assert ours != theirs
    with pytest.raises(ValueError) as error:
        other.load_state_dict(trained.state_dict())
    assert str(error.value) == (
        f"this SideNet was trained with the backbone {ours}, not with {theirs}: give its own "
        "backbone as --pretrained-model-path"
    )


def test_fingerprints_tell_names_shapes_and_values_apart():
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 3)}
    same = fingerprint(state)
    assert same.dtype == torch.uint8 and same.shape == (32,)
    assert torch.equal(fingerprint(dict(reversed(list(state.items())))), same)
    for other in (
        {**state, "a": torch.tensor([1.0, 2.0001])},
        {**state, "b": torch.zeros(3, 2)},
        {"c": state["a"], "b": state["b"]},
    ):
        assert not torch.equal(fingerprint(other), same)


def test_memtrm_starts_as_its_backbone(build, backbone):
    model, tokens = build(MemTRMConfig, embed_dim=64), document(1, 2 * SEGMENT, rows=2)
    layers = model.decoder.layers
    assert model.decoder.embed_tokens.embedding_dim == 32
    assert [layer.self_attn.num_heads for layer in layers] == [4] * 4
    assert [layer.self_attn.smeared_keys for layer in layers] == [False, False, False, True]
    output = read(model, tokens)
    assert_close(output[:, :SEGMENT], backbone(tokens[:, :SEGMENT])[0], rtol=0, atol=1e-5)
    assert differ(output[:, SEGMENT:], backbone(tokens[:, SEGMENT:])[0])
    assert all(p.requires_grad for p in model.parameters())
    expected = set(backbone.state_dict()) | {"decoder.layers.3.self_attn.memory_bias"}
    assert set(model.state_dict()) == expected
    without = build(MemTRMConfig, no_memory=True)
    expected = torch.cat([backbone(part)[0] for part in tokens.split(SEGMENT, dim=1)], dim=1)
    assert_close(read(without, tokens), expected, rtol=0, atol=1e-5)


def test_a_saved_memtrm_does_not_need_its_backbone(backbone_path):
    cfg = OmegaConf.structured(MemTRMConfig(pretrained_model_path=backbone_path))
    MemTRM.settle_config(cfg, from_checkpoint=False)
    assert (cfg.embed_dim, cfg.num_layers, cfg.num_attention_heads) == (32, 4, 4)
    assert cfg.smeared_key_layers == [3] and cfg.pretrained_model_path == backbone_path
    MemTRM.settle_config(cfg, from_checkpoint=True)
    assert cfg.pretrained_model_path == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"retrieval_layer_index": 4}, "--retrieval-layer-index (4) must be between 0 and 3: "),
        (
            {"layer_reduction_factor": 3},
            "--layer-reduction-factor (3) must divide the backbone's 4",
        ),
        ({"k": 7}, "--k (7) must be a multiple of --chunk-size (2)"),
        ({"memory_size": 6, "k": 2}, "--memory-size (6) must be at least one segment, "),
        (
            {"no_memory": True, "use_external_memory": True},
            "--no-memory contradicts --use-external-memory: give one of them",
        ),
        ({"path": ""}, "--pretrained-model-path is missing: give the backbone's checkpoint"),
    ],
)
def test_options_that_do_not_fit(build, options, message):
    with pytest.raises(ValueError) as error:
        build(**options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_backbones_older_than_an_option_have_its_default(build, backbone_path, tmp_path, config):
    state = torch.load(backbone_path)
    known = ("_name", "embed_dim", "num_layers", "num_attention_heads", "smeared_key_layers")
    state["cfg"]["model"] = {name: state["cfg"]["model"][name] for name in known}
    path, tokens = tmp_path / "old.pt", document(1, 2 * SEGMENT)
    torch.save(state, path)
    assert torch.equal(read(build(config, path=str(path)), tokens), read(build(config), tokens))


def test_a_missing_backbone_is_named(build):
    with pytest.raises(FileNotFoundError) as error:
        build(path="nowhere.pt")
    assert str(error.value) == "--pretrained-model-path (nowhere.pt): no such file"


@pytest.mark.parametrize("changed", [0, 1])
def test_a_backbone_of_another_dictionary_is_refused(build, task, tmp_path, changed):
    """Of other size, and of the same size with other symbols."""
    dictionary = Dictionary()
    for i in range(60 + changed):
        dictionary.add_symbol(f"other{i}")
    path = save_backbone(tmp_path / "other.pt", dictionary, seed=1)
    with pytest.raises(ValueError) as error:
        build(path=path)
    assert str(error.value) == (
        f"--pretrained-model-path ({path}) was trained with another dictionary ({64 + changed} "
        "symbols) than the data's dict.txt (64 symbols): prepare the data with the backbone's "
        "dictionary and tokenizer"
    )


def test_a_checkpoint_of_another_model_is_refused(build, backbone_path, tmp_path):
    state = torch.load(backbone_path)
    state["cfg"]["model"]["_name"] = "longmem"
    path = tmp_path / "longmem.pt"
    torch.save(state, path)
    with pytest.raises(ValueError) as error:
        build(path=str(path))
    message = f"--pretrained-model-path ({path}) holds a model of architecture longmem, expected"
    assert str(error.value).startswith(message)


def test_an_architecture_saved_before_there_were_more_options(task, backbone_path):
    cfg = torch.load(backbone_path)["cfg"]["model"]
    older = {name: cfg[name] for name in ("embed_dim", "num_layers", "num_attention_heads")}
    older = OmegaConf.create({"_name": "longmem_backbone_tiny", "smeared_key_layers": [3], **older})
    model = task.build_model(older, from_checkpoint=True)
    model.load_state_dict(torch.load(backbone_path)["model"])
