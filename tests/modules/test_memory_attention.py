"""memory_attention against one dense softmax for each query."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.memory import DTYPES, MemoryBank, Retrieved
from longmem_fairseq.memory.chunk_store import ChunkStore, Placement
from longmem_fairseq.modules import memory_attention, memory_weights
from longmem_fairseq.modules.memory_attention import GATHER_BUDGET

STREAMS, HEADS, TOKENS, HEAD_DIM = 3, 2, 5, 4
CHUNKS, CHUNK_SIZE = 3, 2  # retrieved by each query
STORED = 7


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def retrieved(dtype="float32", storage="device"):
    """Row 0 found everything, row 1 a part (differently for each query), row 2 nothing."""
    store = ChunkStore((1, 1, STORED), CHUNK_SIZE, HEAD_DIM, dtype, Placement(storage))
    store.write(torch.arange(STORED), *torch.randn(2, STORED, CHUNK_SIZE, HEAD_DIM))
    rows = torch.randint(STORED, (STREAMS, HEADS, TOKENS, CHUNKS))
    chunks = rows.clone()
    chunks[1][torch.rand(chunks.shape[1:]) < 0.5] = -1  # in any place
    chunks[1, 0, 0] = -1  # a query that found nothing, in a row that found something
    chunks[1, 1, 0, 1] = 0
    chunks[2] = -1
    return Retrieved(chunks, rows, store)


def dense(queries, found, bias=None):
    """Softmax over the valid ones alone, in float64; zeros where there are none."""
    if bias is None:
        bias = torch.zeros(found.valid.shape)
    keys, values = (tensor.double() for tensor in found.tokens())
    flat = (t.flatten(0, 2) for t in (queries.double(), keys, values, found.valid, bias.double()))
    output = []
    for query, key, value, valid, more in zip(*flat, strict=True):
        weights = (key[valid] @ query / HEAD_DIM**0.5 + more[valid]).softmax(0)
        output.append(weights @ value[valid])  # 0 for no weights
    return torch.stack(output).view(queries.shape)


def make_queries(dtype=torch.float32):
    shape = (STREAMS, HEADS, TOKENS, HEAD_DIM)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def make_bias(dtype=torch.float32):
    shape = (STREAMS, HEADS, TOKENS, CHUNKS * CHUNK_SIZE)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def check(found, queries, tolerance, bias=None):
    output, expected = memory_attention(queries, found, bias), dense(queries, found, bias)
    assert output.dtype == queries.dtype
    assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    assert not output[2].any() and not output[1, 0, 0].any() and output[1, 1, 0].any()
    weights = torch.randn(output.shape)
    wanted = [queries] if bias is None else [queries, bias]
    gradients = torch.autograd.grad((output * weights).sum(), wanted)
    references = torch.autograd.grad((expected * weights).sum(), wanted)
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.dtype == queries.dtype and not gradient[2].any()
        assert_close(gradient, reference, rtol=tolerance, atol=tolerance)


# all at once, one query at a time, and two of them (the last block is smaller)
@pytest.mark.parametrize("budget", [2**21, 1, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradient(dtype, budget, monkeypatch):
    monkeypatch.setitem(GATHER_BUDGET, "cpu", budget)
    assert 2 * CHUNKS * CHUNK_SIZE * HEAD_DIM == 48  # numbers of a query
    check(retrieved(dtype), make_queries(), 1e-5)
    check(retrieved(dtype), make_queries(torch.float64), 1e-10)
    check(retrieved(dtype), make_queries(torch.float64), 1e-10, make_bias(torch.float64))
    check(retrieved(dtype), make_queries(), 1e-5, make_bias())


@pytest.mark.parametrize("storage", ["host", "disk"])
def test_memory_that_lives_elsewhere(storage):
    check(retrieved(storage=storage), make_queries(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_queries_are_rounded_only_at_the_end(dtype):
    found, queries = retrieved("float32"), make_queries(dtype)
    output = memory_attention(queries, found)
    assert torch.equal(output, memory_attention(queries.float(), found).to(dtype))
    weights = torch.randn(output.shape).to(dtype)
    gradient = torch.autograd.grad(output, queries, weights)[0]
    wide = queries.detach().float().requires_grad_()
    expected = torch.autograd.grad(memory_attention(wide, found), wide, weights.float())[0]
    assert torch.equal(gradient, expected.to(dtype))


def test_autocast_changes_nothing():
    found, queries = retrieved("bfloat16"), make_queries()
    with torch.autocast("cpu", torch.bfloat16):
        output = memory_attention(queries, found)
        output.sum().backward()
    gradient = queries.grad.clone()
    expected = memory_attention(queries, found)
    assert torch.equal(output, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), queries)[0])


@pytest.mark.parametrize("budget", [2**21, 1])
def test_gradients_are_those_of_finite_differences(budget, monkeypatch):
    monkeypatch.setitem(GATHER_BUDGET, "cpu", budget)
    found, inputs = retrieved(), (make_queries(torch.float64), make_bias(torch.float64))
    assert torch.autograd.gradcheck(lambda q, bias: memory_attention(q, found, bias), inputs)


def test_queries_laid_out_anyhow():
    """As attention makes them, and an incoming gradient that is one number for all."""
    found, queries = retrieved(), torch.randn(STREAMS, TOKENS, HEADS, HEAD_DIM)
    turned = queries.transpose(1, 2).requires_grad_()
    output = memory_attention(turned, found)
    assert torch.equal(output, memory_attention(turned.detach().contiguous(), found))
    output.sum().backward()
    expected = torch.autograd.grad(dense(turned, found).sum(), turned)[0]
    assert_close(turned.grad, expected, rtol=1e-5, atol=1e-5)
    one_head = Retrieved(found.chunks[:, :1], found.rows[:, :1], found.store)
    single = queries[:, :, :1].transpose(1, 2)
    assert_close(memory_attention(single, one_head), dense(single, one_head).float())


def test_no_queries():
    found = retrieved()
    none = Retrieved(found.chunks[:, :, :0], found.rows[:, :, :0], found.store)
    queries = make_queries()[:, :, :0]
    output = memory_attention(queries, none)
    assert output.shape == queries.shape
    output.sum().backward()


def test_large_scores_do_not_overflow():
    store = ChunkStore((1, 1, 1), 2, 2, "float32", Placement())
    keys = torch.tensor([[[1e4, 1e4], [-1e4, 0.0]]])
    store.write(torch.zeros(1, dtype=torch.long), keys, torch.tensor([[[3.0, 4.0], [5.0, 6.0]]]))
    queries = torch.full((1, 1, 1, 2), 1e4, requires_grad=True)
    place = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    output = memory_attention(queries, Retrieved(place, place, store))
    output.sum().backward()
    assert output.flatten().tolist() == [3.0, 4.0]
    assert queries.grad.flatten().tolist() == [0.0, 0.0]


def test_masked_chunks_take_no_part_whatever_they_hold():
    found, queries = retrieved(), make_queries()
    other = found.rows.clone()
    other[found.chunks < 0] = (other[found.chunks < 0] + 3) % STORED
    assert torch.equal(
        memory_attention(queries, found), memory_attention(queries, found._replace(rows=other))
    )


@pytest.mark.parametrize("storage", ["device", "disk"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_written_before_the_backward_pass_is_noticed(dtype, storage):
    bank = MemoryBank(1, HEADS, HEAD_DIM, 8, 2, 4, dtype=dtype, storage=storage)
    bank.write(*torch.randn(2, 1, HEADS, 8, HEAD_DIM))
    queries = torch.randn(1, HEADS, 3, HEAD_DIM, requires_grad=True)
    outputs = [memory_attention(queries, bank.retrieve(queries)) for _ in range(2)]
    outputs[0].sum().backward()
    bank.write(*torch.randn(2, 1, HEADS, 2, HEAD_DIM))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs[1].sum().backward()


def test_tokens_that_wait_and_a_reset_do_no_harm():
    bank = MemoryBank(1, HEADS, HEAD_DIM, 8, 2, 4)
    bank.write(*torch.randn(2, 1, HEADS, 8, HEAD_DIM))
    queries = torch.randn(1, HEADS, 3, HEAD_DIM, requires_grad=True)
    found = bank.retrieve(queries)
    expected = torch.autograd.grad(memory_attention(queries, found).sum(), queries)[0]
    output = memory_attention(queries, found)
    bank.write(*torch.randn(2, 1, HEADS, 1, HEAD_DIM))
    bank.reset()
    assert torch.equal(torch.autograd.grad(output.sum(), queries)[0], expected)


@pytest.mark.parametrize("missing", [0, 2])
def test_weights_are_those_of_the_attention(missing):
    """With chunks of one token, whose values are then summed; and scores that searching found."""
    bank = MemoryBank(1, HEADS, HEAD_DIM, 8, 1, 4)
    bank.write(*torch.randn(2, 1, HEADS, 4 - missing, HEAD_DIM))
    queries = torch.randn(1, HEADS, 3, HEAD_DIM)
    found = bank.retrieve(queries)
    weights, scores = memory_weights(queries, found)
    _, values = found.tokens()
    attended = (weights.unsqueeze(-1) * values).sum(dim=-2)
    assert_close(attended, memory_attention(queries, found))
    assert_close(weights.sum(dim=-1), torch.ones(1, HEADS, 3))
    assert (weights[..., 4 - missing :] == 0).all()
    expected = queries @ bank.ring.chunk_keys[:, :, : 4 - missing].transpose(2, 3)
    expected = expected.sort(dim=-1, descending=True).values
    assert_close(scores[..., : 4 - missing], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["device", "host"])
def test_output_and_gradient_on_a_gpu(storage):
    found = retrieved()
    store = ChunkStore(
        (1, 1, STORED),
        CHUNK_SIZE,
        HEAD_DIM,
        "float32",
        Placement(storage, torch.device("cuda")),
    )
    store.write(torch.arange(STORED), *found.store.gather(torch.arange(STORED)))
    queries = make_queries()
    expected = memory_attention(queries, found)
    reference = torch.autograd.grad(expected.sum(), queries)[0]
    there = queries.detach().cuda().requires_grad_()
    output = memory_attention(there, Retrieved(found.chunks.cuda(), found.rows.cuda(), store))
    output.sum().backward()
    assert_close(output.cpu(), expected)
    assert_close(there.grad.cpu(), reference)
