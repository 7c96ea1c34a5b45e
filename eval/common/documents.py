"""The documents of a split, in groups to be read side by side, and the questions about them."""

import os
from typing import Dict, List, Sequence

import numpy as np
from torch import Tensor

from eval.common.results import read_json_lines

# fields of a question, in tokens except for the number of its document
QUESTION = dict.fromkeys(("document", "position", "tokens", "mention", "distance"), int)


class Documents:
    """Some documents of a split, to be read side by side."""

    def __init__(self, split, numbers: Sequence[int]):
        self.split, self.numbers = split, numbers
        self.sizes = np.asarray(split.sizes)[list(numbers)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        return self.split[self.numbers[index]]


def group_documents(sizes: Sequence[int], batch_size: int) -> List[List[int]]:
    """Numbers of the documents that are read side by side: of similar length, the shortest first.

    The other documents of a batch change the last bits of a document's scores. So a group is read as a
    whole or not at all, also by a run that was killed.
    """
    order = np.argsort(np.asarray(sizes), kind="stable")
    return [group.tolist() for group in np.array_split(order, -(-len(order) // batch_size))]


def load_documents(task, split: str):
    """The documents of a split, and the description of each: name, words, ...

    Raises:
        FileNotFoundError: there is no such split
        ValueError: it is damaged, or its descriptions do not fit its documents
    """
    task.load_dataset(split)
    documents = task.dataset(split)
    path = os.path.join(task.cfg.data, f"{split}.documents.jsonl")
    descriptions = read_json_lines(path, {"name": str, "words": int})
    for line, described in enumerate(descriptions, start=1):
        if not 0 <= described["words"] <= 2**40:
            raise ValueError(f"{path}, line {line}: {described['words']} words")
    if len(descriptions) != len(documents):
        raise ValueError(
            f"{path} has {len(descriptions)} lines for {len(documents)} documents: prepare the corpus "
            "again"
        )
    if 0 in documents.sizes:
        raise ValueError(
            f"{os.path.join(task.cfg.data, split)}.idx: document {list(documents.sizes).index(0)} has "
            "no tokens, not even its end: prepare the corpus again"
        )
    return documents, descriptions


def by_document(questions: List[Dict], sizes: Sequence[int], path: str) -> List[List[Dict]]:
    """The questions of every document.

    Args:
        sizes: tokens of every document
        path: file of the questions, a line each

    Raises:
        ValueError: a question is about no document, or its answer is not inside
    """
    of_documents: List[List[Dict]] = [[] for _ in sizes]
    for line, question in enumerate(questions, start=1):
        number, start, tokens = (question[name] for name in ("document", "position", "tokens"))
        if not 0 <= number < len(sizes):
            raise ValueError(f"{path}, line {line}: document {number} is none of {len(sizes)}")
        if start < 0 or tokens < 1 or start + tokens > sizes[number]:
            raise ValueError(
                f"{path}, line {line}: an answer of {tokens} tokens at {start} is not inside document "
                f"{number}, which has {sizes[number]}"
            )
        of_documents[number].append(question)
    return of_documents
