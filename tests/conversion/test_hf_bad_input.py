"""The converter refuses bad input in one line."""

import hashlib
import os

import pytest

pytest.importorskip("tokenizers", reason="needs the extra hf")

from tests.helpers.hf_folders import ALONE, as_bin, change_config, convert  # noqa: E402
from tests.helpers.hf_models import VOCAB  # noqa: E402
from tests.helpers.hf_tokenizers import make_tokenizer  # noqa: E402
from tests.helpers.malicious import Malicious  # noqa: E402


def test_hashes(model, tmp_path, refused):
    paths = sorted(model.glob("*.safetensors"))
    sums = tmp_path / "SHA256SUMS"
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in paths]
    sums.write_text("\n".join(lines))
    convert(model, tmp_path / "right", ALONE, "--sha256", str(sums))
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    error = refused(ALONE, "--sha256", str(sums))
    assert error.startswith(f"{paths[1]} has the SHA-256 ") and lines[1].split()[0] in error
    sums.write_text(lines[0])
    assert "expected one of --sha256" in refused(ALONE, "--sha256", str(sums))


def test_an_unknown_family(model, refused):
    change_config(model, model_type="t5")
    error = refused(ALONE)
    assert error.startswith(f"{model}/config.json: model_type t5 is unknown, expected one of gpt2,")
    for name in ("opt", "bloom", "gpt_neox", "falcon", "llama", "mistral", "qwen3", "gemma2"):
        assert name in error


@pytest.mark.parametrize(
    ("kind", "options", "what"),
    [
        ("mixtral", {"num_local_experts": 8}, "a mixture of experts"),
        ("qwen2_moe", {"num_experts": 60}, "a mixture of experts"),
        ("deepseek_v3", {"n_routed_experts": 256}, "a mixture of experts"),
        ("llava", {"vision_config": {}}, "a model that also sees or hears"),
        ("qwen2_vl", {}, "a model that also sees or hears"),
        ("mamba", {"state_size": 16}, "a state-space model"),
        ("falcon_mamba", {}, "a state-space model"),
        ("recurrent_gemma", {"lru_width": 2560}, "a state-space model"),
    ],
)
def test_kinds_of_models_that_are_refused_by_name(model, refused, kind, options, what):
    change_config(model, model_type=kind, **options)
    assert refused(ALONE) == (
        f"{model}/config.json: model_type {kind} is {what}, which cannot be converted"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2}}, "rotary scaling ntk is not supported"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1, 2]}},
            "short_factor has 1 numbers, expected 4",
        ),
        (
            {"model_type": "gpt_neo", "num_heads": 4, "num_layers": 3},
            "must be global and local ones",
        ),
        (
            {"model_type": "exaone4", "sliding_window": 5, "sliding_window_pattern": "LLLG"},
            "sliding_window_pattern (LLLG) needs layer_types",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantized"),
        ({"eos_token_id": None}, "eos_token_id is missing"),
        ({"hidden_act": "mish"}, "activation mish, expected one of"),
        ({"vocab_size": 70}, f"(it has {VOCAB} rows, and config.json a vocab_size of 70)"),
        (
            {"intermediate_size": 50},
            "does not fit its own options: model.layers.0.mlp.up_proj.weight is (48, 32)",
        ),
        (
            {"num_hidden_layers": 5},
            "model.layers.4.mlp.up_proj.weight is no such tensor, expected (48, 32)",
        ),
        ({"model_type": "gpt2"}, "n_embd is missing"),
        ({"model_type": "bloom", "n_head": 4, "n_layer": 4}, "is no tensor of this family"),
    ],
)
def test_options_that_are_not_the_weights(model, refused, changes, message):
    (model / "generation_config.json").unlink()  # which knows the end of text too
    change_config(model, **changes)
    assert message in refused(ALONE)


def test_missing_and_damaged_files(model, refused):
    shard = sorted(model.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert f"{shard} is damaged" in refused(ALONE)
    other = sorted(model.glob("*.safetensors"))[0]
    shard.write_bytes(other.read_bytes())
    assert "which the index says is in it" in refused(ALONE)
    shard.unlink()
    assert refused(ALONE) == (
        f"{shard}: no such file, though model.safetensors.index.json names it"
    )
    (model / "model.safetensors.index.json").write_text("{}")
    assert refused(ALONE) == f"{model}/model.safetensors.index.json has no weight_map"
    (model / "model.safetensors.index.json").unlink()
    expected = f"{model} has no weights: expected model.safetensors or pytorch_model.bin"
    assert refused(ALONE) == expected
    (model / "config.json").write_text("no json")
    assert refused(ALONE).startswith(f"{model}/config.json is not JSON")
    (model / "config.json").unlink()
    assert refused(ALONE) == f"{model}/config.json: no such file"


def test_a_bin_with_code_in_it_is_refused_not_executed(model, tmp_path, refused):
    as_bin(model, {"attack": Malicious(os.mkdir, str(tmp_path / "executed"))})
    error = refused(ALONE)
    assert error.startswith(
        f"{model}/pytorch_model.bin: refused, it would execute code when loaded"
    )
    assert not (tmp_path / "executed").exists()


def test_tokenizers_that_are_missing_or_do_not_fit(model, refused):
    assert refused() == f"{model} has no tokenizer.json: --no-tokenizer converts the weights alone"
    (model / "tokenizer.json").write_text('{"model": {}}')
    assert refused() == f"{model}/tokenizer.json is not a tokenizer (KeyError: 'vocab')"
    tokenizer = make_tokenizer("gpt2")
    (model / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    last = tokenizer.get_vocab_size() - 1
    assert refused().startswith(
        f"{model}/tokenizer.json has ids up to {last}, and the model an embedding of {VOCAB} rows"
    )


def test_a_window_of_no_tokens(refused):
    for value in ("0", "-5"):
        message = f"--tokens-per-sample ({value}) must be at least 1"
        assert refused("--dry-run", "--tokens-per-sample", value) == message


def test_a_search_layer_that_is_not_there_or_not_used(refused):
    for value in ("0", "5", "-1"):
        error = refused("--dry-run", "--search-layer", value)
        assert error.startswith(
            f"--search-layer ({value}) must be between 1 and 4, or left to its "
        )
    for options in ((ALONE,), ("--search-tokens", "0")):
        error = refused("--search-layer", "1", *options)
        assert error.startswith("--search-layer (1) is of the hidden states of a text: leave out ")


def test_a_destination_that_is_not_empty(model, tmp_path, capsys):
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "mine").touch()
    with pytest.raises(ValueError, match="is not empty: give a new or empty folder"):
        convert(model, dest, ALONE)


def test_what_is_no_folder_comes_from_the_hub(model, tmp_path, refused, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(model)

    error = refused(ALONE, folder="no/such/folder")
    assert error == "--model (no/such/folder): no such file or folder, and no id of the hub"
    error = refused(ALONE, folder="someone/llama")
    assert error.startswith(
        "--model (someone/llama): no such file or folder, and it cannot be down"
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    convert("someone/llama", tmp_path / "dest", ALONE)
    ((name, options),) = asked
    assert name == "someone/llama" and "model*.safetensors" in options["allow_patterns"]
    assert not any(".bin" in pattern for pattern in options["allow_patterns"])
