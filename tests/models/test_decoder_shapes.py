"""Decoders other than the paper's: rotary positions, shared key/value heads, int8, options."""

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.modules import CausalBias, JointAttention, Rotary
from longmem_fairseq.modules.causal_attention import causal_attention
from longmem_fairseq.modules.rotary import cos_sin
from tests.helpers.small_models import SEGMENT, SIZES, document, read

HEADS, KV_HEADS, HEAD_DIM, EMBED_DIM, TOKENS = 6, 2, 8, 20, 7
GROUP = HEADS // KV_HEADS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def bias(**options):
    return CausalBias(**options)(TOKENS, torch.float32, torch.device("cpu"))


def test_sliding_window_by_hand():
    for window in (1, 3, 99):
        hidden = bias(num_heads=2, window=window).isinf()
        for query in range(TOKENS):
            for key in range(TOKENS):
                assert hidden[1, query, key] == (key > query or key <= query - window)
    assert bias(window=3).shape == (1, TOKENS, TOKENS)
    module = CausalBias(window=3)
    assert torch.equal(
        module(2, torch.float32, torch.device("cpu"), num_before=5), bias(window=3)[:, 5:]
    )


def test_rotary_by_hand():
    """As rotations of complex numbers, in the first channels of a head."""
    rotary, x = Rotary(4, base=100.0), torch.randn(1, 1, 3, 6)
    turned = rotary(x, range(3, 9, 2))
    for token, position in enumerate((3, 5, 7)):
        for pair, frequency in enumerate((1.0, 0.1)):
            number = complex(x[0, 0, token, pair], x[0, 0, token, pair + 2])
            angle = torch.tensor(position * frequency)
            expected = number * complex(angle.cos(), angle.sin())
            found = complex(turned[0, 0, token, pair], turned[0, 0, token, pair + 2])
            assert abs(found - expected) < 1e-5
    assert torch.equal(turned[..., 4:], x[..., 4:])


