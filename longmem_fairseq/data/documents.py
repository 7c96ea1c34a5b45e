"""The documents of a split, as preprocess/prepare_corpus.py wrote them."""

import os
import struct

import numpy as np
from fairseq.data import Dictionary, FairseqDataset, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset


def load_documents(path: str, dictionary: Dictionary, combine: bool = False) -> FairseqDataset:
    """An indexed dataset, one item per document, of *path*.bin and *path*.idx.

    Args:
        combine: with *path*1, *path*2 and so on, as fairseq names the parts of a split

    Raises:
        FileNotFoundError: there is no such split
        ValueError: it holds no documents, or a file is damaged
    """
    again = "prepare the corpus again"
    if os.path.isfile(f"{path}.bin") and os.path.getsize(f"{path}.bin") == 0:
        raise ValueError(
            f"{path}.idx holds no documents: {again}"
        )  # fairseq cannot map an empty file
    try:
        documents = data_utils.load_indexed_dataset(path, dictionary, combine=combine)
    except (AssertionError, ValueError, LookupError, struct.error) as error:
        raise ValueError(f"{path}.idx is damaged: {again}") from error
    if documents is None:
        raise FileNotFoundError(
            f"{path}.idx: no such file; make the data folder with preprocess/prepare_corpus.py"
        )
    if len(documents) == 0 or documents.sizes.sum() == 0:
        raise ValueError(f"{path}.idx holds no documents: {again}")
    if isinstance(documents, MMapIndexedDataset):  # which is found out when a document is read
        expected = int(documents.sizes.sum()) * np.dtype(documents._index.dtype).itemsize
        found = os.path.getsize(f"{path}.bin")
        if found < expected:
            raise ValueError(
                f"{path}.bin has {found:,} bytes, and its documents {expected:,}: {again}"
            )
    return documents
