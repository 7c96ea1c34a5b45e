"""The exact searches, by PyTorch and by faiss, against a sort of all products."""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.memory import faiss_index, search
from longmem_fairseq.memory.faiss_index import FlatIndex
from longmem_fairseq.memory.search import TorchIndex, search_rounded

INDICES = [TorchIndex, FlatIndex]
HEADS, QUERIES, HEAD_DIM = 2, 7, 5


def filled(fill, num_slots, seed=1, kinds=None):
    """Chunk keys with *fill* slots in use; what lies beyond would win every search."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(fill), HEADS, num_slots, HEAD_DIM)
    if kinds is None:
        keys = torch.randn(shape, generator=generator)
    else:
        keys = torch.randint(-kinds, kinds + 1, shape, generator=generator).float()
    for bank, stored in enumerate(fill):
        keys[bank, :, stored:] = 1e6
    return keys


def check_search(index, keys, queries, fill, count):
    searches = zip(range(len(fill)), queries, fill, strict=True)
    found = torch.stack([index.search(bank, asked, n, count) for bank, asked, n in searches])
    assert found.shape == (*queries.shape[:3], count) and found.dtype == torch.int64
    for bank, stored in enumerate(fill):
        real = min(stored, count)
        assert (found[bank, ..., real:] == -1).all()
        slots = found[bank, ..., :real]
        assert slots.numel() == 0 or (slots.min() >= 0 and slots.max() < stored)
        assert all(len(set(row)) == real for row in slots.flatten(0, 1).tolist())
        scores = queries[bank] @ keys[bank, :, :stored].transpose(1, 2)  # H x Q x stored
        assert_close(scores.gather(-1, slots), scores.topk(real, dim=-1).values)


@pytest.mark.parametrize("cls", INDICES)
@pytest.mark.parametrize("budget", [1, 100, 1001, 5000, 2**21])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_search_finds_the_largest_products(cls, budget, rows, monkeypatch):
    """Banks of different fill, the first rows alone, and blocks of scores of any size."""
    monkeypatch.setitem(search.SCORE_BUDGET, "cpu", budget)
    fill = [300, 0, 5, 64]
    keys, queries = filled(fill, 310), torch.randn(rows, HEADS, QUERIES, HEAD_DIM)
    check_search(cls(keys), keys, queries, fill[:rows], 8)


@pytest.mark.parametrize("cls", INDICES)
@pytest.mark.parametrize("num_slots", [1, 2, 7, 8, 9, 543, 544, 545, 600])
@pytest.mark.parametrize("full", [True, False])
def test_search_of_banks_of_any_size(cls, num_slots, full):
    fill = [num_slots if full else (num_slots + 1) // 2]
    keys, queries = filled(fill, num_slots), torch.randn(1, HEADS, QUERIES, HEAD_DIM)
    check_search(cls(keys), keys, queries, fill, 8)
    check_search(cls(keys), keys, queries, fill, num_slots)


@pytest.mark.parametrize("cls", INDICES)
def test_search_among_equal_keys(cls):
    """Whole numbers, whose products are exact: each score as often as it is there."""
    fill = [400, 30]
    keys = filled(fill, 400, kinds=1)
    queries = torch.randint(-1, 2, (2, HEADS, QUERIES, HEAD_DIM)).float()
    check_search(cls(keys), keys, queries, fill, 6)
    keys.fill_(1)
    check_search(cls(keys), keys, queries, fill, 6)


def hard_to_round(kind, generator):
    """Keys HEADS x 500 x HEAD_DIM and queries HEADS x QUERIES x HEAD_DIM."""
    keys = torch.randn(HEADS, 500, HEAD_DIM, generator=generator)
    queries = torch.randn(HEADS, QUERIES, HEAD_DIM, generator=generator)
    if kind == "far from 0":
        keys = keys + 100
    elif kind == "all scores negative":
        keys, queries = -keys.abs() - 1, queries.abs()
    elif kind == "nearly equal":  # in bfloat16 they are equal, until their mean is taken away
        keys = 1 + keys / 5000
    elif kind == "few are equal":  # more than there are candidates, and better than all the others
        keys[:, 100:150] = 5 * queries[:, :1] + keys[:, 100:150] / 1000
    elif kind == "whole":
        keys, queries = keys.round(), queries.round()
    elif kind == "too large":  # the products are infinite
        keys[:, 7] *= 1e38
    elif kind == "tiny":
        keys = keys * 1e-30
    return keys, queries


@pytest.mark.parametrize("queries_at_once", [1, 3, 100])
@pytest.mark.parametrize(
    "kind",
    (
        *("normal", "far from 0", "all scores negative", "nearly equal", "few are equal", "whole"),
        *("too large", "tiny"),
    ),
)
def test_search_by_rounded_numbers_finds_what_float32_finds(kind, queries_at_once):
    for seed in range(10):
        keys, queries = hard_to_round(kind, torch.Generator().manual_seed(seed))
        found = torch.full((HEADS, QUERIES, 6), -1)
        search_rounded(keys, queries, found, queries_at_once)
        assert all(len(set(row)) == 6 for row in found.flatten(0, 1).tolist())
        scores = queries @ keys.transpose(1, 2)
        assert_close(scores.gather(-1, found), scores.topk(6, dim=-1).values)


@pytest.mark.parametrize(
    "kind, at_least", [("normal", 0), ("far from 0", 0), ("nearly equal", 0), ("few are equal", 1)]
)
def test_only_queries_that_rounding_may_mislead_are_searched_again(kind, at_least, monkeypatch):
    keys, queries = hard_to_round(kind, torch.Generator().manual_seed(1))
    again = []
    monkeypatch.setattr(
        search, "search_float32", lambda keys, asked, *_: again.append(asked.size(1))
    )
    search_rounded(keys, queries, torch.zeros(HEADS, QUERIES, 6, dtype=torch.long), 4)
    assert (sum(again) >= HEADS) if at_least else (again == [])  # the first query of every head


@pytest.mark.parametrize("fill", [[310], [300]])
def test_search_of_a_bank_by_rounded_numbers(fill, monkeypatch):
    monkeypatch.setattr(search, "rounding_pays", lambda _, stored, count: stored >= 2 * count)
    monkeypatch.setitem(search.SCORE_BUDGET, "cpu", 1001)  # blocks of 143 keys
    keys, queries = filled(fill, 310), torch.randn(1, HEADS, QUERIES, HEAD_DIM)
    check_search(TorchIndex(keys), keys, queries, fill, 8)
    with torch.autocast("cpu", torch.bfloat16):
        check_search(TorchIndex(keys), keys, queries, fill, 8)


def test_rounding_pays_for_large_searches_on_a_cpu_that_is_made_for_it(monkeypatch):
    queries = torch.zeros(1, 256, HEAD_DIM)
    monkeypatch.setattr(search, "multiplies_bfloat16", lambda: True)
    assert search.rounding_pays(queries, 512 * 16, 16)
    assert not search.rounding_pays(queries, 512 * 16 - 1, 16)
    assert not search.rounding_pays(queries[:, 1:], 512 * 16, 16)
    monkeypatch.setattr(search, "multiplies_bfloat16", lambda: False)
    assert not search.rounding_pays(queries, 512 * 16, 16)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_search_with_a_head_for_every_thread(mode, monkeypatch, three_threads):
    monkeypatch.setattr(search, "THREADS_FROM", 1)
    keys = torch.randn(1, 5, 300, HEAD_DIM)
    queries = torch.randn(5, 40, HEAD_DIM, requires_grad=True)
    with mode():
        found = TorchIndex(keys).search(0, queries, 290, 4)
    expected = torch.empty(5, 40, 4, dtype=torch.long)
    with torch.no_grad():
        search.search_heads(keys[0, :, :290], queries, expected)
    assert torch.equal(found, expected)
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3


def test_an_error_in_a_thread_is_an_error(monkeypatch, three_threads):
    def fail(*arguments):
        raise MemoryError("no room for scores")

    monkeypatch.setattr(search, "THREADS_FROM", 1)
    monkeypatch.setattr(search, "search_heads", fail)
    with pytest.raises(MemoryError, match="no room"):
        TorchIndex(torch.randn(1, 4, 9, HEAD_DIM)).search(0, torch.randn(4, 3, HEAD_DIM), 9, 2)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("cls", INDICES)
def test_search_without_chunks_or_queries(cls):
    keys = filled([0, 9], 9)
    queries = torch.randn(2, HEADS, QUERIES, HEAD_DIM)
    assert (cls(keys).search(1, queries[1], 0, 3) == -1).all()
    assert cls(keys).search(1, queries[1, :, :0], 9, 3).shape == (HEADS, 0, 3)


@pytest.mark.parametrize("cls", INDICES)
def test_search_sees_what_is_written_and_takes_queries_laid_out_anyhow(cls):
    keys = filled([100], 100)
    index = cls(keys)
    queries = torch.randn(1, QUERIES, HEADS, HEAD_DIM).transpose(1, 2)  # as an attention's are
    check_search(index, keys, queries, [100], 4)
    keys.copy_(filled([100], 100, seed=2))
    check_search(index, keys, queries, [100], 4)


@pytest.mark.parametrize("cls", INDICES)
def test_search_is_exact_inside_autocast(cls):
    """Models search inside an autocast region, which would round a matrix product's inputs."""
    keys, queries = filled([300], 300), torch.randn(HEADS, QUERIES, HEAD_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        found = cls(keys).search(0, queries, 300, 300)
    assert torch.equal(found, cls(keys).search(0, queries, 300, 300))


def test_banks_of_a_gpu_share_what_faiss_needs_of_it_and_search_there(monkeypatch):
    """With a stub of faiss, and tensors that only say that they are on a GPU."""
    current, used = [], []

    @contextmanager
    def use(device):
        current.append(device)
        yield
        current.pop()

    def knn_gpu(resources, queries, keys, count, metric):
        used.append((resources, *current))
        return (queries @ keys.T).topk(count)

    stub = SimpleNamespace(METRIC_INNER_PRODUCT=0, StandardGpuResources=object, knn_gpu=knn_gpu)
    once = functools.cache(faiss_index.gpu_resources.__wrapped__)
    monkeypatch.setattr(faiss_index, "gpu_resources", once)
    monkeypatch.setattr(faiss_index, "import_faiss", lambda: stub)
    monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", ModuleType("torch_utils"))
    monkeypatch.setattr(torch.cuda, "device", use)
    keys, queries = filled([9, 9], 9), torch.randn(HEADS, QUERIES, HEAD_DIM)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        found = [FlatIndex(keys).search(bank, queries, 9, 4) for bank in (0, 1)]
    for bank, slots in enumerate(found):
        assert torch.equal(slots, (queries @ keys[bank].transpose(1, 2)).topk(4).indices)
    assert used == 2 * HEADS * [(once(keys.device), queries.device)]
    one, other = (torch.device("cuda", number) for number in (0, 1))
    assert once(one) is once(one) is not once(other)


@pytest.mark.gpu
@pytest.mark.parametrize("cls", INDICES)
@pytest.mark.parametrize("stored", [1, 5, 8, 600])
def test_search_on_a_gpu(cls, stored):
    faiss = pytest.importorskip("faiss")
    if cls is FlatIndex and not hasattr(faiss, "knn_gpu"):
        pytest.skip("faiss without GPU support: install the extra gpu")
    torch.manual_seed(stored)
    keys, queries = filled([stored], 600), torch.randn(HEADS, QUERIES, HEAD_DIM)
    index = cls(keys.cuda())
    found = index.search(0, queries.cuda(), stored, 8)
    assert found.is_cuda
    real = min(stored, 8)
    scores = queries @ keys[0, :, :stored].transpose(1, 2)
    assert (found[..., real:] == -1).all()
    slots = found[..., :real].cpu()
    assert_close(scores.gather(-1, slots), scores.topk(real, dim=-1).values)