LLAMA3 = (
    '{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, '
    '"original_max_position_embeddings": 64}'
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", ["", '{"rope_type": "linear", "factor": 8}', LLAMA3])
def test_layers_share_the_angles_of_rotary(scaling, dtype):
    """Whether they are computed or there already, in whatever mode they were. The gradient is that of
    the formula."""
    cos_sin.cache_clear()
    x = torch.randn(2, 3, 5, 8, dtype=dtype)
    channels = torch.arange(0, 6, 2).float()
    frequencies = 1.0 / (500.0 ** (channels / 6))
    if "linear" in scaling:
        frequencies = frequencies / 8.0
    if "llama3" in scaling:
        kept = ((64.0 * frequencies / (2 * torch.pi) - 1.0) / 3.0).clamp(0, 1)
        frequencies = (1 - kept) * frequencies / 8.0 + kept * frequencies
    for positions in (range(40, 45), range(7, 8), range(0, 5)):
        angles = torch.tensor(positions).float().view(-1, 1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        plain = x.clone().requires_grad_()
        first, second = plain[..., :3], plain[..., 3:6]
        turned = [first * cos - second * sin, second * cos + first * sin]
        expected = torch.cat([*turned, plain[..., 6:]], dim=-1).to(dtype)
        tolerance = 1e-6 if dtype == torch.float32 else 0.02
        with torch.inference_mode():
            found = Rotary(6, 500.0, scaling)(x, positions)
        assert_close(found, expected.detach(), atol=tolerance, rtol=tolerance)
        trained = x.clone().requires_grad_()
        found = Rotary(6, 500.0, scaling)(trained, positions)  # as another layer's
        assert_close(found, expected, atol=tolerance, rtol=tolerance)
        weights = torch.randn_like(x)
        (expected * weights).sum().backward()
        (found * weights).sum().backward()
        assert_close(trained.grad, plain.grad, atol=2 * tolerance, rtol=tolerance)
    assert (cos_sin.cache_info().misses, cos_sin.cache_info().hits) == (3, 3)


@pytest.mark.parametrize(
    "scaling", ["linear", "{}", '{"rope_type": "yarn"}', '{"rope_type": "linear"}', "[1]"]
)
def test_unknown_scalings_are_refused(scaling):
    with pytest.raises(ValueError, match="--rotary-scaling .* must be JSON with a rope_type of"):
        Rotary(4, scaling=scaling)


def attentions(**options):
    """One with shared key/value heads, and one that has their copies."""
    shape = {"head_dim": HEAD_DIM, "rotary": Rotary(HEAD_DIM), "has_memory": True, **options}
    grouped = JointAttention(EMBED_DIM, HEADS, num_kv_heads=KV_HEADS, **shape)
    nn.init.normal_(grouped.memory_bias)
    copied = JointAttention(EMBED_DIM, HEADS, **shape)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        rows = state[name].unflatten(0, (KV_HEADS, HEAD_DIM))
        state[name] = rows.repeat_interleave(GROUP, dim=0).flatten(0, 1)
    copied.load_state_dict(state)
    return grouped, copied


def local_attention(tokens=300):
    """Queries in two blocks, keys and values of fewer heads, and a bias."""
    queries, keys, values = (
        torch.randn(2, n, tokens, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    return queries, keys, values, CausalBias(HEADS)(tokens, torch.float32, queries.device)


@pytest.mark.parametrize("is_cuda", [False, True])
def test_groups_attend_as_their_repeated_heads_do(is_cuda, monkeypatch):
    queries, keys, values, bias = local_attention()
    repeated = [t.repeat_interleave(GROUP, dim=1) for t in (keys, values)]
    expected = causal_attention(queries, *repeated, bias)
    asked, attention = [], F.scaled_dot_product_attention

    def recorded(queries, keys, values, enable_gqa, **others):
        asked.append((keys.size(1), values.size(1), enable_gqa))
        return attention(queries, keys, values, enable_gqa=enable_gqa, **others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    monkeypatch.setattr(torch.Tensor, "is_cuda", is_cuda)  # where these tensors say they are
    assert_close(causal_attention(queries, keys, values, bias), expected)
    assert asked == 2 * [(HEADS, HEADS, False) if is_cuda else (KV_HEADS, KV_HEADS, True)]


@pytest.mark.parametrize("kind", ["ALiBi", "window"])
def test_one_token_attends_as_the_last_of_many_does(kind):
    *tensors, bias = local_attention(tokens=30)
    if kind == "window":
        bias = CausalBias(window=7)(30, torch.float32, bias.device)
    expected = causal_attention(*tensors, bias)[:, :, -1:]
    queries, keys, values = tensors
    assert_close(causal_attention(queries[:, :, -1:], keys, values, bias[:, -1:]), expected)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("tokens", [1, 3, 256, 300, 0])
@pytest.mark.parametrize("before", [0, 5])
def test_attention_without_a_bias_is_that_with_a_dense_mask(tokens, before, softcap):
    queries = torch.randn(2, HEADS, tokens, HEAD_DIM)
    keys, values = torch.randn(2, 2, KV_HEADS, before + tokens, HEAD_DIM)
    future = torch.full((1, tokens, before + tokens), -torch.inf).triu(before + 1)
    expected = causal_attention(queries, keys, values, future, softcap)
    assert_close(causal_attention(queries, keys, values, None, softcap), expected)


def test_only_what_needs_a_bias_has_one():
    cpu = torch.device("cpu")
    assert CausalBias()(9, torch.float32, cpu, num_before=3) is None
    assert CausalBias(window=9)(9, torch.float32, cpu) is None
    assert CausalBias(window=8)(9, torch.float32, cpu).shape == (1, 9, 9)
    assert CausalBias(4)(9, torch.float32, cpu).shape == (4, 9, 9)


@pytest.mark.gpu
def test_groups_on_a_gpu_do_without_all_scores():
    tensors = local_attention()
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # an error where this cannot be
        attended = causal_attention(*(tensor.cuda() for tensor in tensors))
    assert_close(attended.cpu(), causal_attention(*tensors), atol=1e-3, rtol=1e-3)


def bank(num_heads, keys, values):
    stored = MemoryBank(2, num_heads, HEAD_DIM, memory_size=32, chunk_size=2, k=4)
    repeats = num_heads // KV_HEADS
    stored.write(*(t.repeat_interleave(repeats, dim=1) for t in (keys, values)))
    return stored


@torch.no_grad()
@pytest.mark.parametrize("memory_distance", [0, 40])
def test_grouped_heads_are_copies_that_retrieve_for_themselves(memory_distance):
    grouped, copied = attentions(memory_distance=memory_distance)
    x, memory = torch.randn(2, TOKENS, EMBED_DIM), torch.randn(2, 2, KV_HEADS, 24, HEAD_DIM)
    few, many = bank(KV_HEADS, *memory), bank(HEADS, *memory)
    found = grouped(x, bias(), few.retrieve)
    assert_close(found.output, copied(x, bias(), many.retrieve).output)
    assert found.keys.shape == (2, KV_HEADS, TOKENS, HEAD_DIM)
    assert not torch.allclose(found.output, grouped(x, bias()).output, atol=1e-2)


YARN = (
    '{"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "beta_fast": 32, '
    '"beta_slow": 1, "truncate": true, "attention_factor": 1.3}'
)


@torch.no_grad()
@pytest.mark.parametrize("scaling", ["", YARN])
def test_a_memory_at_a_distance_is_one_of_rotated_keys(scaling):
    """As if all that was retrieved lay so many tokens before the query."""
    distance = 40
    module, _ = attentions(memory_distance=distance, rotary=Rotary(HEAD_DIM, scaling=scaling))
    x, memory = torch.randn(2, TOKENS, EMBED_DIM), torch.randn(2, KV_HEADS, 24, HEAD_DIM)
    asked = []
    module(x, bias(), lambda queries: asked.append(queries))
    queries = module.q_proj(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    asked = asked[0].view_as(queries)
    keys = memory.repeat_interleave(GROUP, dim=1)
    for position in (0, 100):
        at = [range(first, first + 1) for first in (position + distance, position)]
        scores = module.rotary(queries, at[0]) @ module.rotary(keys, at[1]).transpose(2, 3)
        assert_close(asked @ keys.transpose(2, 3), scores, atol=1e-3, rtol=0)


@torch.no_grad()
def test_shared_retrieval_is_that_of_the_mean_query():
    module, _ = attentions(memory_heads="shared")
    x, memory = torch.randn(2, TOKENS, EMBED_DIM), torch.randn(2, 2, KV_HEADS, 24, HEAD_DIM)
    few, found = bank(KV_HEADS, *memory), []

    def retrieve(queries):
        assert queries.shape == (2, KV_HEADS, TOKENS, HEAD_DIM)
        found.append((queries, few.retrieve(queries)))
        return found[0][1]

    output = module(x, bias(), retrieve).output
    queries = module.q_proj(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    assert_close(found[0][0], queries.unflatten(1, (KV_HEADS, GROUP)).mean(dim=2))
    keys, values = found[0][1].tokens()  # B x H' x T x K x D
    keys, values = (t.repeat_interleave(GROUP, dim=1) for t in (keys, values))
    weights = torch.einsum("bhtd,bhtkd->bhtk", queries, keys) * HEAD_DIM**-0.5
    memory = torch.einsum("bhtk,bhtkd->bhtd", weights.softmax(-1), values)
    module.out_proj, merge = nn.Identity(), lambda heads: heads.transpose(1, 2).flatten(2)
    local = module(x, bias()).output
    gate = module.gate.repeat_interleave(HEAD_DIM)
    expected = (1 - gate) * local + gate * merge(memory)
    assert_close(module(x, bias(), lambda q: few.retrieve(q)).output, expected)
    assert output.shape == x.shape


def test_a_longmem_on_an_int8_backbone(build):
    options = {"sidenet_init": "identity", "perturb": True}
    exact, small = build(**options), build(backbone_dtype="int8", **options)
    tokens = document(1, 3 * SEGMENT, rows=2)
    expected, found = read(exact, tokens), read(small, tokens)
    assert 0 < (found - expected).abs().mean() < 0.02 * expected.abs().mean()
    backbone = small.decoder.backbone
    assert backbone.layers[0].fc1.weight.dtype == torch.int8
    assert backbone.output_projection.weight.dtype == torch.float32
    assert set(small.state_dict()) == set(exact.state_dict())
    exact.load_state_dict(small.state_dict())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_kv_heads": 3}, "--num-attention-heads (4) must be a multiple of --num-kv-heads (3)"),
        ({"num_attention_heads": 5}, "--embed-dim (32) must be a multiple of"),
        ({"sliding_layers": [4]}, "--sliding-layers (4) must be between 0 and 3"),
        ({"sliding_layers": [1]}, "--sliding-layers ([1]) and --sliding-window (0) go together"),
        ({"sliding_window": 3}, "--sliding-layers ([]) and --sliding-window (3) go together"),
        (
            {"positions": "learned", "max_positions": 7},
            "--tokens-per-sample (8) must not exceed the 7 positions that",
        ),
        ({"positions": "rotary", "rotary_dim": 3}, "--rotary-dim (3) must be even"),
        ({"rotary_dim": 10}, "--rotary-dim (10) must be between 0 and the 8 channels of a head"),
        ({"num_kv_heads": -4}, "--num-kv-heads (-4) must be between 0 and 4"),
        ({"head_dim": 2**30}, "--head-dim (1073741824) must be between 0 and 1,048,576"),
        ({"ffn_dim": 2**45}, "--ffn-dim (35184372088832) must be between 0 and 1,048,576"),
        ({"max_positions": 2**50}, "--max-positions (1125899906842624) must be between 0 and"),
    ],
)
def test_shapes_that_do_not_fit(task, options, message):
    cfg = OmegaConf.structured(LongMemBackboneConfig(**{**SIZES, **options}))
    with pytest.raises(ValueError) as error:
        BackboneDecoder(cfg, task.source_dictionary, SEGMENT)
    assert str(error.value).startswith(message)


def test_a_distance_needs_rotary_positions(build):
    with pytest.raises(ValueError, match=r"--memory-distance \(5\) must be 0, or positive with a"):
        build(LongMemConfig, memory_distance=5)
