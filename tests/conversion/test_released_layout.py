"""Checkpoints of the released layout give what the released code gave."""

import logging
import re
import sys

import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import eval_lm

from eval import parity
from eval.common.stream_scoring import load_model
from longmem_fairseq import LongMem
from longmem_fairseq.commands import convert_released
from longmem_fairseq.models.checkpoints import load_backbone
from tests.fuzz import converted_seeds
from tests.fuzz.watch import watched
from tests.helpers.corpora import items_of, prepare, write_gpt2_files, write_splits

FIXTURES = ("original_tiny", "original_batch2")
BLOCK = (
    "fc1.bias",
    "fc1.weight",
    "fc2.bias",
    "fc2.weight",
    "layer_norm.bias",
    "layer_norm.weight",
    "self_attn.k_proj.weight",
    "self_attn.out_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
)
FINAL_NORM = ("layer_norm.bias", "layer_norm.weight")


@pytest.fixture(params=FIXTURES)
def fixture(request, shared_dir):
    path = shared_dir / "parity" / request.param
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    return path


@pytest.fixture
def tiny(shared_dir):
    path = shared_dir / "parity" / "original_tiny"
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    return path


def convert(fixture, dest, longmem=True, more=()):
    options = {"backbone": "backbone.pt", "dict": "dict.txt"}
    if longmem:
        options["longmem"] = "longmem.pt"
    arguments = [f"--{option}={fixture / name}" for option, name in options.items()]
    convert_released.main([*arguments, f"--dest={dest}", *more])
    return dest


def saved(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)


def test_parity(fixture, capsys):
    parity.main([str(fixture)])
    number = r"\d\.\d\de[+-]\d\d"
    assert re.fullmatch(
        rf"backbone max\|dlogit\| = {number}, longmem max\|dlogit\| = {number}, "
        r"retrieved chunks equal = 100\.00%\n",
        capsys.readouterr().out,
    )


def test_parity_fails_on_a_difference(tiny, tmp_path, capsys):
    expected = torch.load(tiny / "expected.pt", weights_only=True)
    expected["longmem_logits"][-1, 0, -1, 7] += 2e-4
    torch.save(expected, tmp_path / "expected.pt")
    for name in ("backbone.pt", "longmem.pt", "dict.txt"):
        (tmp_path / name).symlink_to(tiny / name)
    with pytest.raises(SystemExit) as exited:
        parity.main([str(tmp_path)])
    assert exited.value.code == 1
    assert "retrieved chunks equal = 100.00%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokens", lambda tokens: tokens.float(), "is not the expected.pt of a fixture"),
        ("tokens", lambda tokens: tokens + 10_000, "holds other tokens than those from 0 to"),
        ("longmem_logits", lambda logits: logits[:1], "is not the expected.pt of a fixture"),
        ("backbone_logits", lambda logits: logits[..., 1:], "backbone_logits of a segment are"),
        ("retrieved_chunks", lambda chunks: chunks[1:], "is not the expected.pt of a fixture"),
        (
            "retrieved_chunks",
            lambda chunks: [c if c is None else c[:, 1:] for c in chunks],
            "are (",
        ),
    ],
)
def test_parity_refuses_fixtures_of_another_form(tiny, tmp_path, name, change, message):
    expected = torch.load(tiny / "expected.pt", weights_only=True)
    torch.save({**expected, name: change(expected[name])}, tmp_path / "expected.pt")
    for other in ("backbone.pt", "longmem.pt", "dict.txt"):
        (tmp_path / other).symlink_to(tiny / other)
    with pytest.raises(ValueError, match=re.escape(message)):
        parity.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("backbone", "longmem", "chunks", "passed"),
    [
        (1e-4, 1e-4, 0.999, True),
        (1.1e-4, 0.0, 1.0, False),
        (0.0, 1.1e-4, 1.0, False),
        (0.0, 0.0, 0.9989, False),
        (float("nan"), 0.0, 1.0, False),
        (0.0, float("nan"), 1.0, False),
    ],
)
def test_what_passes(backbone, longmem, chunks, passed):
    assert parity.Parity(backbone, longmem, chunks).passed == passed


