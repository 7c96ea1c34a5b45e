"""MemoryBank by hand; test_bank_against_lists.py has it against the slow obvious version."""

import copy

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.memory import MemoryBank, check_sizes


def numbered(start, stop, streams=1):
    """Keys and values B x 1 x T x 1 holding the numbers start to stop."""
    tokens = torch.arange(start, stop, dtype=torch.float).view(1, 1, -1, 1)
    return tokens.repeat(streams, 1, 1, 1), -tokens.repeat(streams, 1, 1, 1)


def found_tokens(bank, row=0, query=1.0):
    found = bank.retrieve(torch.full((bank.layout.num_streams, 1, 1, 1), query))
    keys, values, valid = (tensor[row, 0, 0] for tensor in (*found.tokens(), found.valid))
    assert torch.equal(keys, -values)
    return keys[valid].flatten().tolist()


@pytest.mark.parametrize("index", ["flat", "torch", "Flat"])
def test_the_oldest_chunks_go_first(index):
    bank = MemoryBank(1, 1, 1, memory_size=8, chunk_size=2, k=8, index=index)
    for start in range(0, 10, 2):
        bank.write(*numbered(start, start + 2))
    assert found_tokens(bank) == [8, 9, 6, 7, 4, 5, 2, 3]  # best first: larger keys score more
    assert found_tokens(bank, query=-1) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert bank.num_written == [5] and bank.num_chunks == [4]


@pytest.mark.parametrize("index", ["flat", "torch", "Flat"])
def test_a_segment_larger_than_the_bank_leaves_its_end(index):
    bank = MemoryBank(1, 1, 1, memory_size=8, chunk_size=2, k=8, index=index)
    bank.write(*numbered(0, 2))
    bank.write(*numbered(2, 23))
    assert found_tokens(bank, query=-1) == [14, 15, 16, 17, 18, 19, 20, 21]
    bank.write(*numbered(23, 24))
    assert found_tokens(bank, query=-1) == [16, 17, 18, 19, 20, 21, 22, 23]


def test_a_partial_chunk_waits_for_its_tokens():
    bank = MemoryBank(1, 1, 1, memory_size=16, chunk_size=4, k=16)
    bank.write(*numbered(0, 3))
    assert bank.retrieve(torch.ones(1, 1, 1, 1)) is None
    bank.write(*numbered(3, 6))
    assert found_tokens(bank) == [0, 1, 2, 3]
    assert bank.num_tokens == [4] and bank.num_pending == [2]
    bank.write(*numbered(6, 8))
    assert found_tokens(bank, query=-1) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_padding_never_enters():
    bank = MemoryBank(2, 1, 1, memory_size=8, chunk_size=2, k=8)
    valid = torch.tensor([[True, False, True, True, False, True], [False] * 6])
    bank.write(*numbered(1, 7, streams=2), valid)
    assert found_tokens(bank, row=0, query=-1) == [1, 3, 4, 6]
    assert found_tokens(bank, row=1) == []
    assert bank.num_tokens == [4, 0]


def test_an_underfull_bank_is_masked_not_padded():
    bank = MemoryBank(1, 1, 1, memory_size=16, chunk_size=2, k=8)
    bank.write(*numbered(5, 10))
    found = bank.retrieve(torch.ones(1, 1, 1, 1))
    assert found.chunks.tolist() == [[[[1, 0, -1, -1]]]]
    assert found.valid.tolist() == [[[[True] * 4 + [False] * 4]]]
    assert found.tokens()[0][0, 0, 0, :4, 0].tolist() == [7, 8, 5, 6]


def test_a_negative_best_score_beats_an_empty_slot():
    bank = MemoryBank(1, 1, 1, memory_size=16, chunk_size=1, k=2)
    bank.write(*numbered(3, 5))
    assert found_tokens(bank, query=-1) == [3, 4]


def test_a_reset_row_does_not_touch_the_others():
    bank = MemoryBank(3, 1, 1, memory_size=8, chunk_size=2, k=4)
    bank.write(*numbered(1, 6, streams=3))
    bank.reset(torch.tensor([False, True, False]))
    assert bank.num_tokens == [4, 0, 4] and bank.num_pending == [1, 0, 1]
    bank.write(*numbered(6, 8, streams=3))
    assert found_tokens(bank, row=0) == [5, 6, 3, 4]
    assert found_tokens(bank, row=1) == [6, 7]


