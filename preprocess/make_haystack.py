#!/usr/bin/env python3
"""Write a haystack and needles to hide in it: a long text, facts, and questions about them.

Examples:
    python -m preprocess.make_haystack --dest haystack.json
    python -m preprocess.make_haystack --format passkey --dest passkey.json

--format recall speaks the language of preprocess/make_recall_corpus.py, for models that were trained on
it: the haystack is such a document, about other people than the needles (`Wilma swims.`, asked by `Do
you remember? Wilma`). passkey is for models of English: a number to be remembered, in sentences that
are repeated or in a text of yours (--text). Writes {"format", "chance", "haystack", "needles":
[{"needle", "question", "answer"}]}, for eval/needle.py.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.text_files import read_text
from preprocess import make_recall_corpus
from preprocess.recall_words import NAMES, RELATIONS

REPEATED = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
DIGITS = 5


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--dest", type=Path, required=True, help="file to write, .json")
    add(
        "--format",
        choices=("recall", "passkey"),
        default="recall",
        help="recall: of the recall corpus, for models trained on it; passkey: of English",
    )
    add(
        "--words",
        type=int,
        default=900_000,
        help="words of the haystack (1.2 tokens each in recall)",
    )
    add(
        "--needles",
        type=int,
        default=40,
        help="facts to hide; recall has one for each of the last names",
    )
    add("--names", type=int, default=240, help="recall: people that the model was trained with")
    add("--values", type=int, default=40, help="recall: values that it was trained with")
    add("--text", type=Path, help="passkey: haystack, a text file (default: repeated sentences)")
    add("--seed", type=int, default=1, help="same seed and options, same file")
    return parser


def recall(args: argparse.Namespace) -> Tuple[str, List[Dict[str, str]], float]:
    """Haystack, needles and chance in the language of the recall corpus."""
    if args.names > len(NAMES):
        raise ValueError(f"--names ({args.names}) must be at most {len(NAMES)}")
    if args.needles >= args.names:
        raise ValueError(f"--needles ({args.needles}) must be less than --names ({args.names})")
    options = ["--dest", "unused", "--names", str(args.names - args.needles)]
    options += ["--values", str(args.values)]
    corpus = make_recall_corpus.get_parser().parse_args(options)
    make_recall_corpus.check_options(corpus)
    fillers = make_recall_corpus.all_fillers()
    rng = random.Random(f"{args.seed} haystack")
    writer = make_recall_corpus.DocumentWriter(rng, corpus, fillers)
    writer.write(args.words)
    needles = []
    for name in NAMES[args.names - args.needles : args.names]:
        relation = RELATIONS[rng.choice(list(RELATIONS))]
        value = rng.choice(relation.values[: args.values])
        needle = relation.statement.format(name=name, value=value)
        before = needle[: needle.rindex(value)].rstrip()  # the value comes last
        question = f" {relation.question.format(name=name)} {before}"
        needles.append({"needle": f" {needle}", "question": question, "answer": f" {value}"})
    return writer.record("haystack")["text"], needles, 1 / args.values


def passkey(args: argparse.Namespace) -> Tuple[str, List[Dict[str, str]], float]:
    """Haystack, needles and chance in English."""
    text = read_text(args.text) if args.text else REPEATED
    words = len(text.split())
    if words == 0:
        raise ValueError(f"--text ({args.text}) is empty")
    text = " ".join([text.strip()] * -(-args.words // words))
    rng = random.Random(f"{args.seed} passkey")
    needles = []
    for _ in range(args.needles):
        key = rng.randrange(10 ** (DIGITS - 1), 10**DIGITS)
        needle = f" The pass key is {key}. Remember it. {key} is the pass key."
        question = " What is the pass key? The pass key is"
        needles.append({"needle": needle, "question": question, "answer": f" {key}"})
    return text, needles, 1 / (9 * 10 ** (DIGITS - 1))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_positive(args, "words", "needles")
    if args.text is not None and args.format != "passkey":
        raise ValueError(f"--text ({args.text}) is for --format passkey")
    text, needles, chance = {"recall": recall, "passkey": passkey}[args.format](args)
    args.dest.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": args.format, "chance": chance, "haystack": text, "needles": needles}
    args.dest.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(f"{args.dest}: {len(text.split()):,} words, {len(needles)} needles, chance {chance:.3%}")


if __name__ == "__main__":
    run(main)
