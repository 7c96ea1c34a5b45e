#!/usr/bin/env python3
"""Write a corpus of long documents that state facts about people and ask for them far later.

A document is one paragraph of plain English sentences: statements (`Ada paints.`), questions with
their answer, which restates the statement (`Do you remember? Ada paints.`), and filler. Which value
belongs to a name is drawn anew and uniformly for each document, so that nothing else can tell it:
who does not find the earlier mention guesses, and is right in 1 of --values cases.

Example:
    python -m preprocess.make_recall_corpus --dest data/recall

writes data/recall/{train,valid,test}.jsonl, a document a line:
    {"name", "text", "questions": [{"answer": [start, end], "mention": [start, end], "relation"}]}
with character offsets of the value in the answer and in the most recent earlier mention of the
same fact, and data/recall/corpus.json with the accuracy of a guess (`chance`) and the options.
"""

import argparse
import bisect
import json
import random
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from longmem_fairseq.utils.cli import run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.output_folder import is_up_to_date, replaced_folder
from preprocess import recall_words
from preprocess.recall_words import FILLER, NAMES, RELATIONS

SPLITS = ("train", "valid", "test")
FORMAT = 1


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--dest", type=Path, required=True, help="folder to write, new or empty")
    add("--train-documents", type=int, default=400, help="documents of the train split")
    add("--valid-documents", type=int, default=4, help="documents of the valid split")
    add("--test-documents", type=int, default=8, help="documents of the test split")
    add("--train-words", type=int, default=6000, help="words of a train document")
    add("--test-words", type=int, default=16000, help="words of a valid or test document")
    add("--names", type=int, default=240, help=f"people in a document, at most {len(NAMES)}")
    add("--values", type=int, default=40, help="values of each relation")
    add("--fact-rate", type=float, default=0.25, help="share of steps that state a new fact")
    add("--question-rate", type=float, default=0.35, help="share of steps that ask for a fact")
    add("--near", type=float, default=0.6, help="share of questions about a recent mention")
    add("--near-sentences", type=int, default=20, help="how many sentences are recent")
    add("--seed", type=int, default=1, help="same seed and options, same files")
    add("--overwrite", action="store_true", help="replace an earlier, different result in --dest")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for an option outside its range."""
    most_values = min(len(relation.values) for relation in RELATIONS.values())
    for option, low, high in (
        ("train_documents", 1, None),
        ("valid_documents", 1, None),
        ("test_documents", 1, None),
        ("train_words", 1, None),
        ("test_words", 1, None),
        ("names", 1, len(NAMES)),
        ("values", 2, most_values),
        ("fact_rate", 0, 1),
        ("question_rate", 0, 1),
        ("near", 0, 1),
        ("near_sentences", 1, None),
    ):
        value = getattr(args, option)
        if not (low <= value and (high is None or value <= high)):
            expected = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"--{option.replace('_', '-')} ({value}) must be {expected}")
    if args.fact_rate == 0:
        raise ValueError("--fact-rate (0.0) must be above 0: without facts there are no questions")
    if args.fact_rate + args.question_rate > 1:
        raise ValueError(
            f"--fact-rate ({args.fact_rate}) and --question-rate ({args.question_rate}) "
            "must sum to at most 1, the rest is filler"
        )


def all_fillers() -> List[str]:
    """Every sentence of the filler grammar."""
    sentences = []
    for template in FILLER["sentence"]:
        expanded = [template]
        for slot, choices in FILLER.items():
            if f"{{{slot}}}" in template:
                expanded = [s.replace(f"{{{slot}}}", c) for s in expanded for c in choices]
        sentences.extend(expanded)
    return sentences


class DocumentWriter:
    """One document in the making: its sentences, and where each fact was mentioned last."""

    def __init__(self, rng: random.Random, args: argparse.Namespace, fillers: Sequence[str]):
        self.rng, self.args, self.fillers = rng, args, fillers
        facts = [(name, rel) for name in NAMES[: args.names] for rel in RELATIONS]
        self.unstated = rng.sample(facts, len(facts))  # popped from the end: a random order
        self.stated: List[Tuple[str, str]] = []
        self.value_of: Dict[Tuple[str, str], str] = {}
        self.last_mention: Dict[Tuple[str, str], List[int]] = {}  # character span of the value
        self.mention_steps: List[int] = []  # step of each mention, ascending
        self.mention_facts: List[Tuple[str, str]] = []
        self.sentences: List[str] = []
        self.questions: List[Dict[str, Any]] = []
        self.length = self.words = self.steps = 0

    def write(self, num_words: int) -> None:
        """Add sentences until the document has at least `num_words` words."""
        self.add_filler()  # the first word has no space before it: let it be no name
        while self.words < num_words:
            draw = self.rng.random()
            if draw < self.args.fact_rate and self.unstated:
                self.add_statement()
            elif draw >= 1 - self.args.question_rate and self.stated:
                self.add_question()
            else:
                self.add_filler()

    def add_filler(self) -> None:
        """Adds a sentence that states nothing."""
        self._append(self.rng.choice(self.fillers))
        self.steps += 1

    def add_statement(self) -> None:
        """Adds a sentence that states a new fact."""
        fact = self.unstated.pop()
        self.value_of[fact] = self.rng.choice(RELATIONS[fact[1]].values[: self.args.values])
        self.stated.append(fact)
        self._mention(fact)

    def add_question(self) -> None:
        """Adds a question about an earlier fact, with its answer."""
        fact = self._draw_fact()
        self._append(RELATIONS[fact[1]].question.format(name=fact[0]))
        earlier = self.last_mention[fact]
        answer = self._mention(fact)
        self.questions.append({"answer": answer, "mention": earlier, "relation": fact[1]})

    def _draw_fact(self) -> Tuple[str, str]:
        """In a share `--near` of cases a fact of the last sentences, else any stated so far.

        Every fact of the last sentences has the same chance, however often it was mentioned: a model
        must not get along with repeating the value that it saw last.
        """
        if self.rng.random() < self.args.near:
            first = bisect.bisect_left(self.mention_steps, self.steps - self.args.near_sentences)
            if first < len(self.mention_facts):
                return self.rng.choice(list(dict.fromkeys(self.mention_facts[first:])))
        return self.rng.choice(self.stated)

    def _mention(self, fact: Tuple[str, str]) -> List[int]:
        """Append the statement of `fact`; returns the span of its value in the document."""
        value = self.value_of[fact]
        self._append(RELATIONS[fact[1]].statement.format(name=fact[0], value=value))
        end = self.length - 1  # before the full stop
        self.last_mention[fact] = [end - len(value), end]
        self.mention_steps.append(self.steps)
        self.mention_facts.append(fact)
        self.steps += 1
        return self.last_mention[fact]

    def _append(self, sentence: str) -> None:
        self.length += len(sentence) + (1 if self.sentences else 0)
        self.words += sentence.count(" ") + 1
        self.sentences.append(sentence)

    def record(self, name: str) -> Dict[str, Any]:
        """The document as a line of the corpus."""
        return {"name": name, "text": " ".join(self.sentences), "questions": self.questions}


def write_split(path: Path, split: str, args: argparse.Namespace, fillers: List[str]) -> str:
    """Write one split; returns its line for people."""
    num_documents = getattr(args, f"{split}_documents")
    num_words = args.train_words if split == "train" else args.test_words
    words = questions = 0
    with open(path, "w", encoding="ascii") as file:
        for i in range(num_documents):
            # a generator of its own for each document: a longer split begins like a shorter one
            document = DocumentWriter(random.Random(f"{args.seed} {split} {i}"), args, fillers)
            document.write(num_words)
            file.write(json.dumps(document.record(f"{split}-{i:05d}")) + "\n")
            words += document.words
            questions += len(document.questions)
    return f"{split}: {num_documents} documents, {words} words, {questions} questions"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_options(args)
    options = {k: v for k, v in sorted(vars(args).items()) if k not in ("dest", "overwrite")}
    words = file_hash(recall_words.__file__)
    corpus = {"format": FORMAT, "chance": 1 / args.values, "options": options, "words": words}
    if is_up_to_date(args.dest, "corpus.json", corpus, args.overwrite):
        print(f"{args.dest}: up to date")
        return
    fillers = all_fillers()
    with replaced_folder(args.dest) as folder:
        lines = [write_split(folder / f"{split}.jsonl", split, args, fillers) for split in SPLITS]
        (folder / "corpus.json").write_text(json.dumps(corpus, indent=2) + "\n", encoding="ascii")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
