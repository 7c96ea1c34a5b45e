#!/usr/bin/env python3
"""BABILong: reasoning over facts that are hidden in books of up to a million tokens.

Example:
    python -m eval.babilong --data data/babilong --lengths 1k,4k --path models/smollm2 --name longmem \
        --pointer constant --memory-size 131072 --memory own,empty,other

--data is made by preprocess/make_babilong.py, or holds the files of the dataset RMT-team/babilong:
data/TASK/LENGTH.json. The context is memorized; the window holds instruction, examples and question. A
model without memory is given as much of the context's end as its window holds. The most likely tokens
are the answer, which is right if its first sentence names the answer's label and no other one but those
in the question. Appends a JSON line to --results for every task, length and memory.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Sequence

from eval.common import long_contexts, model_options
from eval.common.long_contexts import ContextReader, Question, Rules
from eval.common.results import read_json_lines
from eval.common.score_tables import plot_means, score_table
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.text_files import parse_json, read_json

# what the table shows of a line, besides its label
SHOWN = ("task", "length")
FIELDS = {"input": str, "question": str, "target": str}
# of every task the lines before the context, with instruction and examples, and the answers' labels
PROMPTS: Dict[str, Dict] = read_json(Path(__file__).with_name("babilong_prompts.json"))["tasks"]
CONTEXT, QUESTION = "<context>\n{context}\n</context>", "\n\nQuestion: {question}"
TASKS = tuple(PROMPTS)
HEADLINE = TASKS[:5]
LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M")
MAX_NEW_TOKENS = 20


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of data/TASK/LENGTH.json")
    add("--lengths", default="4k", help="0k, 1k, ... 1M, with commas between them")
    add("--tasks", default=",".join(HEADLINE), help="with commas between them")
    long_contexts.add_options(parser)
    model_options.add_model_options(parser)
    return parser


def read_questions(path: Path, task: str) -> List[Question]:
    """The samples of a file: a JSON list, or a JSON object a line.

    Raises:
        OSError: it cannot be read
        ValueError: it is not of BABILong's form
    """
    try:
        content = parse_json(path.read_bytes())
        records = content if isinstance(content, list) else [content]
    except ValueError:
        records = read_json_lines(path, FIELDS)
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not all(
            isinstance(record.get(name), kind) for name, kind in FIELDS.items()
        ):
            raise ValueError(f"{path}, sample {number}: expected strings {', '.join(FIELDS)}")
    if not records:
        raise ValueError(f"{path} holds no samples")
    return [
        Question(
            CONTEXT.format(context=record["input"].strip()),
            QUESTION.format(question=record["question"]),
            [record["target"]],
            "\n".join(PROMPTS[task]["head"]),
        )
        for record in records
    ]


def is_right(answer: str, target: str, question: str, labels: Sequence[str]) -> bool:
    """Whether the answer's first sentence names the target, or all of several, and no other label but
    those in the question. Labels are looked for in words too, as BABILong does."""
    answer, question = answer.lower().split(".")[0], question.lower()
    for end in ("<context>", "<example>"):
        answer = answer.split(end)[0]
    named = {label.lower() for label in labels if label.lower() in answer}
    named -= {label.lower() for label in labels if label.lower() in question}
    return named == set(target.lower().split(","))


def rules_of(task: str) -> Rules:
    """How a task is answered and scored: nothing counts after the first full stop."""

    def score_of(question: Question, answer: str) -> float:
        (target,) = question.references
        return float(is_right(answer, target, question.question, PROMPTS[task]["labels"]))

    return Rules(MAX_NEW_TOKENS, score_of, lambda _, answer: "." in answer)


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "limit")
    tasks = long_contexts.chosen("--tasks", args.tasks, TASKS)
    lengths = long_contexts.chosen("--lengths", args.lengths, LENGTHS)
    files = {
        (task, length): args.data / "data" / task / f"{length}.json"
        for length in lengths
        for task in tasks
    }
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; preprocess/make_babilong.py makes it")
    lm = model_options.load(args)
    for (task, length), path in files.items():
        questions, setting = read_questions(path, task), {"task": task, "length": length}
        reader = ContextReader(lm, rules_of(task), args.excerpts, args.words_only)
        long_contexts.evaluate("babilong", args, reader, path, questions, setting)


def table(lines: List[Dict]) -> List[str]:
    """Right answers (%) by task, and the mean of qa1 to qa5."""
    return score_table(lines, TASKS, LENGTHS, "mean of qa1-qa5", HEADLINE)


def plot(lines: List[Dict], path: Path) -> None:
    """The mean of the tasks that a model was asked, by length."""
    plot_means(lines, LENGTHS, path)


if __name__ == "__main__":
    run(main)
