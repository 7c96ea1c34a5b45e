"""fairseq's binaries (PREFIX.idx and PREFIX.bin), checked before anything is taken from them.

fairseq believes what an .idx says: damage shows as an assertion or a strange tensor, far from its file.
"""

import itertools
import os
import struct

import numpy as np
from fairseq.data import BaseWrapperDataset
from fairseq.data.data_utils import load_indexed_dataset
from fairseq.data.indexed_dataset import MMapIndexedDataset
from torch import Tensor

_MAGIC = MMapIndexedDataset.Index._HDR_MAGIC
_HEADER = struct.Struct(f"<{len(_MAGIC)}sQBQ")  # magic, version, type, number of documents
# bytes of a token, by fairseq's code of its type
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8}


class IndexedDocuments(BaseWrapperDataset):
    """Documents whose tokens are in the dictionary.

    Args:
        prefix: of the files
        num_symbols: of the dictionary
        combine: PREFIX1, PREFIX2, ... too, as far as they go

    Raises:
        FileNotFoundError: there are no such files
        ValueError: they hold no documents, are damaged, or of another format
    """

    def __init__(self, prefix: str, num_symbols: int, combine: bool = False):
        if not _exists(prefix):
            raise FileNotFoundError(
                f"{prefix}.idx: no such file; make the data folder with preprocess/prepare_corpus.py"
            )
        numbers = itertools.count() if combine else range(1)
        for part in itertools.takewhile(_exists, (f"{prefix}{number or ''}" for number in numbers)):
            _check(part)
        super().__init__(load_indexed_dataset(prefix, dataset_impl="mmap", combine=combine))
        self.prefix, self.num_symbols = prefix, num_symbols
        if len(self) == 0 or self.sizes.sum() == 0:
            raise ValueError(_no_documents(prefix))

    def __getitem__(self, index: int) -> Tensor:
        """
        Raises:
            ValueError: a token is not in the dictionary
        """
        tokens = self.dataset[index]
        if len(tokens) > 0 and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.num_symbols:
            raise ValueError(
                f"{self.prefix}.bin, document {index}: tokens {int(tokens.min())} to "
                f"{int(tokens.max())}, but the dictionary has {self.num_symbols} symbols: prepare the "
                "corpus again"
            )
        return tokens


def _exists(prefix: str) -> bool:
    return os.path.isfile(f"{prefix}.idx") and os.path.isfile(f"{prefix}.bin")


def _no_documents(prefix: str) -> str:
    return f"{prefix}.idx holds no documents: prepare the corpus again"


def _check(prefix: str) -> None:
    """Raises ValueError where .idx is none, or not of .bin."""
    num_bytes = os.path.getsize(f"{prefix}.bin")
    if num_bytes == 0:
        raise ValueError(_no_documents(prefix))  # fairseq cannot map an empty file
    with open(f"{prefix}.idx", "rb") as file:
        header = file.read(_HEADER.size)
    # of another version or format of fairseq's, too
    damaged = f"{prefix}.idx is damaged: prepare the corpus again"
    if len(header) < _HEADER.size:
        raise ValueError(damaged)
    magic, version, kind, count = _HEADER.unpack(header)
    # of every document, a length (4 bytes) and a place (8 bytes)
    whole = os.path.getsize(f"{prefix}.idx") == _HEADER.size + 12 * count
    if (magic, version) != (_MAGIC, 1) or kind not in _BYTES or not whole:
        raise ValueError(damaged)
    sizes = np.fromfile(f"{prefix}.idx", np.int32, count, offset=_HEADER.size).astype(np.int64)
    places = np.fromfile(f"{prefix}.idx", np.int64, count, offset=_HEADER.size + 4 * count)
    needed = _BYTES[kind] * int(sizes.sum())
    if needed > num_bytes:
        raise ValueError(
            f"{prefix}.bin has {num_bytes:,} bytes, and its documents {needed:,}: prepare the corpus "
            "again"
        )
    room = num_bytes - _BYTES[kind] * sizes
    if not ((sizes >= 0) & (places >= 0) & (places <= room)).all():
        raise ValueError(damaged)