def test_chunks_are_compared_as_sets_of_each_query():
    # H = 1, T = 2, B = 2, R = 2; queries of the fixture: t0 b0, t0 b1, t1 b0, t1 b1
    expected = torch.tensor([[[0, 1], [2, 3], [4, 5], [6, 7]]])
    ours = torch.tensor([[[[1, 0], [4, 5]]], [[[2, 3], [6, 9]]]])
    assert parity.compare_chunks(ours, expected) == (3, 4)
    assert parity.compare_chunks(None, expected) == (0, 4)
    assert parity.compare_chunks(ours, None) == (0, 4)
    assert parity.compare_chunks(None, None) == (0, 0)


def test_saved_keys(fixture, tmp_path):
    dest = convert(fixture, tmp_path / "converted")
    backbone, longmem = saved(dest / "backbone")["model"], saved(dest / "longmem")["model"]
    config = torch.load(fixture / "expected.pt", weights_only=True)["config"]

    def keys(num_layers):
        return {f"decoder.layers.{i}.{name}" for i in range(num_layers) for name in BLOCK} | {
            f"decoder.{name}" for name in FINAL_NORM
        }

    assert set(backbone) == keys(config["layers"]) | {
        "decoder.embed_tokens.weight",
        "decoder.output_projection.bias",
        "decoder.output_projection.weight",
    }
    memory_layer = config["retrieval_layer_index"] // 2
    assert set(longmem) == keys(config["layers"] // 2) | {
        f"decoder.layers.{memory_layer}.self_attn.memory_bias",
        "decoder.backbone_fingerprint",
    }


def test_options(fixture, tmp_path):
    dest = convert(fixture, tmp_path / "converted")
    config = torch.load(fixture / "expected.pt", weights_only=True)["config"]
    cfg = saved(dest / "longmem")["cfg"]
    assert cfg["task"]["tokens_per_sample"] == config["tokens_per_sample"]
    model = cfg["model"]
    for name in ("retrieval_layer_index", "chunk_size", "k", "memory_size"):
        assert model[name] == config[name]
    assert model["pretrained_model_path"] == str(dest / "backbone" / "checkpoint.pt")
    assert (model["memory_scope"], model["sidenet_init"]) == ("batch", "released")
    assert (model["activation_fn"], model["layer_reduction_factor"]) == ("gelu", 2)
    assert not model["no_memory"]
    model, task = load_model(str(dest / "longmem" / "checkpoint.pt"), str(dest / "longmem"), 40)
    path = cfg["model"]["pretrained_model_path"]
    _, fingerprint = load_backbone(path, task.source_dictionary, task.cfg.tokens_per_sample)
    assert torch.equal(model.decoder.backbone_fingerprint, fingerprint)


