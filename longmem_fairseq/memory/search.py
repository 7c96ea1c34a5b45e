"""Exact inner-product search of chunk keys.

Q queries, S stored chunks, D head_dim, R chunks to retrieve.

Two implementations of one function: ``flat`` calls faiss on the stored keys in place (no index to
build or keep up to date), ``torch`` is the obvious matrix product that the tests hold against it.
"""

import logging

import torch
from torch import Tensor


def _import_faiss():
    # it reports at length which instruction sets its wheel was not built for
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "--memory-index flat needs faiss: pip install 'longmem-fairseq[cpu]' or "
            "'longmem-fairseq[gpu]', or choose --memory-index torch"
        ) from error
    return faiss


def search_flat(queries: Tensor, chunk_keys: Tensor, num_chunks: int) -> Tensor:
    """The *num_chunks* stored chunks with the largest inner product, by ``faiss.knn``.

    Args:
        queries: Q x D, float32
        chunk_keys: S x D, float32, contiguous
        num_chunks: R

    Returns:
        Q x R chunk numbers (int64), best first; -1 where fewer than R chunks are stored
        (that is faiss's own convention, see https://github.com/facebookresearch/faiss/wiki/FAQ).
    """
    faiss = _import_faiss()
    if queries.is_cuda:
        import faiss.contrib.torch_utils  # noqa: F401  (lets faiss read CUDA tensors in place)

        knn = faiss.knn_gpu
        resources = _gpu_resources(faiss, queries.device)
        stored = min(num_chunks, chunk_keys.size(0))  # faiss.knn_gpu refuses k > S
        found = knn(resources, queries, chunk_keys, stored, metric=faiss.METRIC_INNER_PRODUCT)[1]
        return torch.nn.functional.pad(found, (0, num_chunks - stored), value=-1)
    _, found = faiss.knn(
        queries.numpy(), chunk_keys.numpy(), num_chunks, metric=faiss.METRIC_INNER_PRODUCT
    )
    return torch.from_numpy(found)


_GPU_RESOURCES = {}


def _gpu_resources(faiss, device):
    # One per device: a StandardGpuResources holds faiss's scratch memory and its stream.
    if device not in _GPU_RESOURCES:
        _GPU_RESOURCES[device] = faiss.StandardGpuResources()
    return _GPU_RESOURCES[device]


def search_torch(queries: Tensor, chunk_keys: Tensor, num_chunks: int) -> Tensor:
    """Same contract as :func:`search_flat`, as one matrix product and ``topk``."""
    stored = min(num_chunks, chunk_keys.size(0))
    found = (queries @ chunk_keys.t()).topk(stored, dim=-1).indices
    return torch.nn.functional.pad(found, (0, num_chunks - stored), value=-1)


SEARCHES = {"flat": search_flat, "torch": search_torch}
