"""Search by faiss: exact, or approximate for banks of millions of tokens.

N banks, H heads, Q queries, S slots, D head_dim, R chunks to retrieve.
"""

import functools
import logging
import re
import threading
from typing import Dict, List

import numpy as np
import torch
from torch import Tensor

from longmem_fairseq.memory.search import ChunkIndex, TorchIndex
from longmem_fairseq.utils.argument_error import ArgumentError

# faiss asks for at least so many vectors for each k-means centroid (ClusteringParameters), and a
# product quantizer has 256 centroids
POINTS_PER_CENTROID = 39
GPU_LOCK = threading.Lock()  # the resources of a GPU may be used by one thread at a time


class FlatIndex(ChunkIndex):
    """``faiss.knn`` on a CPU, ``faiss.knn_gpu`` on a GPU, for one head at a time."""

    def __init__(self, chunk_keys: Tensor):
        super().__init__(chunk_keys)
        self.faiss = import_faiss()
        self.resources = gpu_resources(chunk_keys.device) if chunk_keys.is_cuda else None

    def _search(self, bank: int, queries: Tensor, stored: int, out: Tensor) -> None:
        metric = self.faiss.METRIC_INNER_PRODUCT
        for head in range(queries.size(0)):
            of_head = queries[head].contiguous()
            keys = self.chunk_keys[bank, head, :stored]
            if queries.is_cuda:
                knn = self.faiss.knn_gpu  # on the current device, in PyTorch's stream there
                with GPU_LOCK, torch.cuda.device(queries.device):
                    slots = knn(self.resources, of_head, keys, out.size(-1), metric=metric)[1]
                out[head] = slots
            else:
                knn = self.faiss.knn
                slots = knn(of_head.numpy(), keys.numpy(), out.size(-1), metric=metric)[1]
                out[head] = torch.from_numpy(slots)


class TooFewChunksError(ArgumentError):
    """A bank is too small for its index ever to be trained."""


class DamagedIndexError(ValueError):
    """A saved index is not that of the chunks beside it."""