@pytest.mark.parametrize("name", ["backbone", "longmem"])
def test_eval_lm_reads_it(name, tiny, tmp_path, root, monkeypatch, caplog):
    dest = convert(tiny, tmp_path / "converted")
    builder = MMapIndexedDatasetBuilder(str(dest / name / "test.bin"))
    document = torch.cat([torch.arange(4, 100), torch.tensor([2])])
    builder.add_item(document)
    builder.finalize(str(dest / name / "test.idx"))
    arguments = [
        *("fairseq-eval-lm", str(dest / name), "--path", str(dest / name / "checkpoint.pt")),
        *("--user-dir", str(root / "longmem_fairseq"), "--task", "longmem_language_modeling"),
        *("--tokens-per-sample", "48", "--batch-size", "1", "--num-workers", "0", "--cpu"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with caplog.at_level(logging.INFO):
        eval_lm.cli_main()
    assert f"Evaluated {len(document)} tokens" in caplog.text


def test_dictionary_is_extended_to_the_embedding(tiny, tmp_path):
    fixture = tmp_path / "fixture"
    fixture.mkdir()
    (fixture / "backbone.pt").symlink_to(tiny / "backbone.pt")
    lines = (tiny / "dict.txt").read_text().splitlines()[:113]
    # no line break at the end, and a word of fairseq's padding that is there already
    (fixture / "dict.txt").write_text("\n".join([*lines, "madeupword0001 1"]))
    dest = convert(fixture, tmp_path / "converted", longmem=False)
    written = (dest / "backbone" / "dict.txt").read_text()
    assert written == "\n".join(
        [*lines, "madeupword0001 1", "madeupword0000 0", "madeupword0002 0", ""]
    )
    assert not (dest / "longmem").exists()
    load_model(str(dest / "backbone" / "checkpoint.pt"), str(dest / "backbone"), 48)


def test_a_converted_model_takes_texts(tiny, tmp_path):
    fixture = tmp_path / "fixture"
    fixture.mkdir()
    for name in ("backbone.pt", "longmem.pt"):
        (fixture / name).symlink_to(tiny / name)
    # of GPT-2's ids as many as the embedding has rows for: those of printable ASCII come first
    (fixture / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(100)))
    bpe = write_gpt2_files(tmp_path / "bpe")
    dest = convert(fixture, tmp_path / "converted", more=[f"--gpt2-bpe-dir={bpe}"])
    for model in ("backbone", "longmem"):
        for name in ("encoder.json", "vocab.bpe"):
            assert (dest / model / name).read_bytes() == (bpe / name).read_bytes()
    assert LongMem.from_pretrained(dest / "longmem").score("cats").tokens == list("cats")
    source = write_splits(tmp_path / "source", {}, test={"a": "cats"})
    prepare(source, tmp_path / "corpus", "--vocabulary", str(dest / "longmem"))
    # by hand: "!" is id 0, at 4; the others follow in the order of ASCII
    (item,) = items_of(tmp_path / "corpus", "test")
    assert item == [*(4 + ord(letter) - ord("!") for letter in "cats"), 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "decoder.pretrained_model.decoder.model.transformer.h.2.mlp.fc_in.bias",
            "another backbone",
        ),
        ("decoder.output_projection.weight", "tuned the backbone's head"),
    ],
)
def test_another_backbone_is_refused(name, message, tiny, tmp_path):
    state = torch.load(tiny / "longmem.pt", weights_only=True)
    state["model"][name] = state["model"][name] + 1
    fixture = tmp_path / "fixture"
    fixture.mkdir()
    torch.save(state, fixture / "longmem.pt")
    for same in ("backbone.pt", "dict.txt"):
        (fixture / same).symlink_to(tiny / same)
    with pytest.raises(ValueError, match=message):
        convert(fixture, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixture"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("activation_fn", [], "longmem.pt: activation_fn is [], expected str"),
        ("k", "4", "longmem.pt: k is '4', expected int"),
        ("use_external_memory", 1, "longmem.pt: use_external_memory is 1, expected bool"),
        ("num_layers", None, "backbone.pt: num_layers is None, expected int"),
        # a size that no machine has, of which nothing is made
        (
            "embed_dim",
            2**19,
            "backbone.pt does not fit its own options: embed_tokens.weight is (5, 8)",
        ),
    ],
)
def test_false_options_are_one_line(option, value, message, tmp_path):
    converted_seeds.released(tmp_path)
    for name in ("backbone.pt", "longmem.pt"):
        state = torch.load(tmp_path / name)
        setattr(state["args"], option, value)
        torch.save(state, tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with watched(tmp_path), pytest.raises(ValueError) as error:
        convert(tmp_path, tmp_path / "converted")
    assert message in str(error.value)
    assert sorted(tmp_path.iterdir()) == before
