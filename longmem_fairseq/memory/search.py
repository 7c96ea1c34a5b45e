"""Exact inner-product search of chunk keys, in place: there is no index to build or keep up to date.

N banks, H heads, Q queries, S slots, D head_dim, R chunks to retrieve.
"""

import logging
from typing import Dict, List

import torch
from torch import Tensor

# Scores computed at a time, per thread. On a CPU they should stay near the caches (measured with 8,192
# to 32,768 chunks: 1M floats are fastest, half and four times of that slower); a GPU wants large
# products.
SCORE_BUDGET = {"cpu": 2**20, "cuda": 2**27}


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
        found = torch.full(
            (*queries.shape[:2], num_chunks), -1, dtype=torch.long, device=queries.device
        )
        if num_stored and found.numel() > 0:
            self._search(bank, queries, num_stored, found[:, :, : min(num_stored, num_chunks)])
        return found

    def _search(self, bank: int, queries: Tensor, stored: int, found: Tensor) -> None:
        """Writes H x Q x min(R, *stored*) slot numbers to *found*."""
        raise NotImplementedError

    def write(self, bank: int, slots: Tensor, stored_before: int, num_stored: int) -> None:
        """Is told that the chunk keys of *slots* changed; those below *stored_before* held others."""

    def reset(self, bank: int) -> None:
        """Is told that a bank is empty now."""

    def copy_bank(self, bank: int, other: "ChunkIndex", other_bank: int) -> None:
        """Is told that *bank* now has the chunk keys of a bank of *other*, which is of its kind."""

    def state_dict(self) -> Dict[str, Tensor]:
        """What cannot be computed from the chunk keys."""
        return {}

    def load_state_dict(self, state: Dict[str, Tensor], num_stored: List[int]) -> None:
        """Is told that the chunk keys are those of another bank."""


class TorchIndex(ChunkIndex):
    """Blocks of scores by matrix product, and the best rows of every column."""

    def _search(self, bank: int, queries: Tensor, stored: int, found: Tensor) -> None:
        heads, num_queries, _ = queries.shape
        # a head or more for every thread: then each of them chooses from the scores that it computed
        # itself, and none have to travel between the caches of two cores
        threads = torch.get_num_threads() if queries.device.type == "cpu" else 1
        budget = SCORE_BUDGET[queries.device.type] * threads
        heads_at_once = min(heads, max(threads, budget // (stored * num_queries)))
        queries_at_once = max(1, budget // (stored * heads_at_once))
        scores = queries.new_empty(0)
        for head in range(0, heads, heads_at_once):
            some = slice(head, head + heads_at_once)
            keys = self.chunk_keys[bank, some, :stored]  # h x S x D
            for first in range(0, num_queries, queries_at_once):
                block = queries[some, first : first + queries_at_once]  # h x q x D
                shape = (block.size(0), stored, block.size(1))
                if scores.shape != shape:
                    scores = queries.new_empty(shape)
                # keys times queries: on a CPU nearly twice as fast as queries times keys
                torch.bmm(keys, block.transpose(1, 2), out=scores)
                best = best_rows(scores, found.size(-1))
                found[some, first : first + queries_at_once] = best


def best_rows(scores: Tensor, count: int) -> Tensor:
    """Row numbers of the *count* largest values of every column, largest first.

    They lie in the *count* groups of rows whose maxima are largest: to find those takes one pass over
    the scores, and only their members are sorted (``topk`` over all takes longer than the product).

    Args:
        scores: h x S x q
        count: at most S

    Returns:
        h x q x count (int64)
    """
    group = round((scores.size(1) / count) ** 0.5)  # as many groups as members of the best ones
    if group < 4:
        return scores.transpose(1, 2).topk(count, dim=-1).indices
    num_groups = scores.size(1) // group
    whole = num_groups * group
    # group j has the rows j, j + num_groups, j + 2 num_groups, ...
    maxima = scores[:, :whole].unflatten(1, (group, num_groups)).amax(dim=1)  # h x groups x q
    groups = maxima.transpose(1, 2).topk(count, dim=-1, sorted=False).indices  # h x q x count
    members = torch.arange(0, whole, num_groups, device=scores.device)
    rows = (groups.unsqueeze(-1) + members).flatten(2)  # h x q x (count * group)
    rest = torch.arange(whole, scores.size(1), device=scores.device)  # rows without a group
    rows = torch.cat([rows, rest.expand(*rows.shape[:2], -1)], dim=-1)
    candidates = scores.gather(1, rows.transpose(1, 2)).transpose(1, 2)
    return rows.gather(-1, candidates.topk(count, dim=-1).indices)


class FlatIndex(ChunkIndex):
    """``faiss.knn`` on a CPU, ``faiss.knn_gpu`` on a GPU, for one head at a time."""

    def __init__(self, chunk_keys: Tensor):
        super().__init__(chunk_keys)
        self.faiss = import_faiss()
        if chunk_keys.is_cuda:
            import faiss.contrib.torch_utils  # noqa: F401  (lets faiss read CUDA tensors in place)

            self.resources = self.faiss.StandardGpuResources()

    def _search(self, bank: int, queries: Tensor, stored: int, found: Tensor) -> None:
        metric = self.faiss.METRIC_INNER_PRODUCT
        for head in range(queries.size(0)):
            asked = queries[head].contiguous()
            keys = self.chunk_keys[bank, head, :stored]
            if queries.is_cuda:
                knn = self.faiss.knn_gpu
                found[head] = knn(self.resources, asked, keys, found.size(-1), metric=metric)[1]
            else:
                knn = self.faiss.knn
                slots = knn(asked.numpy(), keys.numpy(), found.size(-1), metric=metric)[1]
                found[head] = torch.from_numpy(slots)


def import_faiss():
    """The module faiss.

    Raises:
        ImportError: it is not installed; names the extras that hold it
    """
    # it reports at length which instruction sets its wheel was not built for
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "this --memory-index needs faiss: pip install 'longmem-fairseq[cpu]' or "
            "'longmem-fairseq[gpu]', or choose --memory-index torch"
        ) from error
    return faiss