class FactoryIndex(ChunkIndex):
    """One faiss index for every bank and head, on the CPU; exact search until it can be trained.

    Args:
        chunk_keys: N x H x S x D, float32
        num_slots: of a full bank; *chunk_keys* in a file may have fewer
        description: for ``faiss.index_factory``, such as ``IVF1024,Flat`` or ``HNSW32``, see
            https://github.com/facebookresearch/faiss/wiki/The-index-factory
        parameters: for ``faiss.ParameterSpace``, such as ``nprobe=32`` or ``efSearch=64``

    Raises:
        ArgumentError: faiss does not know the description or a parameter, or the index cannot grow
        TooFewChunksError: the bank is too small for the index ever to be trained
    """

    def __init__(self, chunk_keys: Tensor, num_slots: int, description: str, parameters: str = ""):
        super().__init__(chunk_keys)
        self.faiss = import_faiss()
        self.description, self.parameters = description, parameters
        self.exact = TorchIndex(chunk_keys)
        self.indices: Dict[int, List] = {}  # bank -> an index for each head, once trained
        self.num_needed, self.can_remove = self._examine(num_slots)

    def _examine(self, slots: int):
        """Chunks that training takes, and whether chunks can be removed again."""
        index, head_dim, needed = self._make(), self.chunk_keys.size(3), 0
        if index.is_trained:
            try:
                index.add_with_ids(np.zeros((1, head_dim), dtype=np.float32), np.zeros(1, np.int64))
            except RuntimeError as error:  # NSG, which is built of all vectors at once
                raise ArgumentError(
                    "{index} ({}) cannot take one chunk after another: choose an index that can "
                    "(torch, IVF..., HNSW...)",
                    self.description,
                ) from error
        else:
            centroids = 256 if "PQ" in self.description or "IVF" not in self.description else 1
            ivf = self.faiss.try_extract_index_ivf(index)
            if ivf is not None:
                centroids = max(centroids, ivf.nlist)
            needed = POINTS_PER_CENTROID * centroids
        if needed > slots:
            raise TooFewChunksError(
                "{index} ({}) needs {:,} chunks to be trained, but {memory_size} holds {:,}: make it "
                "larger, or the index coarser",
                self.description,
                needed,
                slots,
            )
        try:
            index.remove_ids(np.empty(0, dtype=np.int64))
        except RuntimeError:  # "remove_ids not implemented", HNSW for one
            return needed, False
        return needed, True

    def _make(self):
        faiss, head_dim = self.faiss, self.chunk_keys.size(3)
        try:
            if re.search("[a-z]0+(?![0-9])", self.description, re.IGNORECASE):
                raise RuntimeError("HNSW0 ends the process when it is searched")
            index = faiss.index_factory(head_dim, self.description, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ArgumentError(
                "{index} ({}) is neither torch nor flat nor an index that faiss can make for {} "
                "dimensions, such as IVF1024,Flat",
                self.description,
                head_dim,
            ) from error
        self._set_parameters(index)
        ivf = faiss.try_extract_index_ivf(index)
        for quantized in (index, ivf):
            if hasattr(quantized, "do_polysemous_training"):
                # for a filter that nothing uses it takes seconds for each part of a product quantizer
                quantized.do_polysemous_training = False
        if isinstance(index, faiss.IndexRefine) or (
            ivf is None and not isinstance(index, faiss.IndexIDMap)
        ):
            index = faiss.IndexIDMap2(index)  # else it would number the vectors by itself
        return index

    def _set_parameters(self, index) -> None:
        if not self.parameters:
            return
        try:
            # it accepts nprobe=0, and then every search fails
            if any(float(part.partition("=")[2]) < 1 for part in self.parameters.split(",")):
                raise ValueError("less than 1")
            self.faiss.ParameterSpace().set_index_parameters(index, self.parameters)
        except (RuntimeError, ValueError) as error:
            raise ArgumentError(
                "{index_parameters} ({}) do not fit {index} {}, for which nprobe=32 (IVF) or "
                "efSearch=64 (HNSW) are known",
                self.parameters,
                self.description,
            ) from error

    def search(self, bank: int, queries: Tensor, num_stored: int, num_chunks: int) -> Tensor:
        """See :meth:`ChunkIndex.search`; on the CPU, wherever the queries are."""
        out = super().search(bank, queries.to(self.chunk_keys.device), num_stored, num_chunks)
        return out.to(queries.device)

    def _search(self, bank: int, queries: Tensor, stored: int, out: Tensor) -> None:
        if bank not in self.indices:
            self.exact._search(bank, queries, stored, out)
            return
        for head, index in enumerate(self.indices[bank]):
            slots = index.search(queries[head].contiguous().numpy(), out.size(-1))[1]
            out[head] = torch.from_numpy(slots)

    def write(self, bank: int, slots: Tensor, stored_before: int, num_stored: int) -> None:
        """Adds the chunks to the bank's indices, which are built once there are enough.

        Raises:
            ArgumentError: the index cannot be trained
        """
        if bank in self.indices:
            self._add(bank, slots, slots[slots < stored_before])
        elif num_stored >= self.num_needed:
            self._build(bank, num_stored)

    def _build(self, bank: int, num_stored: int) -> None:
        self.indices[bank] = []
        count = max(self.num_needed, 1)
        sample = torch.arange(count) * (num_stored - 1) // max(count - 1, 1)  # all over the bank
        for keys in self.chunk_keys[bank]:
            index = self._make()
            if self.num_needed:
                self._train(index, keys[sample])
            self.indices[bank].append(index)
        slots = torch.arange(num_stored)
        self._add(bank, slots, slots[:0])

    def _train(self, index, keys: Tensor) -> None:
        try:
            index.train(keys.numpy())
        except RuntimeError as error:  # more dimensions after a PCA than before
            reason = str(error).split("failed: ")[-1].strip()
            text = "{index} ({}) cannot be trained: {}"
            raise ArgumentError(text, self.description, reason) from error

    def _add(self, bank: int, slots: Tensor, overwritten: Tensor) -> None:
        for head, index in enumerate(self.indices[bank]):
            if len(overwritten) > 0:
                index.remove_ids(overwritten.numpy())
            index.add_with_ids(self.chunk_keys[bank, head, slots].numpy(), slots.numpy())

    def reset(self, bank: int) -> None:
        """Empties the bank's indices."""
        # they stay trained: the keys of the next document come from the same frozen layer
        for index in self.indices.get(bank, ()):
            index.reset()

    def state_dict(self) -> Dict[str, Tensor]:
        """Every faiss index, serialized: another training would find other neighbors."""
        return {
            f"{self.description}/{bank}/{head}": torch.from_numpy(self.faiss.serialize_index(index))
            for bank, heads in self.indices.items()
            for head, index in enumerate(heads)
        }

    def copy_bank(self, bank: int, other: "FactoryIndex", other_bank: int) -> None:
        """Makes a bank's indices those of a bank of *other*, which has the same description."""
        self.indices.pop(bank, None)
        if other_bank in other.indices:
            self.indices[bank] = [self.faiss.clone_index(i) for i in other.indices[other_bank]]

    def load_state_dict(self, state: Dict[str, Tensor], num_stored: List[int]) -> None:
        """Takes the indices of :meth:`state_dict`; those of another description are built anew.

        Raises:
            DamagedIndexError: one is missing, damaged, or of other chunks
        """
        self.indices = {}
        heads, head_dim = self.chunk_keys.size(1), self.chunk_keys.size(3)
        for bank, stored in enumerate(num_stored):
            names = [f"{self.description}/{bank}/{head}" for head in range(heads)]
            if names[0] in state:
                self.indices[bank] = [self._deserialize(state, name) for name in names]
                if any((i.d, i.ntotal) != (head_dim, stored) for i in self.indices[bank]):
                    raise DamagedIndexError(
                        f"the index {self.description} is not of the stored chunks"
                    )
            elif stored >= max(self.num_needed, 1):
                self._build(bank, stored)

    def _deserialize(self, state: Dict[str, Tensor], name: str):
        try:
            index = self.faiss.deserialize_index(state[name].numpy())
        except (KeyError, RuntimeError) as error:
            raise DamagedIndexError(f"the index {name} is missing or damaged") from error
        self._set_parameters(index)
        return index


def make_index(chunk_keys: Tensor, num_slots: int, name: str, parameters: str = "") -> ChunkIndex:
    """The index called *name*: ``torch``, ``flat``, or a description for :class:`FactoryIndex`.

    Raises:
        ArgumentError: see :class:`FactoryIndex`
    """
    if name in ("torch", "flat"):
        if parameters:
            text = "{index_parameters} ({}) do not go with {index} {}, which is exact"
            raise ArgumentError(text, parameters, name)
        return TorchIndex(chunk_keys) if name == "torch" else FlatIndex(chunk_keys)
    return FactoryIndex(chunk_keys, num_slots, name, parameters)


def check_index(name: str, parameters: str, head_dim: int, num_slots: int) -> None:
    """Raises an ArgumentError where :func:`make_index` would, without the memory of a bank."""
    make_index(torch.empty(1, 1, 0, head_dim), num_slots, name, parameters)


@functools.cache
def gpu_resources(device: torch.device):
    """The resources of a GPU that faiss takes, up to 1.5 GiB of its memory, for all banks."""
    import faiss.contrib.torch_utils  # noqa: F401  (lets faiss read CUDA tensors in place)

    return import_faiss().StandardGpuResources()


def import_faiss():
    """The module faiss.

    Raises:
        ImportError: it is not installed; names the extras that hold it
    """
    # it lists the instruction sets that its wheel was not built for
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "every index but torch needs faiss: pip install 'longmem-fairseq[cpu]' or "
            "'longmem-fairseq[gpu]'"
        ) from error
    return faiss
