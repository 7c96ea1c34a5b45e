"""The split of every document, and how much text each split holds."""

import hashlib
import itertools
import random
from typing import Iterator, List, Optional, Sequence

from longmem_fairseq.corpus.source import SPLITS, Document, Source
from longmem_fairseq.utils.argument_error import ArgumentError

MAX_TRAINING_CHARACTERS = 30_000_000  # for SentencePiece; more text changes hardly a piece


class SplitCorpus:
    """A source with its splits settled.

    Reads every document once, so that bad input shows before any work is done on it.

    Args:
        valid_share, test_share: share of the documents, where the source has no splits of its own
        seed: of that split
        must_train: there has to be a train split, from which the tokenizer is made
        also: another source, of which the train split, or everything if it has no splits, is trained on
            after the rest

    Raises:
        ValueError: there are no documents, or none to train on
    """

    def __init__(
        self,
        source: Source,
        valid_share: float,
        test_share: float,
        seed: int,
        must_train: bool = True,
        also: Optional[Source] = None,
    ):
        self.source, self.also = source, also
        self.seed = seed
        self.split_of: List[str] = []  # of each document in reading order, where we split
        self.num_documents = dict.fromkeys(SPLITS, 0)
        self.num_characters = dict.fromkeys(SPLITS, 0)
        if source.has_splits:
            for split in source.split_files:
                for document in source.documents(split):
                    self._count(split, len(document.text))
        else:
            hashes, lengths = [], []
            for document in source.documents():
                hashes.append(hashlib.sha256(f"{seed} {document.name}".encode()).digest()[:8])
                lengths.append(len(document.text))
            self.split_of = split_by_rank(hashes, valid_share, test_share)
            for split, length in zip(self.split_of, lengths, strict=True):
                self._count(split, length)
        for document in self._further():
            self._count("train", len(document.text))
        if not any(self.num_documents.values()):
            raise ArgumentError("{source} ({}) holds no documents", source.path)
        if must_train and not self.num_documents["train"]:
            raise ArgumentError(
                "{source} ({}) has no documents in its train split, from which the tokenizer is made; "
                "for evaluation alone, give a model's folder as {vocabulary}",
                source.path,
            )

    def _count(self, split: str, num_characters: int) -> None:
        self.num_documents[split] += 1
        self.num_characters[split] += num_characters

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, read from the source again."""
        further = self._further() if split == "train" else iter(())
        if not self.source.has_splits:
            chosen = [s == split for s in self.split_of]
            return itertools.chain(itertools.compress(self.source.documents(), chosen), further)
        own = self.source.documents(split) if split in self.source.split_files else iter(())
        return itertools.chain(own, further)

    def _further(self) -> Iterator[Document]:
        """The documents of the other source."""
        if self.also is None:
            return iter(())
        if not self.also.has_splits:
            return self.also.documents()
        if "train" not in self.also.split_files:
            raise ArgumentError(f"{self.also.named} has splits, but no train", self.also.path)
        return self.also.documents("train")

    def training_texts(self) -> Iterator[str]:
        """Train documents, thinned by line to about MAX_TRAINING_CHARACTERS."""
        share = MAX_TRAINING_CHARACTERS / max(1, self.num_characters["train"])
        rng = random.Random(self.seed)
        for document in self.documents("train"):
            if share >= 1:
                yield document.text
            else:
                lines = document.text.split("\n")
                yield "\n".join(line for line in lines if rng.random() < share)


def split_by_rank(hashes: Sequence[bytes], valid_share: float, test_share: float) -> List[str]:
    """The split of each document: those with the smallest hashes are valid, the next ones test.

    A share above 0 gets at least one document, as long as one is left for train.
    """
    order = sorted(range(len(hashes)), key=lambda i: (hashes[i], i))
    splits = ["train"] * len(hashes)
    start = 0
    for split, share in (("valid", valid_share), ("test", test_share)):
        count = max(1, round(share * len(hashes))) if share > 0 else 0
        count = max(0, min(count, len(hashes) - 1 - start))
        for i in order[start : start + count]:
            splits[i] = split
        start += count
    return splits
