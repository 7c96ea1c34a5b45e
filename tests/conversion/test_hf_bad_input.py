"""preprocess/convert_checkpoint.py: what it reads, and what it refuses in one line."""

import hashlib
import json
import os
import sys

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.conversion.families import FAMILIES  # noqa: E402
from longmem_fairseq.tokenizers import load_tokenizer  # noqa: E402
from longmem_fairseq.utils.cli import run  # noqa: E402
from tests.helpers.hf_models import VOCAB, make_model  # noqa: E402
from tests.helpers.hf_tokenizers import PAGE, make_tokenizer  # noqa: E402
from tests.helpers.malicious import Malicious  # noqa: E402

ALONE = "--no-tokenizer"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LLaMA in three shards, without a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    make_model("llama", folder, saving={"max_shard_size": "40KB"})
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def model(saved, tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "hf"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def weights(folder):
    return torch.load(folder / "checkpoint.pt")["model"]


def convert(model, dest, *options):
    convert_checkpoint(["--model", str(model), "--dest", str(dest), *options])
    return weights(dest)


@pytest.fixture
def refused(model, tmp_path, monkeypatch, capsys):
    """Runs the program; returns its one line of errors."""

    def call(*options, folder=model):
        arguments = ["convert_checkpoint.py", "--model", str(folder), *options]
        monkeypatch.setattr(sys, "argv", [*arguments, "--dest", str(tmp_path / "dest")])
        with pytest.raises(SystemExit) as exited:
            run(convert_checkpoint)
        assert exited.value.code == 2 and not (tmp_path / "dest").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("convert_checkpoint.py: error: ")

    return call


def change_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def as_bin(model, tensors=None):
    """Replaces the shards by one pytorch_model.bin."""
    from safetensors.torch import load_file

    state = {}
    for path in sorted(model.glob("*.safetensors")):
        state.update(load_file(path))
        path.unlink()
    (model / "model.safetensors.index.json").unlink()
    torch.save({**state, **(tensors or {})}, model / "pytorch_model.bin")


def test_shards_and_a_bin_are_the_same(model, tmp_path):
    shards = convert(model, tmp_path / "shards", ALONE)
    as_bin(model)
    one = convert(model, tmp_path / "one", ALONE)
    assert shards.keys() == one.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in shards.items())


def test_dtype_is_that_of_matrices(model, tmp_path):
    half = convert(model, tmp_path / "half", ALONE, "--dtype", "bfloat16")
    for name, tensor in half.items():
        assert tensor.dtype == (torch.bfloat16 if tensor.dim() > 1 else torch.float32), name


@pytest.mark.parametrize(
    ("kind", "name", "ours"),
    [  # as on the hub: with and without the prefix of the whole model
        ("gpt2", "h.3.attn.c_attn.bias", "layers.3.self_attn.qkv.bias"),
        ("gpt2", "transformer.h.3.attn.c_attn.bias", "layers.3.self_attn.qkv.bias"),
        ("gpt2", "h.3.attn.bias", ""),
        ("gpt2", "wpe.weight", "embed_positions.weight"),
        ("gpt_neo", "transformer.h.1.attn.attention.masked_bias", ""),
        ("gpt_neo", "transformer.h.1.attn.attention.bias", ""),
        (
            "gpt_neo",
            "transformer.h.1.attn.attention.out_proj.bias",
            "layers.1.self_attn.out_proj.bias",
        ),
        ("gptj", "transformer.h.27.mlp.fc_in.weight", "layers.27.fc1.weight"),
        ("gptj", "lm_head.bias", "output_projection.bias"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", "layers.0.gate_up.weight"),
        (
            "stablelm",
            "model.layers.0.self_attn.k_layernorm.norms.7.weight",
            "layers.0.self_attn.k_norm.weight.7",
        ),
        ("opt", "decoder.layers.0.final_layer_norm.bias", "layers.0.mlp_norm.bias"),
        ("opt", "model.decoder.final_layer_norm.bias", "layer_norm.bias"),
        ("bloom", "word_embeddings_layernorm.weight", "embed_norm.weight"),
        ("gpt_neox", "gpt_neox.layers.11.attention.masked_bias", ""),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", ""),
        ("gemma3_text", "language_model.model.norm.weight", "layer_norm.weight"),
        ("gemma3_text", "model.language_model.layers.2.mlp.up_proj.weight", "layers.2.fc1.weight"),
        ("gemma3_text", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", ""),
    ],
)
def test_names_of_released_checkpoints(kind, name, ours):
    assert FAMILIES[kind].our_name(name) == ours


def test_gemma_3_that_also_sees_is_read_as_its_language_model(tmp_path, capsys):
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 12}
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    config = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert_checkpoint(["--model", str(tmp_path), "--dry-run"])
    attention = 64 * 256 * (8 + 4 + 4 + 8) + 2 * 256
    frozen = 12 * (attention + 3 * 64 * 96 + 4 * 64) + 64 + (262208 + 3) * (64 + 1)
    assert f"12 layers, {frozen:,} frozen parameters" in capsys.readouterr().out


def test_older_tokenizers_are_read_by_transformers(model, tmp_path):
    tokenizer = make_tokenizer("gpt2")
    tokenizer.model.save(str(model))  # vocab.json and merges.txt
    settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>"}
    settings.update(bos_token="<s>", eos_token="</s>")
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    make_model("gpt2", model, vocab_size=tokenizer.get_vocab_size(), eos_token_id=2)
    for path in model.glob("model-*"):
        path.unlink()
    (model / "model.safetensors.index.json").unlink()
    convert(model, tmp_path / "dest")
    text = PAGE.replace("</s>", "")
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert load_tokenizer(tmp_path / "dest").encode(text).tolist() == expected


def test_the_dry_run_of_a_7b_model_loads_nothing(tmp_path, capsys):
    config = {
        **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008},
        **{"num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
        **{"bos_token_id": 1, "eos_token_id": 2, "rope_scaling": None},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert_checkpoint(["--model", str(tmp_path), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    block = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    rows = 2 * (32000 + 2) * 4096 + 32000 + 2  # two special symbols it lacks, and the head's bias
    frozen, trainable = 32 * block + rows + 4096, 16 * block + 4096 + 32
    assert lines[0] == f"backbone: 32 layers, {frozen:,} frozen parameters"
    share = trainable / (trainable + frozen)
    assert lines[1] == f"SideNet: 16 layers, {trainable:,} trainable ({share:.1%})"
    assert f"bfloat16 {2 * frozen / 2**30:.1f} GiB, int8" in lines[2]
    assert lines[3].startswith(f"SideNet in training {16 * trainable / 2**30:.1f} GiB")
    per_token = 32 * (2 * 128 * 2 + 4 * 128 / 4)
    assert f"{per_token:,.0f} bytes per token in bfloat16, 1.25 GiB for 65,536 tokens" in lines[4]


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
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
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
    assert refused() == f"{model}/tokenizer.json is not a tokenizer"
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
