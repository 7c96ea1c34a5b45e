"""Exact inner-product search of chunk keys, in place: there is no index to build or keep up to date.

N banks, H heads, Q queries, S slots, D head_dim, R chunks to retrieve.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.utils.processor import has_instructions

# Scores computed at a time, per thread. On a CPU they should stay near the caches (measured with 8,192
# to 32,768 chunks: 1M floats are fastest, half and four times of that slower); a GPU wants large
# products.
SCORE_BUDGET = {"cpu": 2**20, "cuda": 2**27}
QUERIES_AT_ONCE = 16  # at least: a product with fewer waits for its keys (measured: not 8, not 32)
THREADS_FROM = 2**24  # products, from which on starting threads (0.2 ms) does not matter
GROUP = 8  # rows of which only the maximum is looked at first (measured: 4 and 16 are not faster)
GROUPS_FROM = 2**15  # scores, below which a look at all of them takes less time than six operations
GATHER_BUDGET = 2**21  # numbers of keys gathered at a time, as in memory attention


class ChunkIndex:
    """Finds the chunks whose keys have the largest inner products with a query.

    Args:
        chunk_keys: the bank's own buffer, N x H x S x D, float32, whose first slots are filled
    """

    can_remove = True  # whether slots can be overwritten

    def __init__(self, chunk_keys: Tensor):
        self.chunk_keys = chunk_keys

    def search(self, bank: int, queries: Tensor, num_stored: int, num_chunks: int) -> Tensor:
        """The *num_chunks* best chunks of one bank for every query, best first.

        Args:
            queries: H x Q x D, float32
            num_stored: filled slots of the bank
            num_chunks: R

        Returns:
            H x Q x R slot numbers (int64), -1 where there were fewer
        """
        out = torch.full(
            (*queries.shape[:2], num_chunks), -1, dtype=torch.long, device=queries.device
        )
        if num_stored and out.numel() > 0:
            self._search(bank, queries, num_stored, out[:, :, : min(num_stored, num_chunks)])
        return out

    def _search(self, bank: int, queries: Tensor, stored: int, out: Tensor) -> None:
        """Writes H x Q x min(R, *stored*) slot numbers to *out*."""
        raise NotImplementedError

    def write(self, bank: int, slots: Tensor, stored_before: int, num_stored: int) -> None:
        """Called after chunk keys are written; *slots* below *stored_before* were overwritten."""

    def reset(self, bank: int) -> None:
        """Called when a bank was emptied."""

    def copy_bank(self, bank: int, other: "ChunkIndex", other_bank: int) -> None:
        """Called when *bank* was given the chunk keys of a bank of *other*, which is of its kind."""

    def state_dict(self) -> Dict[str, Tensor]:
        """Tensors that cannot be computed from the chunk keys."""
        return {}

    def load_state_dict(self, state: Dict[str, Tensor], num_stored: List[int]) -> None:
        """Called when all chunk keys were replaced, with :meth:`state_dict` of their index."""


class TorchIndex(ChunkIndex):
    """Exact: blocks of scores by matrix product, and the best rows of every column."""

    def _search(self, bank: int, queries: Tensor, stored: int, out: Tensor) -> None:
        keys = self.chunk_keys[bank, :, :stored]  # H x S x D
        threads = torch.get_num_threads() if queries.device.type == "cpu" else 1
        products = stored * queries.size(0) * queries.size(1)
        if 1 < threads <= queries.size(0) and products >= THREADS_FROM:
            search_in_threads(keys, queries, out, threads)
        else:
            search_heads(keys, queries, out)


def search_in_threads(keys: Tensor, queries: Tensor, out: Tensor, threads: int) -> None:
    """:func:`search_heads` with a head for every thread, from its product to its best rows.

    PyTorch's own threads share the work of every operation anew: on a CPU, scores would travel between
    the caches of two cores.
    """
    inference = torch.is_inference_mode_enabled()  # a setting of each thread

    def search_one(head: int) -> None:
        one = slice(head, head + 1)
        with torch.inference_mode(inference), torch.no_grad():
            search_heads(keys[one], queries[one], out[one])

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(search_one, range(queries.size(0))))
    finally:
        torch.set_num_threads(threads)  # still true here, but later threads would start with 1


def search_heads(keys: Tensor, queries: Tensor, out: Tensor) -> None:
    """Writes the rows of the largest products to *out*, see :func:`search_float32`.

    A large memory is searched one block of keys after another, so that the scores of several queries
    fit.
    """
    num_queries, count = out.shape[1:]
    budget = SCORE_BUDGET[queries.device.type]
    rows_at_once = max(count, budget // min(num_queries, QUERIES_AT_ONCE))
    for first in range(0, keys.size(1), rows_at_once):
        some = keys[:, first : first + rows_at_once]
        if first == 0:
            search_rows(some, queries, out)
            continue
        more = torch.empty_like(out[:, :, : some.size(1)])
        search_rows(some, queries, more)
        rows = torch.cat([out, more + first], dim=-1)
        for head, start in product(range(keys.size(0)), range(0, num_queries, 1024)):
            here = slice(head, head + 1), slice(start, start + 1024)
            out[here] = best_of(keys[here[:1]], queries[here], rows[here], count)[1]


def search_rows(keys: Tensor, queries: Tensor, out: Tensor) -> None:
    """:func:`search_heads` of keys so few that many queries can be searched at a time."""
    heads, num_queries, _ = queries.shape
    stored, budget = keys.size(1), SCORE_BUDGET[queries.device.type]
    heads_at_once = min(heads, max(1, budget // (stored * num_queries)))
    queries_at_once = max(1, budget // (stored * heads_at_once))
    search = search_rounded if rounding_pays(queries, stored, out.size(-1)) else search_float32
    for head in range(0, heads, heads_at_once):
        some = slice(head, head + heads_at_once)
        search(keys[some], queries[some], out[some], queries_at_once)


def rounding_pays(queries: Tensor, stored: int, count: int) -> bool:
    """Whether :func:`search_rounded` is faster than :func:`search_float32` (measured on CPUs)."""
    large = stored >= 512 * count and queries.size(1) >= 256
    return large and queries.device.type == "cpu" and multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it."""
    return has_instructions("avx512_bf16") or has_instructions("amx_bf16")


