"""The config.json of released models gives backbones of as many parameters as they have."""

import json

import pytest
from omegaconf import OmegaConf

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.conversion.families import FAMILIES  # noqa: E402
from longmem_fairseq.models.decoder_config import DecoderConfig  # noqa: E402


def config(kind, embed_dim, ffn_dim, layers, heads, kv_heads, vocab, **options):
    return {
        **{"model_type": kind, "hidden_size": embed_dim, "intermediate_size": ffn_dim},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab},
        **{"num_key_value_heads": kv_heads, "bos_token_id": 1, "eos_token_id": 2},
        **options,
    }


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
PHI4_MINI = config("phi3", 3072, 8192, 32, 24, 8, 200064, partial_rotary_factor=0.75)
PHI4_MINI.update(max_position_embeddings=131072, original_max_position_embeddings=4096)
PHI4_MINI.update(rope_scaling=LONGROPE, tie_word_embeddings=True)
GPTJ = {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_inner": None}
GPTJ.update(rotary_dim=64, vocab_size=50400, tie_word_embeddings=False, eos_token_id=50256)
SMOLLM3 = config("smollm3", 2048, 11008, 36, 16, 4, 128256, no_rope_layers=[1, 1, 1, 0] * 9)
RELEASED = {
    "gemma-2b": (config("gemma", 2048, 16384, 18, 8, 1, 256000, hidden_act="gelu"), 2_506_172_416),
    "gpt-j-6b": (GPTJ, 6_050_882_784),
    "OLMo-2-0425-1B": (config("olmo2", 2048, 8192, 16, 16, 16, 100352), 1_484_916_736),
    "Phi-4-mini-instruct": (PHI4_MINI, 3_836_021_760),
    "SmolLM3-3B": (SMOLLM3, 3_075_098_624),
}


@pytest.mark.parametrize("name", list(RELEASED))
def test_parameters_of_released_models(name, tmp_path, capsys):
    content, expected = RELEASED[name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    convert_checkpoint(["--model", str(tmp_path), "--dry-run"])
    found = capsys.readouterr().out.splitlines()[0].split()
    # besides those: rows of fairseq's special symbols that the model lacks, and the head's bias
    absent = 4 - len({content.get("bos_token_id"), content["eos_token_id"]} - {None})
    embed_dim = content.get("hidden_size", content.get("n_embd"))
    rows = absent * embed_dim * (1 if name not in ("gpt-j-6b", "OLMo-2-0425-1B") else 2)
    biases = absent if name == "gpt-j-6b" else content["vocab_size"] + absent
    assert int(found[3].replace(",", "")) == expected + rows + biases


def test_layers_of_exaone_4_32b():
    kinds = (["sliding_attention"] * 3 + ["full_attention"]) * 16
    content = config("exaone4", 5120, 27392, 64, 40, 8, 102400, layer_types=kinds, head_dim=128)
    content.update(sliding_window=4096, sliding_window_pattern="LLLG")
    options = FAMILIES["exaone4"].options(content)
    cfg = OmegaConf.structured(DecoderConfig(**options))
    assert cfg.no_rotary_layers == list(range(3, 64, 4))
    assert sorted([*cfg.sliding_layers, *cfg.no_rotary_layers]) == list(range(64))
    # the small models have no windows, and rotary everywhere
    whole = {**content, "sliding_window": None, "layer_types": ["full_attention"] * 64}
    assert FAMILIES["exaone4"].options(whole)["no_rotary_layers"] == []
