#!/usr/bin/env python3
"""Write BABILong (arXiv 2406.10149): the facts of bAbI between the sentences of books.

Example:
    python -m preprocess.make_babilong --model models/smollm2 --babi tasks_1-20_v1-2/en-10k \
        --books books/test --dest data/babilong --lengths 0k,1k,2k,4k --samples 100

Every sample is a question of bAbI with the facts before it, in their order, at random places between
consecutive sentences of a book, which begin at a random place of it. Writes DEST/data/TASK/LENGTH.json,
as the dataset RMT-team/babilong has them: [{"input", "question", "target"}]. A length is of the whole
prompt: of its tokens 300 are left to instruction and examples, as in BABILong. 0k has facts alone.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from eval.babilong import LENGTHS, TASKS
from eval.common.long_contexts import chosen
from longmem_fairseq.tokenizers import Tokenizer, load_tokenizer
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.text_files import read_text
from preprocess.haystack_text import inserted, read_haystack, sentences

TOKENS = {name: int(name[:-1]) * (1_000_000 if name[-1] == "M" else 1000) for name in LENGTHS}
PROMPT_TOKENS = 300
TOKENS_PER_FACT = 8  # a question with more facts than so many tokens each have room for is left out
SHORTEST_SENTENCE = 10  # tokens


class Question(NamedTuple):
    """A question of bAbI.

    facts: the sentences of its story before it, in their order
    answer: as bAbI has it; several words have commas between them
    """

    facts: List[str]
    question: str
    answer: str


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with dict.txt and the tokenizer")
    add("--babi", type=Path, required=True, help="folder of bAbI's files, qa1_*_SPLIT.txt")
    add("--books", type=Path, required=True, help="a folder of .txt files, or one file")
    add("--dest", type=Path, required=True, help="folder to write")
    add("--tasks", default=",".join(TASKS), help="with commas between them")
    add("--lengths", default=",".join(LENGTHS), help="tokens of a prompt, with commas between them")
    add("--split", default="test", help="of bAbI: train, valid or test")
    add("--samples", type=int, default=100, help="of each task and length")
    add("--seed", type=int, default=42, help="same seed and options, same files")
    return parser


def read_questions(folder: Path, task: str, split: str) -> List[Question]:
    """The questions of a task, each with the facts of its story before it.

    Raises:
        FileNotFoundError: there is not one file of that task and split
        ValueError: a line is not of bAbI's form
    """
    files = sorted(folder.glob(f"{task}_*_{split}.txt"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"--babi ({folder}): {len(files)} files {task}_*_{split}.txt, expected 1"
        )
    questions, facts = [], []
    for number, line in enumerate(read_text(files[0]).splitlines(), start=1):
        if not line.strip():
            continue
        place, _, text = line.partition(" ")
        # some editions have bars for tabs
        text, *answer = text.replace("|", "\t").split("\t")
        if not place.isdigit() or not text.strip():
            raise ValueError(f"{files[0]}, line {number}: expected a number and a sentence")
        if int(place) == 1:
            facts = []
        if answer:
            questions.append(Question(list(facts), text.strip(), answer[0].strip()))
        else:
            facts.append(text.strip())
    if not questions:
        raise ValueError(f"{files[0]} holds no questions")
    return questions


class Background:
    """Sentences of books, one after another from random places on.

    Args:
        books: texts
    """

    def __init__(self, books: Sequence[str], tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.books = [text for text in books if text.strip()]

    def sentences(self, rng: random.Random, room: int) -> List[str]:
        """As many as have *room* tokens together, the last one cut off at a word."""
        parts: List[str] = []
        while room > 0:
            for sentence in self._from_anywhere(rng, room):
                tokens = self._tokens(sentence)
                if tokens < SHORTEST_SENTENCE:
                    continue
                while tokens > room and sentence:
                    sentence = sentence.rpartition(" ")[0]
                    tokens = self._tokens(sentence) if sentence else 0
                parts += [sentence] if sentence else []
                room = room - tokens if sentence else 0
                if room <= 0:
                    break
        return parts

    def _from_anywhere(self, rng: random.Random, room: int) -> List[str]:
        text = rng.choice(self.books)
        start = rng.randrange(len(text))
        # the first is half a sentence, and so may be the last
        return sentences(text[start : start + 10 * room + 1000])[1:-1]

    def _tokens(self, sentence: str) -> int:
        return len(self.tokenizer.encode(" " + sentence))


def hidden(rng: random.Random, facts: Sequence[str], background: Sequence[str]) -> str:
    """The facts in their order at random places between sentences."""
    places = sorted(rng.choices(range(len(background) + 1), k=len(facts)))
    return " ".join(inserted(background, places, facts))


def samples(
    args: argparse.Namespace,
    background: Background,
    questions: Sequence[Question],
    task: str,
    length: str,
) -> Iterator[Dict[str, str]]:
    """The records of one file.

    Args:
        questions: of the task

    Raises:
        ValueError: the length has no room for any question's facts, or there are too few questions
    """
    room = max(0, TOKENS[length] - PROMPT_TOKENS)
    questions = [
        question
        for question in questions
        if TOKENS[length] == 0 or len(question.facts) <= room // TOKENS_PER_FACT
    ]
    if len(questions) < args.samples:
        raise ValueError(
            f"--samples ({args.samples}) must be at most {len(questions)}, the questions of {task} "
            f"whose facts --lengths ({length}) has room for"
        )
    rng = random.Random(f"{args.seed} {task} {length}")
    drawn = random.Random(f"{args.seed} {task}").sample(questions, args.samples)
    for question in drawn:
        tokens = len(background.tokenizer.encode(" ".join(question.facts)))
        text = hidden(rng, question.facts, background.sentences(rng, room - tokens))
        yield {"input": text, "question": question.question, "target": question.answer}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_positive(args, "samples")
    tasks = chosen("--tasks", args.tasks, TASKS)
    lengths = chosen("--lengths", args.lengths, LENGTHS)
    tokenizer = load_tokenizer(args.model)
    background = Background(read_haystack("--books", args.books), tokenizer)
    for task in tasks:
        questions = read_questions(args.babi, task, args.split)
        for length in lengths:
            records = list(samples(args, background, questions, task, length))
            path = args.dest / "data" / task / f"{length}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(records) + "\n", encoding="utf-8")
            print(f"{path}: {len(records)} samples")


if __name__ == "__main__":
    run(main)