def search_float32(keys: Tensor, queries: Tensor, out: Tensor, queries_at_once: int) -> None:
    """Writes the rows of the largest products to *out*.

    Args:
        keys: h x S x D
        queries: h x Q x D
        out: h x Q x R, R at most S
        queries_at_once: size of a block
    """
    scores = None
    for start in range(0, queries.size(1), queries_at_once):
        block = slice(start, start + queries_at_once)
        scores = score(keys, queries[:, block], scores)
        out[:, block] = best_rows(scores, out.size(-1))


def search_rounded(keys: Tensor, queries: Tensor, out: Tensor, queries_at_once: int) -> None:
    """Finds the same as :func:`search_float32`, with most of the work in bfloat16.

    Rounded scores choose twice as many candidates as are wanted, and float32 the best of those. A
    bound of the rounding errors shows for which queries no other row can be better; the others, few
    unless rows are nearly equal, are searched in float32.
    """
    heads, stored, head_dim = keys.shape
    mean = keys.mean(dim=1, keepdim=True)  # all scores of a query lose the same: the order stays
    rounded_keys, key_error, longest = round_vectors(keys - mean)  # and errors are smaller
    rounded_queries, query_error, query_length = round_vectors(queries)
    # |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, and the error of adding up in float32
    longest, key_error = (x.amax(dim=1, keepdim=True) for x in (longest, key_error))  # h x 1
    query_length += query_error  # at least |q'|
    error = query_error * longest + query_length * (key_error + 2**-16 * longest)  # h x Q
    lost = (queries * mean).sum(dim=-1)  # h x Q
    sure = torch.empty(queries.shape[:2], dtype=torch.bool)
    scores = None
    for start in range(0, queries.size(1), queries_at_once):
        block = slice(start, start + queries_at_once)
        scores = score(rounded_keys, rounded_queries[:, block], scores)
        # the bits of positive numbers are in their order, and have a faster maximum on a CPU
        rows = best_rows(scores.view(torch.int16), 2 * out.size(-1), sorted=False)  # h x q x 2R
        best, out[:, block] = best_of(keys, queries[:, block], rows, out.size(-1))
        limit = scores.transpose(1, 2).gather(-1, rows).amin(dim=-1).float()  # h x q
        most = limit * (1 + 2**-8) + error[:, block]  # that any other row can have
        sure[:, block] = (limit > 0) & (best[..., -1] - lost[:, block] >= most)
    for head in (~sure).any(dim=1).nonzero().flatten().tolist():
        one, again = slice(head, head + 1), ~sure[head]
        rows = out[one, again]  # a copy
        search_float32(keys[one], queries[one, again], rows, queries_at_once)
        out[one, again] = rows


