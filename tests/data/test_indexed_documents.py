"""fairseq's binaries: read as they were written, and refused by name where they are damaged."""

import pickle
import struct

import pytest
import torch
from fairseq.data.indexed_dataset import IndexedDatasetBuilder, MMapIndexedDatasetBuilder

from longmem_fairseq.data import IndexedDocuments

DOCUMENTS = [[4, 5, 6, 7, 2], [2], [8, 9, 2]]
HEADER = 26  # bytes of an .idx before the sizes


def write(prefix, documents=DOCUMENTS):
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin")
    for document in documents:
        builder.add_item(torch.tensor(document))
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture
def prefix(tmp_path):
    return write(tmp_path / "train")


def test_documents_are_as_written(prefix):
    for documents in (found := IndexedDocuments(prefix, 10), pickle.loads(pickle.dumps(found))):
        assert [documents[i].tolist() for i in range(len(documents))] == DOCUMENTS
        assert documents.sizes.tolist() == [5, 1, 3]


def test_parts_are_combined_only_if_asked_for(prefix, tmp_path):
    write(tmp_path / "train1", [[3, 2]])
    assert len(IndexedDocuments(prefix, 10)) == 3
    documents = IndexedDocuments(prefix, 10, combine=True)
    assert [documents[i].tolist() for i in range(len(documents))] == [*DOCUMENTS, [3, 2]]
    (tmp_path / "train1.idx").write_bytes(b"")
    assert len(IndexedDocuments(prefix, 10)) == 3
    with pytest.raises(ValueError, match="train1.idx is damaged"):
        IndexedDocuments(prefix, 10, combine=True)


def put(path, offset, content):
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


NO_INDEX = "train.idx is damaged: prepare the corpus again"
SHORT = "train.bin has 18 bytes, and its documents 72: prepare the corpus again"
LONG = "train.bin has 72 bytes, and its documents 80: prepare the corpus again"
# what is done to train.idx and train.bin, and the end of the message
DAMAGE = {
    "empty index": (lambda idx, bin: idx.write_bytes(b""), NO_INDEX),
    "header alone": (lambda idx, bin: idx.write_bytes(idx.read_bytes()[:HEADER]), NO_INDEX),
    "index without its end": (lambda idx, bin: idx.write_bytes(idx.read_bytes()[:-1]), NO_INDEX),
    "other magic": (lambda idx, bin: put(idx, 0, b"HUFFIDX"), NO_INDEX),
    "other version": (lambda idx, bin: put(idx, 9, b"\2"), NO_INDEX),
    "numbers with fractions": (lambda idx, bin: put(idx, 17, b"\6"), NO_INDEX),
    "another count": (lambda idx, bin: put(idx, 18, struct.pack("<Q", 2**61)), NO_INDEX),
    "text": (lambda idx, bin: idx.write_text("text " * 50), NO_INDEX),
    "a longer document": (lambda idx, bin: put(idx, HEADER + 8, b"\4"), LONG),
    "a negative size": (lambda idx, bin: put(idx, HEADER, struct.pack("<i", -1)), NO_INDEX),
    "a place beyond": (lambda idx, bin: put(idx, HEADER + 12, struct.pack("<q", 2**62)), NO_INDEX),
    "a place before": (lambda idx, bin: put(idx, HEADER + 12, struct.pack("<q", -8)), NO_INDEX),
    "half of the tokens": (lambda idx, bin: bin.write_bytes(bin.read_bytes()[:18]), SHORT),
    "no tokens": (
        lambda idx, bin: bin.write_bytes(b""),
        "train.idx holds no documents",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case, prefix, tmp_path):
    damage, message = DAMAGE[case]
    damage(tmp_path / "train.idx", tmp_path / "train.bin")
    with pytest.raises(ValueError) as error:
        IndexedDocuments(prefix, 10)
    assert str(error.value).startswith(str(tmp_path)) and message in str(error.value)


def test_a_token_that_is_not_in_the_dictionary(prefix):
    documents = IndexedDocuments(prefix, 9)
    assert documents[0].tolist() == DOCUMENTS[0]
    with pytest.raises(ValueError) as error:
        documents[2]
    assert str(error.value) == (
        f"{prefix}.bin, document 2: tokens 2 to 9, but the dictionary has 9 symbols: prepare the "
        "corpus again"
    )


def test_other_formats_of_fairseq_are_refused(tmp_path):
    """Their first bytes would be recognized."""
    builder = IndexedDatasetBuilder(str(tmp_path / "train.bin"))
    builder.add_item(torch.tensor([4, 2]))
    builder.finalize(str(tmp_path / "train.idx"))
    with pytest.raises(ValueError, match="train.idx is damaged"):
        IndexedDocuments(str(tmp_path / "train"), 10)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.idx: no such file; make the data folder"):
        IndexedDocuments(str(tmp_path / "train"), 10)
