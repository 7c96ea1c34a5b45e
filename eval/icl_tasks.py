"""The five tasks of in-context learning: their files, labels and templates (section 4.3 of the paper).

Files are those of the released project (data/icl/original): SST-2 as .tsv with a header, MR, Subj and
MPQA as .csv, SST-5 in the sent-conv form "LABEL TEXT".
"""

import csv
from pathlib import Path
from typing import Iterator, List, NamedTuple, Sequence


class Example(NamedTuple):
    """A text and its label."""

    text: str
    label: str  # a word


class Task(NamedTuple):
    """The files of a task, its labels and its templates.

    folder, train, test: names of folder and files; SST-2 and SST-5 are evaluated on dev
    labels: words, in the order of their numbers
    prompt, answer: the text before the label, and the label with what follows it
    """

    folder: str
    train: str
    test: str
    labels: Sequence[str]
    prompt: str = " Review: {text} Sentiment:"
    answer: str = " {label}."


SENTIMENT = ("negative", "positive")
TASKS = {
    "SST-2": Task("SST-2", "train.tsv", "dev.tsv", SENTIMENT),
    "MR": Task("mr", "train.csv", "test.csv", SENTIMENT),
    "Subj": Task(
        "subj", "train.csv", "test.csv", ("subjective", "objective"), " Input: {text} Type:"
    ),
    "SST-5": Task(
        "sst-5",
        "stsa.fine.train",
        "stsa.fine.dev",
        ("terrible", "bad", "okay", "good", "great"),
    ),
    "MPQA": Task("mpqa", "train.csv", "test.csv", SENTIMENT),
}


def read_examples(path: Path, labels: Sequence[str], allow_empty: bool = False) -> List[Example]:
    """The examples of a file.

    Args:
        allow_empty: take examples without text, too

    Raises:
        FileNotFoundError: there is no such file
        ValueError: a line has other columns, no text, or no gold label
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --data is the folder of the tasks' folders")
    examples = []
    for number, columns in _lines(path):
        where = f"{path}, line {number}"
        if len(columns) != 2:
            raise ValueError(f"{where}: {len(columns)} columns instead of a text and a label")
        label, text = (column.strip() for column in columns)
        if not label.isdigit() or int(label) >= len(labels):
            raise ValueError(f"{where}: gold label {label!r} instead of 0 to {len(labels) - 1}")
        if not text and not allow_empty:
            raise ValueError(f"{where}: no text")
        examples.append(Example(text, labels[int(label)]))
    if not examples:
        raise ValueError(f"{path} holds no examples")
    return examples


def _lines(path: Path) -> Iterator:
    """Line numbers with label and text, or with other columns where a line has another form."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            if path.suffix == ".csv":
                for row in (reader := csv.reader(file)):
                    yield reader.line_num, row
            elif path.suffix == ".tsv":
                if next(file, "").rstrip("\r\n") != "sentence\tlabel":
                    raise ValueError(f"{path}: the first line is not 'sentence<tab>label'")
                for number, line in enumerate(file, start=2):
                    yield number, line.rstrip("\r\n").split("\t")[::-1]
            else:
                for number, line in enumerate(file, start=1):
                    yield number, line.rstrip("\r\n").split(" ", 1)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error.reason})") from None
        except csv.Error as error:
            raise ValueError(f"{path} is no table ({error})") from None


def is_right(predicted: str, label: str) -> bool:
    """The paper's rule: the predicted token is not empty, and the label word begins with it."""
    predicted = predicted.strip()
    return bool(predicted) and label.startswith(predicted)