def test_rows_that_are_not_there_are_left_alone():
    """A bank of 3 streams whose last ones have run out of documents."""
    bank = MemoryBank(3, 1, 1, memory_size=8, chunk_size=2, k=4)
    bank.write(*numbered(0, 4, streams=3))
    bank.write(*numbered(4, 6))
    bank.reset(torch.tensor([False, True]))
    assert bank.num_tokens == [6, 0, 4]
    found = bank.retrieve(torch.ones(2, 1, 1, 1))
    assert found.chunks.tolist() == [[[[2, 1]]], [[[-1, -1]]]]
    assert bank.retrieve(torch.ones(3, 1, 1, 1)[1:2]).chunks.tolist() == [[[[2, 1]]]]  # the first


@pytest.mark.parametrize("scope", ["stream", "batch"])
def test_no_rows_at_all(scope):
    bank = MemoryBank(2, 1, 1, memory_size=8, chunk_size=2, k=4, scope=scope)
    bank.write(*numbered(0, 4, streams=2))
    before = bank.num_tokens
    bank.reset(torch.zeros(0, dtype=torch.bool))
    bank.write(*(tensor[:0] for tensor in numbered(0, 4)))
    found = bank.retrieve(torch.zeros(0, 1, 3, 1))
    assert found is None or found.valid.shape == (0, 1, 3, 4)
    assert bank.num_tokens == before


def test_batch_scope_pools_the_rows_in_order():
    bank = MemoryBank(2, 1, 1, memory_size=16, chunk_size=2, k=16, scope="batch")
    keys = torch.arange(10.0).view(2, 1, 5, 1)
    bank.write(keys, -keys)
    assert found_tokens(bank, row=0, query=-1) == list(range(10))
    assert found_tokens(bank, row=1, query=-1) == list(range(10))
    bank.reset(torch.tensor([True, False]))
    assert bank.num_tokens == [10]
    bank.reset(torch.tensor([True, True]))
    assert bank.num_tokens == [0]


def test_chunk_keys_of_a_half_precision_bank_are_float32_means():
    bank = MemoryBank(1, 2, 4, memory_size=8, chunk_size=4, k=4, dtype="bfloat16")
    keys = torch.randn(1, 2, 4, 4)
    bank.write(keys, keys)
    expected = keys.bfloat16().float().mean(dim=2)
    assert bank.ring.chunk_keys.dtype == torch.float32
    assert_close(bank.ring.chunk_keys[:, :, 0], expected)
    assert bank.ring.num_bytes == 2 * 2 * 4 * 4 + 2 * (
        2 * 8 * 4 * 2
    )  # 2 chunk keys; keys and values


@pytest.mark.parametrize("scope", ["stream", "batch"])
@pytest.mark.parametrize("index", ["flat", "torch"])
def test_a_segment_of_no_tokens(scope, index):
    """A shard whose streams have all run out reads one while another still has some."""
    bank = MemoryBank(2, 1, 3, memory_size=8, chunk_size=2, k=4, scope=scope, index=index)
    keys = torch.randn(2, 1, 5, 3)
    bank.write(keys, keys)
    before = bank.num_written, bank.num_pending
    found = bank.retrieve(torch.zeros(2, 1, 0, 3))
    assert found.chunks.shape == (2, 1, 0, 2) and found.valid.shape == (2, 1, 0, 4)
    assert [tensor.shape for tensor in found.tokens()] == [(2, 1, 0, 4, 3)] * 2
    bank.write(keys[:, :, :0], keys[:, :, :0], torch.ones(2, 0, dtype=torch.bool))
    assert (bank.num_written, bank.num_pending) == before


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((0, 4, 64), "memory_size (0) must be at least 1"),
        ((64, 0, 64), "chunk_size (0) must be at least 1"),
        ((64, 4, -4), "k (-4) must be at least 1"),
        ((66, 4, 64), "memory_size (66) must be a multiple of chunk_size (4)"),
        ((64, 4, 62), "k (62) must be a multiple of chunk_size (4)"),
        ((64, 4, 68), "k (68) must not exceed memory_size (64)"),
    ],
)
def test_sizes_that_no_bank_can_have(sizes, message):
    with pytest.raises(ValueError) as error:
        check_sizes(*sizes)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        MemoryBank(1, 1, 1, *sizes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "option, message",
    [
        ({"scope": "all"}, "scope (all) must be one of stream, batch"),
        (
            {"index": "ivf"},
            "index (ivf) is neither torch nor flat nor an index that faiss can make for 1 "
            "dimensions, such as IVF1024,Flat",
        ),
    ],
)
def test_unknown_names(option, message):
    with pytest.raises(ValueError) as error:
        MemoryBank(1, 1, 1, memory_size=64, **option)
    assert str(error.value) == message


