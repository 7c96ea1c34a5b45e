"""Approximate search by any index that faiss.index_factory knows, for banks of millions of tokens.

N banks, H heads, Q queries, S slots, D head_dim, R chunks to retrieve.
"""

import re
from typing import Dict, List

import numpy as np
import torch
from torch import Tensor

from longmem_fairseq.memory.search import ChunkIndex, FlatIndex, TorchIndex, import_faiss

# faiss asks for at least so many vectors for each k-means centroid (ClusteringParameters), and a
# product quantizer has 256 centroids
POINTS_PER_CENTROID = 39


class TooFewChunksError(ValueError):
    """A bank is too small for its index ever to be trained."""


class FactoryIndex(ChunkIndex):
    """One faiss index for every bank and head, on the CPU; exact search until it can be trained.

    Args:
        chunk_keys: N x H x S x D, float32
        num_slots: that a bank may come to have; those in a file end with what is stored
        description: for ``faiss.index_factory``, such as ``IVF1024,Flat`` or ``HNSW32``, see
            https://github.com/facebookresearch/faiss/wiki/The-index-factory
        parameters: for ``faiss.ParameterSpace``, such as ``nprobe=32`` or ``efSearch=64``

    Raises:
        ValueError: faiss does not know the description or a parameter, or the index is not one that
            grows
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
                raise ValueError(
                    f"--memory-index ({self.description}) cannot take one chunk after another: choose "
                    "an index that can (torch, IVF..., HNSW...)"
                ) from error
        else:
            centroids = 256 if "PQ" in self.description or "IVF" not in self.description else 1
            ivf = self.faiss.try_extract_index_ivf(index)
            if ivf is not None:
                centroids = max(centroids, ivf.nlist)
            needed = POINTS_PER_CENTROID * centroids
        if needed > slots:
            raise TooFewChunksError(
                f"--memory-index ({self.description}) needs {needed:,} chunks to be trained, but "
                f"--memory-size holds {slots:,}: make it larger, or the index coarser"
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
            raise ValueError(
                f"--memory-index ({self.description}) is neither torch nor flat nor an index that "
                f"faiss can make for {head_dim} dimensions, such as IVF1024,Flat"
            ) from error
        self._set_parameters(index)
        ivf = faiss.try_extract_index_ivf(index)
        for quantized in (index, ivf):
            if hasattr(quantized, "do_polysemous_training"):
                # takes seconds for each of a product quantizer's parts, for a filter nobody asked for
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
            raise ValueError(
                f"--memory-index-parameters ({self.parameters}) do not fit --memory-index "
                f"{self.description}, for which nprobe=32 (IVF) or efSearch=64 (HNSW) are known"
            ) from error

    def search(self, bank: int, queries: Tensor, num_stored: int, num_chunks: int) -> Tensor:
        found = super().search(bank, queries.to(self.chunk_keys.device), num_stored, num_chunks)
        return found.to(queries.device)

    def _search(self, bank: int, queries: Tensor, stored: int, found: Tensor) -> None:
        if bank not in self.indices:
            self.exact._search(bank, queries, stored, found)
            return
        for head, index in enumerate(self.indices[bank]):
            slots = index.search(queries[head].contiguous().numpy(), found.size(-1))[1]
            found[head] = torch.from_numpy(slots)

    def write(self, bank: int, slots: Tensor, stored_before: int, num_stored: int) -> None:
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
            raise ValueError(
                f"--memory-index ({self.description}) cannot be trained: {reason}"
            ) from error

    def _add(self, bank: int, slots: Tensor, overwritten: Tensor) -> None:
        for head, index in enumerate(self.indices[bank]):
            if len(overwritten) > 0:
                index.remove_ids(overwritten.numpy())
            index.add_with_ids(self.chunk_keys[bank, head, slots].numpy(), slots.numpy())

    def reset(self, bank: int) -> None:
        # trained it stays: the keys of the next document come from the same frozen layer
        for index in self.indices.get(bank, ()):
            index.reset()

    def state_dict(self) -> Dict[str, Tensor]:
        """Every faiss index, serialised: another training would find other neighbours."""
        return {
            f"{self.description}/{bank}/{head}": torch.from_numpy(self.faiss.serialize_index(index))
            for bank, heads in self.indices.items()
            for head, index in enumerate(heads)
        }

    def copy_bank(self, bank: int, other: "FactoryIndex", other_bank: int) -> None:
        self.indices.pop(bank, None)
        if other_bank in other.indices:
            self.indices[bank] = [self.faiss.clone_index(i) for i in other.indices[other_bank]]

    def load_state_dict(self, state: Dict[str, Tensor], num_stored: List[int]) -> None:
        """Indices of another description are built anew."""
        self.indices = {}
        heads, head_dim = self.chunk_keys.size(1), self.chunk_keys.size(3)
        for bank, stored in enumerate(num_stored):
            names = [f"{self.description}/{bank}/{head}" for head in range(heads)]
            if names[0] in state:
                self.indices[bank] = [self._deserialize(state, name) for name in names]
                if any((i.d, i.ntotal) != (head_dim, stored) for i in self.indices[bank]):
                    raise ValueError(f"the index {self.description} is not of the stored chunks")
            elif stored >= max(self.num_needed, 1):
                self._build(bank, stored)

    def _deserialize(self, state: Dict[str, Tensor], name: str):
        try:
            index = self.faiss.deserialize_index(state[name].numpy())
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the index {name} is missing or damaged") from error
        self._set_parameters(index)
        return index


def make_index(chunk_keys: Tensor, num_slots: int, name: str, parameters: str = "") -> ChunkIndex:
    """The index called *name*: ``torch``, ``flat``, or a description for :class:`FactoryIndex`.

    Raises:
        ValueError: see :class:`FactoryIndex`
    """
    if name in ("torch", "flat"):
        if parameters:
            raise ValueError(
                f"--memory-index-parameters ({parameters}) do not go with --memory-index {name}, "
                "which is exact"
            )
        return TorchIndex(chunk_keys) if name == "torch" else FlatIndex(chunk_keys)
    return FactoryIndex(chunk_keys, num_slots, name, parameters)


def check_index(name: str, parameters: str, head_dim: int, num_slots: int) -> None:
    """Raises what :func:`make_index` would, without a bank; takes no memory."""
    make_index(torch.empty(1, 1, 0, head_dim), num_slots, name, parameters)
