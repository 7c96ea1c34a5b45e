#!/usr/bin/env python3
"""RULER: what is found again in contexts of 4,096 tokens to a million.

Example:
    python -m eval.ruler --data data/ruler --lengths 4096,8192 --path models/smollm2 --name longmem \
        --pointer constant --memory-size 131072 --memory own,empty,other

--data is made by preprocess/make_ruler.py or by RULER's own scripts (with the model template "base"):
LENGTH/data/TASK/validation.jsonl. All of a prompt but its last line, the question, is memorized; the
window holds the question. A model without memory is given as much of the prompt's end as its window
holds. The most likely tokens are the answer, and the score (%) is the mean share of the reference
strings that it contains. Appends a JSON line to --results for every task, length and memory.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Tuple

from eval.common import long_contexts, model_options
from eval.common.long_contexts import ContextReader, Question, Rules
from eval.common.model_options import numbers
from eval.common.results import read_json_lines
from eval.common.score_tables import plot_means, score_table
from eval.ruler_tasks import TASKS, max_new_tokens, score
from longmem_fairseq.utils.cli import check_positive, run, script_parser

# what the table shows of a line, besides its label
SHOWN = ("task", "length")
FIELDS = {"input": str, "outputs": list}
OFFICIAL = "RULER's"  # the haystack of samples that do not name theirs


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of LENGTH/data/TASK/validation.jsonl")
    add("--lengths", default="4096", help="of these folders, with commas between them")
    add("--tasks", help="with commas between them (default: those that are there)")
    long_contexts.add_options(parser)
    model_options.add_model_options(parser)
    return parser


def path_of(folder: Path, length: int, task: str) -> Path:
    """Where RULER keeps the samples of a task."""
    return folder / str(length) / "data" / task / "validation.jsonl"


def chosen_tasks(args: argparse.Namespace, lengths: List[int]) -> List[str]:
    """The tasks that are named, or those of the first length that are there.

    Raises:
        FileNotFoundError: there is no file for a task and length
        ValueError: a task is unknown
    """
    tasks = [task for task in TASKS if path_of(args.data, lengths[0], task).is_file()]
    if args.tasks is not None:
        tasks = long_contexts.chosen("--tasks", args.tasks, TASKS)
    for path in (path_of(args.data, length, task) for length in lengths for task in tasks or TASKS):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; preprocess/make_ruler.py makes it")
    return tasks


def read_questions(path: Path) -> Tuple[List[Question], str]:
    """The samples of a file, each cut before its last line, and the text that their haystack is of.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is not of RULER's form
    """
    questions, records = [], read_json_lines(path, FIELDS)
    for number, record in enumerate(records, start=1):
        references = record["outputs"]
        if not references or not all(isinstance(text, str) and text for text in references):
            raise ValueError(f"{path}, line {number}: outputs are {references!r}, expected strings")
        # RULER's older files have the beginning of the answer in the prompt
        context, newline, question = record["input"].rpartition("\n")
        question += record.get("answer_prefix", "")
        questions.append(Question(context, newline + question, references))
    if not questions:
        raise ValueError(f"{path} holds no samples")
    return questions, records[0].get("haystack", OFFICIAL)


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "limit")
    lengths = numbers("--lengths", args.lengths, least=1)
    tasks = chosen_tasks(args, lengths)
    lm = model_options.load(args)
    for length in lengths:
        for task in tasks:
            path = path_of(args.data, length, task)
            questions, essays = read_questions(path)
            setting, rules = {"task": task, "length": length}, rules_of(task)
            reader = ContextReader(lm, rules, args.excerpts, args.words_only)
            long_contexts.evaluate("ruler", args, reader, path, questions, setting, haystack=essays)


def rules_of(task: str) -> Rules:
    """How a task is answered and scored: what an answer contains, it will contain."""

    def score_of(question: Question, answer: str) -> float:
        return score(task, answer, question.references)

    return Rules(max_new_tokens(task), score_of, lambda *asked: score_of(*asked) == 1)


def lengths_of(lines: List[Dict]) -> List[int]:
    """The lengths of all result lines, each once, the shortest first."""
    return sorted({line["setting"]["length"] for line in lines})


def table(lines: List[Dict]) -> List[str]:
    """Scores (%) by task, and their mean where all thirteen tasks are there."""
    rows = score_table(lines, TASKS, lengths_of(lines), "mean", TASKS)
    texts = {line["haystack"] for line in lines} - {"", OFFICIAL}
    if texts:
        rows += ["", f"In place of Paul Graham's essays: {', '.join(sorted(texts))}."]
    return rows


def plot(lines: List[Dict], path: Path) -> None:
    """The mean of the tasks that a model was asked, by length."""
    plot_means(lines, lengths_of(lines), path)


if __name__ == "__main__":
    run(main)
