"""The files of Hugging Face models that the converter reads, and the names in them."""

import json

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.conversion.families import FAMILIES  # noqa: E402
from longmem_fairseq.tokenizers import load_tokenizer  # noqa: E402
from tests.helpers.hf_folders import ALONE, as_bin, convert  # noqa: E402
from tests.helpers.hf_models import make_model  # noqa: E402
from tests.helpers.hf_tokenizers import PAGE, make_tokenizer  # noqa: E402


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