def best_of(keys: Tensor, queries: Tensor, rows: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    """The *count* largest products of some rows, h x q x C: products and rows, h x q x count."""
    heads, stored, head_dim = keys.shape
    first_rows = torch.arange(heads, device=keys.device).view(-1, 1, 1) * stored
    candidates = keys.flatten(0, 1).index_select(0, (rows + first_rows).flatten())
    products = candidates.view(*rows.shape, head_dim) * queries.unsqueeze(2)
    best = products.sum(dim=-1).topk(count, dim=-1)
    return best.values, rows.gather(-1, best.indices)


def round_vectors(vectors: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """h x n x D in bfloat16; the length of each rounding error, and of each vector, h x n."""
    rounded = vectors.bfloat16()
    return rounded, (vectors - rounded).norm(dim=-1), vectors.norm(dim=-1)


def score(keys: Tensor, queries: Tensor, scores: Optional[Tensor] = None) -> Tensor:
    """Products of h x S x D and h x q x D: h x S x q, in the memory of *scores* if these fit."""
    shape = (*keys.shape[:2], queries.size(1))
    if scores is None or scores.shape != shape:
        scores = keys.new_empty(shape)
    # keys times queries: on a CPU nearly twice as fast as queries times keys
    return torch.bmm(keys, queries.transpose(1, 2), out=scores)


def best_rows(scores: Tensor, count: int, sorted: bool = True) -> Tensor:
    """Row numbers of the *count* largest values of every column, largest first or in any order.

    They lie in the *count* groups of rows whose maxima are largest: to find those takes one pass over
    the scores, and the best of a few maxima, which are found in the same way; only their members are
    sorted (``topk`` over all takes longer than the product).

    Args:
        scores: h x S x q
        count: at most S

    Returns:
        h x q x count (int64)
    """
    num_groups = scores.size(1) // GROUP
    if num_groups < 4 * count or scores.numel() < GROUPS_FROM:
        return scores.transpose(1, 2).topk(count, dim=-1, sorted=sorted).indices
    whole = num_groups * GROUP
    # group j has the rows j, j + num_groups, j + 2 num_groups, ...
    maxima = scores[:, :whole].unflatten(1, (GROUP, num_groups)).amax(dim=1)  # h x groups x q
    groups = best_rows(maxima, count, sorted=False)  # h x q x count
    members = torch.arange(0, whole, num_groups, device=scores.device)
    rows = (groups.unsqueeze(-1) + members).flatten(2)  # h x q x (count * GROUP)
    if whole < scores.size(1):  # rows without a group
        rest = torch.arange(whole, scores.size(1), device=scores.device)
        rows = torch.cat([rows, rest.expand(*rows.shape[:2], -1)], dim=-1)
    candidates = scores.transpose(1, 2).gather(-1, rows)
    return rows.gather(-1, candidates.topk(count, dim=-1, sorted=sorted).indices)


def chosen_products(queries: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """Inner products of every query with some keys of its own, in float32.

    Args:
        queries: b x H x T x D
        keys: ... x D, of which *rows* counts the vectors
        rows: b x H x T x R

    Returns:
        b x H x T x R, on the device of *queries*
    """
    keys = keys.view(-1, keys.size(-1))
    places = rows.flatten(0, 2).to(keys.device)  # Q x R
    flat = queries.float().flatten(0, 2).to(keys.device)  # Q x D
    size = max(1, GATHER_BUDGET // (places.size(1) * keys.size(1)))
    products = [
        # not a matrix product, which autocast would round
        (some.unsqueeze(1) * keys[chosen]).sum(dim=-1)
        for some, chosen in zip(flat.split(size), places.split(size), strict=True)
    ]
    return torch.cat(products).view(rows.shape).to(queries.device)
