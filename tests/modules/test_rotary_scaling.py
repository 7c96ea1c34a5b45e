"""Rotary scalings at the sizes of released models against transformers, and by hand."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.conversion.options import phi3, qwen2  # noqa: E402
from longmem_fairseq.modules import Rotary  # noqa: E402
from longmem_fairseq.modules.rotary import cos_sin  # noqa: E402
from tests.helpers.hf_models import transformers  # noqa: E402

QWEN = {
    **{"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "rope_theta": 1e6},
    **{"num_hidden_layers": 24, "intermediate_size": 4864, "max_position_embeddings": 32768},
}
PHI = {
    **{"hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8, "rope_theta": 1e4},
    **{"num_hidden_layers": 32, "intermediate_size": 8192, "partial_rotary_factor": 0.75},
    **{"max_position_embeddings": 131072, "original_max_position_embeddings": 4096},
}
SHORT, LONG = [1 + 0.01 * i for i in range(48)], [1.2 + 0.9 * i for i in range(48)]
CASES = [  # family, its name in transformers, config.json, rope_scaling, length of the text
    (qwen2, "Qwen2", QWEN, {"type": "yarn", "factor": 4.0, "beta_slow": 2}, 40000),
    (qwen2, "Qwen2", QWEN, {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.7}, 10),
    (qwen2, "Qwen2", QWEN, {"rope_type": "yarn", "factor": 8.0, "truncate": False}, 10),
    (qwen2, "Qwen2", QWEN, {"type": "dynamic", "factor": 2.0}, 30000),
    (qwen2, "Qwen2", QWEN, {"type": "dynamic", "factor": 2.0}, 50000),
    (phi3, "Phi3", PHI, {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}, 4096),
    (phi3, "Phi3", PHI, {"type": "su", "short_factor": SHORT, "long_factor": LONG}, 4097),
]


@pytest.mark.parametrize(("family", "name", "config", "scaling", "length"), CASES)
def test_angles_are_those_of_transformers(family, name, config, scaling, length):
    options = family({**config, "rope_scaling": scaling})
    rotary = Rotary(options["rotary_dim"], options["rotary_base"], options["rotary_scaling"])
    if scaling.get("type") == "su":  # which transformers 5 refuses
        scaling = {**scaling, "type": "longrope"}
    theirs = getattr(transformers, f"{name}Config")(**config, rope_scaling=dict(scaling))
    module = getattr(transformers.models, name.lower())
    embedding = getattr(module, f"modeling_{name.lower()}")
    embedding = getattr(embedding, f"{name}RotaryEmbedding")(theirs)
    positions = range(length - 3, length)
    expected = embedding(torch.zeros(1), torch.tensor([positions]))
    found = cos_sin(rotary, positions, torch.float32, torch.device("cpu"))
    for own, its in zip(found, expected, strict=True):
        # angles of thousands of radians: float32 has them to a thousandth
        assert_close(own, its[0, :, : own.size(-1)], atol=5e-3, rtol=0)


def test_dynamic_by_hand():
    """Twice as far at twice the length, in the slowest pair; as it was up to the original length."""
    plain = Rotary(4, 100.0)
    rule = '{"rope_type": "dynamic", "factor": 1, "original_max_position_embeddings": 8}'
    dynamic = Rotary(4, 100.0, rule)
    x = torch.randn(1, 1, 1, 4)
    assert torch.equal(dynamic(x, range(7, 8)), plain(x, range(7, 8)))
    # at 16 tokens the ratio of lengths is 2: the base grows by 2 ** (4 / 2), its root by 2
    assert_close(dynamic(x, range(15, 16)), Rotary(4, 400.0)(x, range(15, 16)))