def test_tensors_that_do_not_fit():
    bank = MemoryBank(2, 3, 4, memory_size=8, chunk_size=2, k=4)
    right, ids = torch.zeros(2, 3, 5, 4), torch.zeros(2, 5)
    for shape in ((2, 3, 5, 8), (2, 1, 5, 4), (3, 3, 5, 4)):
        fits = f"of shape {shape} do not fit a bank of (streams, heads, head_dim) (2, 3, 4)"
        wrong = torch.zeros(shape)
        for call, name in ((lambda w: bank.write(w, w), "keys"), (bank.retrieve, "queries")):
            with pytest.raises(ValueError) as error:
                call(wrong)
            assert str(error.value) == f"{name} {fits}"
    for name, wrong in (
        *(("values", right[:, :, 1:]), ("values", right[:1]), ("values", right[..., 1:])),
        *(("valid", ids[:, 1:] > 0), ("token_ids", ids[:1])),
    ):
        with pytest.raises(ValueError) as error:
            bank.write(right, **{"values": right, name: wrong})
        shapes = f"of shape {tuple(wrong.shape)} do not go with keys of (2, 3, 5, 4)"
        assert str(error.value) == f"{name} {shapes}"
    assert bank.num_pending == [0, 0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory_size": 16}, "a memory with memory size 16 does not fit one with 8"),
        ({"chunk_size": 1}, "a memory with chunk size 1 does not fit one with 2"),
        ({"dtype": "int8"}, "a memory with dtype int8 does not fit one with float32"),
        ({"scope": "batch"}, "a memory with scope batch does not fit one with stream"),
        (
            {"fingerprint": "b" * 64},
            "the memory holds keys of the backbone bbbbbbbbbbbbbbbb, not of aaaaaaaaaaaaaaaa: encode "
            "the documents again with this backbone",
        ),
    ],
)
def test_state_of_another_bank_is_refused_and_changes_nothing(options, message):
    sizes = {"memory_size": 8, "chunk_size": 2, "k": 8, "fingerprint": "a" * 64}
    bank = MemoryBank(1, 1, 1, **sizes)
    bank.write(*numbered(1, 6))
    other = MemoryBank(1, 1, 1, **{**sizes, **options})
    other.write(*numbered(20, 26))
    with pytest.raises(ValueError) as error:
        bank.load_state_dict(other.header(), other.state_dict())
    assert str(error.value) == message
    assert found_tokens(bank, query=-1) == [1, 2, 3, 4] and bank.num_pending == [1]


def test_the_state_is_not_a_copy():
    """A copy as large as the bank would not always fit; a caller that keeps the state copies it."""
    bank = MemoryBank(1, 1, 1, memory_size=8, chunk_size=2, k=8)
    bank.write(*numbered(0, 8))
    views, copies = bank.state_dict(), copy.deepcopy(bank.state_dict())
    bank.write(*numbered(8, 10))
    assert views["keys"].flatten().tolist() == [8, 9, 2, 3, 4, 5, 6, 7]
    assert copies["keys"].flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["device", "host"])
@pytest.mark.parametrize("scope", ["stream", "batch"])
def test_a_bank_on_a_gpu_is_that_of_a_cpu(scope, storage):
    torch.manual_seed(1)
    options = {"memory_size": 24, "chunk_size": 2, "k": 8, "scope": scope}
    banks = [
        MemoryBank(3, 2, 4, **options),
        MemoryBank(3, 2, 4, **options, storage=storage, device=torch.device("cuda")),
    ]
    for step in range(6):
        keys, values = torch.randn(2, 3, 2, 7, 4)
        valid, ids = torch.rand(3, 7) < (0.7, 1)[step % 2], torch.randint(99, (3, 7))
        queries, rows = torch.randn(3, 2, 5, 4), torch.tensor([step == 3, False, step == 3])
        for bank in banks:
            bank.reset(rows.to(bank.device))
            bank.write(*(tensor.to(bank.device) for tensor in (keys, values, valid, ids)))
        for asked in (None, [0, 1, 0] if scope == "stream" else [0, 0, 0]):
            expected, found = (bank.retrieve(queries.to(bank.device), asked) for bank in banks)
            assert found.chunks.is_cuda and torch.equal(found.chunks.cpu(), expected.chunks)
            for tensor, other in zip(found.tokens(), expected.tokens(), strict=True):
                assert torch.equal(tensor.cpu(), other)
    assert banks[0].header() == banks[1].header()
    states = [bank.state_dict() for bank in banks]
    for name, tensor in states[0].items():
        assert_close(states[1][name].cpu(), tensor)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_row_by_row():
    bank = MemoryBank(3, 2, 4, memory_size=24, chunk_size=2, k=8, device=torch.device("cuda"))
    keys, values = torch.randn(2, 3, 2, 7, 4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            bank.write(keys, values)
            found = bank.retrieve(keys)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.chunks.shape == (3, 2, 7, 4)
