"""longmem_fairseq/modules against the formulas, in float64 and written out plainly."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.memory.chunk_store import ChunkStore, Placement
from longmem_fairseq.modules import CausalBias, DecoderBlock, JointAttention, alibi_slopes
from longmem_fairseq.modules.joint_attention import smear

STREAMS, TOKENS, HEADS, HEAD_DIM = 3, 5, 2, 4
CHUNKS, CHUNK_SIZE = 3, 2  # that each query has retrieved
EMBED_DIM = HEADS * HEAD_DIM


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


@pytest.mark.parametrize(
    "num_heads, slopes",
    [
        (4, [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),
        (12, [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_slopes_by_hand(num_heads, slopes):
    assert_close(alibi_slopes(num_heads), slopes, rtol=1e-12, atol=0)


def test_alibi_bias_is_its_formula_for_segments_of_any_length():
    biases = CausalBias(4)
    for num_tokens in (3, 7, 5, 1, 0):  # longer and shorter than the one that is kept
        bias = biases(num_tokens, torch.float32, torch.device("cpu"))
        assert bias.shape == (4, num_tokens, num_tokens)
        for head, slope in enumerate([1 / 4, 1 / 16, 1 / 64, 1 / 256]):
            for query in range(num_tokens):
                for key in range(num_tokens):
                    expected = slope * (key - query) if key <= query else float("-inf")
                    assert bias[head, query, key] == expected


def test_half_precision_bias_comes_from_float32_slopes():
    biases = CausalBias(6)
    expected = biases(300, torch.float32, torch.device("cpu")).bfloat16()
    assert torch.equal(biases(300, torch.bfloat16, torch.device("cpu")), expected)
    bias = biases(300, torch.float32, torch.device("cpu"))
    assert_close(bias[0, 299, 0], torch.tensor(-299 / 4))


def naive_local(module, x, slopes):
    """Loops over streams, heads and queries; B x H x T x D before the output projection."""
    source = naive_smear(x) if module.smeared_keys else x
    q, k, v = module.q_proj(x), module.k_proj(source), module.v_proj(x)
    heads = []
    for row in range(x.size(0)):
        for head, slope in enumerate(slopes):
            part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            queries = []
            for i in range(x.size(1)):
                scores = [
                    q[row, i, part] @ k[row, j, part] / HEAD_DIM**0.5 + slope * (j - i)
                    for j in range(i + 1)
                ]
                weights = torch.stack(scores).softmax(0)
                queries.append(weights @ v[row, : i + 1, part])
            heads.append(torch.stack(queries))
    return torch.stack(heads).view(x.size(0), len(slopes), x.size(1), HEAD_DIM)


def naive_smear(x):
    half = x.size(-1) // 2
    rows = []
    for t in range(x.size(1)):
        before = x[:, t - 1, :half] if t else torch.zeros_like(x[:, 0, :half])
        rows.append(torch.cat([before, x[:, t, half:]], dim=-1))
    return torch.stack(rows, dim=1)


def naive_memory(queries, found):
    """Softmax over the valid ones alone; zeros where there are none."""
    keys, values = (tensor.to(queries.dtype) for tensor in found.tokens())
    output = []
    for q, k, v, ok in zip(
        queries.flatten(0, 2),
        keys.flatten(0, 2),
        values.flatten(0, 2),
        found.valid.flatten(0, 2),
        strict=True,
    ):
        if not ok.any():
            output.append(torch.zeros_like(q))
            continue
        weights = (k[ok] @ q / q.size(0) ** 0.5).softmax(0)
        output.append(weights @ v[ok])
    return torch.stack(output).view_as(queries)


def merged(heads):
    return heads.transpose(1, 2).reshape(STREAMS, TOKENS, EMBED_DIM)


def retrieved():
    """Row 0 found everything, row 1 a part (differently for each query), row 2 nothing."""
    shape = (STREAMS, HEADS, TOKENS, CHUNKS)
    rows = torch.arange(STREAMS * HEADS * TOKENS * CHUNKS)
    store = ChunkStore((1, 1, len(rows)), CHUNK_SIZE, HEAD_DIM, "float32", Placement())
    store.write(rows, *torch.randn(2, len(rows), CHUNK_SIZE, HEAD_DIM))
    chunks = rows.view(shape).clone()
    chunks[1][torch.rand(shape[1:]) < 0.5] = -1
    chunks[1, 0, 0] = -1  # a query that found nothing, in a row that found something
    chunks[1, :, 1:, 0] = 0
    chunks[2] = -1
    return Retrieved(chunks, rows.view(shape), store)


def attention(**options):
    module = JointAttention(EMBED_DIM, HEADS, **options).double()
    if module.memory_bias is not None:
        nn.init.normal_(module.memory_bias)
    bias = CausalBias(HEADS)(TOKENS, torch.float64, torch.device("cpu"))
    return module, bias, torch.randn(STREAMS, TOKENS, EMBED_DIM, dtype=torch.float64)


# the whole segment at once, blocks of one query, and two whose last one is smaller
@pytest.mark.parametrize("query_block", [256, 1, 3])
@pytest.mark.parametrize("smeared_keys", [False, True])
def test_local_attention_is_a_plain_softmax(smeared_keys, query_block, monkeypatch):
    monkeypatch.setattr("longmem_fairseq.modules.causal_attention.QUERY_BLOCK", query_block)
    module, bias, x = attention(smeared_keys=smeared_keys)
    expected = module.out_proj(merged(naive_local(module, x, alibi_slopes(HEADS))))
    output = module(x, bias)
    assert_close(output.output, expected)
    source = naive_smear(x) if smeared_keys else x
    for head in range(HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        assert_close(output.keys[:, head], module.k_proj(source)[..., part])
        assert_close(output.values[:, head], module.v_proj(x)[..., part])


@pytest.mark.parametrize("multiplier", [1.0, 20.0])
def test_fused_attention_is_two_softmaxes_and_a_gate(multiplier):
    module, bias, x = attention(has_memory=True, gate_lr_multiplier=multiplier)
    with torch.no_grad():
        module.memory_bias /= multiplier
    found = retrieved()
    seen = []

    def retrieve(queries):
        seen.append(queries)
        return found

    output = module(x, bias, retrieve).output
    queries = module.q_proj(x).view(STREAMS, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
    assert_close(seen[0], queries)  # unscaled
    local = naive_local(module, x, alibi_slopes(HEADS))
    memory = naive_memory(queries, found)
    gate = torch.sigmoid(module.memory_bias * multiplier).view(1, -1, 1, 1)
    anything = found.valid.any(-1, keepdim=True)
    fused = torch.where(anything, (1 - gate) * local + gate * memory, local)
    assert_close(output, module.out_proj(merged(fused)))
    assert not torch.allclose(fused[0], local[0]) and torch.equal(fused[2], local[2])


def test_gradients_of_fused_attention_are_those_of_the_plain_version():
    module, bias, x = attention(has_memory=True)
    x.requires_grad_()
    found = retrieved()
    parameters = [x, *module.parameters()]
    weights = torch.randn(STREAMS, TOKENS, EMBED_DIM, dtype=torch.float64)
    output = module(x, bias, lambda queries: found).output
    gradients = torch.autograd.grad((output * weights).sum(), parameters)
    queries = module.q_proj(x).view(STREAMS, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
    local = naive_local(module, x, alibi_slopes(HEADS))
    gate = module.gate.view(1, -1, 1, 1)
    fused = (1 - gate) * local + gate * naive_memory(queries, found)
    fused = torch.where(found.valid.any(-1, keepdim=True), fused, local)
    expected = module.out_proj(merged(fused))
    expected = torch.autograd.grad((expected * weights).sum(), parameters)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert_close(gradient, reference)


def test_nothing_found_is_local_attention_without_nan():
    module, bias, x = attention(has_memory=True)
    x.requires_grad_()
    found = retrieved()
    found.chunks.fill_(-1)
    output = module(x, bias, lambda queries: found).output
    local = module(x, bias).output
    assert torch.equal(output, local)
    assert torch.equal(module(x, bias, lambda queries: None).output, local)
    weights = torch.randn_like(output)
    gradient = torch.autograd.grad((output * weights).sum(), [x, module.memory_bias])
    expected = torch.autograd.grad((local * weights).sum(), x)[0]
    assert_close(gradient[0], expected)
    assert torch.equal(gradient[1], torch.zeros_like(module.memory_bias))


def test_a_closed_gate_is_no_memory_and_an_open_one_nothing_else():
    module, bias, x = attention(has_memory=True)
    found = retrieved()
    with torch.no_grad():
        module.memory_bias.fill_(-1e4)
        assert torch.equal(module.gate, torch.zeros(HEADS, dtype=torch.float64))
        assert torch.equal(module(x, bias, lambda q: found).output, module(x, bias).output)
        module.memory_bias.fill_(1e4)
        queries = module.q_proj(x).view(STREAMS, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
        memory = module.out_proj(merged(naive_memory(queries, found)))
        output = module(x, bias, lambda q: found).output
    assert_close(output[0], memory[0])


def test_smear_by_hand():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]]])
    expected = [[[0.0, 0.0, 3.0, 4.0], [1.0, 2.0, 7.0, 8.0], [5.0, 6.0, 11.0, 12.0]]]
    assert smear(x).tolist() == expected
    assert smear(x[:, :0]).shape == (1, 0, 4)


@pytest.mark.parametrize(
    "activation, function",
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        (
            "gelu_tanh",
            lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
        ),
        ("relu", lambda x: x.clamp(min=0)),
    ],
)
def test_block_is_parallel_with_one_norm_and_a_residual_from_outside(activation, function):
    block = DecoderBlock(EMBED_DIM, HEADS, activation=activation, layer_norm_eps=1e-3).double()
    nn.init.normal_(block.layer_norm.weight)
    _, bias, x = attention()
    outside = torch.randn_like(x)
    variance = x.var(-1, unbiased=False, keepdim=True)
    normed = (x - x.mean(-1, keepdim=True)) / (variance + 1e-3).sqrt()
    normed = normed * block.layer_norm.weight + block.layer_norm.bias
    local = merged(naive_local(block.self_attn, normed, alibi_slopes(HEADS)))
    mlp = block.fc2(function(block.fc1(normed)))
    expected = x + block.self_attn.out_proj(local) + mlp
    output = block(x, bias)
    assert_close(output.x, expected)
    assert_close(block(x, bias, cross_network_residual=outside).x, expected + outside)
    assert_close(output.keys, block.self_attn(normed, bias).keys)
