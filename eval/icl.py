#!/usr/bin/env python3
"""In-context learning: a few demonstrations in the window, thousands in the memory.

Example:
    python -m eval.icl --data data/icl --path runs/longmem/checkpoint_last.pt --name longmem \
        --shots 20 --memory-demonstrations 2000 --chunk-size 2 --memory-size 131072

--data holds the folders SST-2, mr, subj, sst-5 and mpqa. For every task, number of demonstrations and
seed: draws the demonstrations from the training examples as the released script does, memorizes every
token of those for the memory, and asks for the label of each test example. --scoring argmax is the
paper's: the most likely next token is right if the label word begins with it. rank: the most likely of
all label words. Where the window does not hold all --shots beside an example, the first of them are in
the memory too. Appends a JSON line to --results for each, and prints one for people.
"""

import argparse
import random
import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from tqdm import tqdm

from eval.common import model_options
from eval.common.item_log import ItemLog
from eval.common.long_contexts import chosen
from eval.common.model_options import check_demonstrations, numbers
from eval.common.prompt_reader import Demonstrations, PromptReader
from eval.common.tables import PAPER_BACKBONE, PAPER_LONGMEM, markdown, mean_and_deviation, percent
from eval.icl_tasks import TASKS, Example, Task, is_right, read_examples
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash

SCORING = (
    "argmax, the paper's: right if the label word begins with the most likely next token; rank: the "
    "most likely of all label words"
)

# fields that the table shows beside a line's label
SHOWN = ("task", "shots", "memory_demonstrations", "scoring")
# mean accuracy (%) of the five tasks, 20 demonstrations in context; LongMem has 2,000 in memory
PAPER_20_SHOTS = {PAPER_BACKBONE: 58.7, PAPER_LONGMEM: 66.7}


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the tasks' folders")
    add("--tasks", default=",".join(TASKS), help="some of these, with commas between")
    add("--shots", default="4,20", help="demonstrations in context: one run for each number")
    add(
        "--memory-demonstrations", default="0,2000", help="those in memory: one run for each number"
    )
    add("--seeds", default="1,2,3,4,5,6", help="of the demonstrations: one run for each")
    add("--scoring", choices=("argmax", "rank"), default="argmax", help=SCORING)
    add("--batch-size", type=int, default=32, help="examples read side by side")
    add("--limit", type=int, help="test examples of a task, drawn once for all (default: all)")
    model_options.add_model_options(parser)
    return parser


def batches(questions: Sequence[Tensor], size: int) -> Iterator[List[int]]:
    """Numbers of questions of similar length, the shortest first."""
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def draw(examples: List[Example], shots: int, memory: int, seed: int) -> Tuple[List, List]:
    """Demonstrations in context and in memory, drawn as the released evaluation script draws them.

    Raises:
        ValueError: there are not so many
    """
    if max(shots, memory) > len(examples):
        raise ValueError(
            f"{max(shots, memory)} demonstrations are more than the {len(examples)} training examples: "
            "lower --shots or --memory-demonstrations"
        )
    rng = random.Random(seed)
    return rng.sample(examples, shots), rng.sample(examples, memory)


def some_of(test: List[Example], limit: Optional[int]) -> List[Example]:
    """So many test examples, drawn always alike: in some files each label has a part of its own."""
    if limit is None or limit >= len(test):
        return test
    return [test[i] for i in sorted(random.Random(0).sample(range(len(test)), limit))]


def choose(
    reader: PromptReader,
    prefix: Tensor,
    questions: List[Tensor],
    labels: Dict[str, Tensor],
    scoring: str,
) -> List[str]:
    """The model's answer to every question: the text of the most likely token, or a label word.

    Args:
        labels: tokens of every label word
    """
    words = list(labels.values())
    if scoring == "argmax":
        # any token may stand after a question: only the model's own choice there counts
        scored = read_rows(reader, prefix, [torch.cat([q, words[0][:1]]) for q in questions])
        return [reader.lm.tokenizer.decode(s.choices[-1:].tolist()).strip() for s in scored]
    rows = [torch.cat([question, word]) for question in questions for word in words]
    likelihoods = torch.tensor(
        [
            s.log_probabilities[-len(words[i % len(words)]) :].sum()
            for i, s in enumerate(read_rows(reader, prefix, rows))
        ]
    ).view(len(questions), len(words))
    return [list(labels)[i] for i in likelihoods.argmax(dim=1).tolist()]


def read_rows(reader: PromptReader, prefix: Tensor, rows: List[Tensor]) -> List:
    """Scores of rows side by side, or one after another where they do not fit into the window."""
    if len(prefix) - 1 + max(len(row) for row in rows) <= reader.window:
        return reader.score(prefix, rows)
    return [reader.score(prefix, [row])[0] for row in rows]


class Run(NamedTuple):
    """One setting of a task: which demonstrations stand where before which test examples."""

    task: Task
    in_context: List[Example]
    in_memory: List[Example]
    test: List[Example]
    title: str


def evaluate(reader: PromptReader, one: Run, log: ItemLog, args: argparse.Namespace) -> Dict:
    """Asks for the label of every test example; those that *log* has are not asked again."""
    task = one.task

    def demonstrated(examples: List[Example]) -> List[Tensor]:
        texts = [
            task.prompt.format(text=e.text) + task.answer.format(label=e.label) for e in examples
        ]
        return [reader.tokens(text) for text in texts]

    def asked(batch: List[int], prefix: Tensor) -> Dict:
        of_batch = [questions[i] for i in batch]
        words = choose(reader, prefix, of_batch, labels, args.scoring)
        return {"examples": batch, "words": words}

    questions = [reader.tokens(task.prompt.format(text=e.text)) for e in one.test]
    labels = {label: reader.tokens(f" {label}") for label in task.labels}
    longest_label = max(len(tokens) for tokens in labels.values())
    longest = max(len(question) for question in questions) + longest_label
    demonstrations = Demonstrations(
        reader, demonstrated(one.in_memory), demonstrated(one.in_context), longest
    )
    right, in_window, seconds = 0, 0, 0.0
    with tqdm(total=len(one.test), desc=one.title, unit=" examples") as bar:
        for number, batch in enumerate(batches(questions, args.batch_size)):
            prefix = demonstrations.before(max(len(questions[i]) for i in batch) + longest_label)
            done = log.measured(str(number), partial(asked, batch, prefix))
            for i, word in zip(done["examples"], done["words"], strict=True):
                right += is_right(word, one.test[i].label)
            in_window += len(demonstrations.in_context) * len(batch)
            seconds += done["seconds"]
            bar.update(len(batch))
    count = len(one.test)
    return {
        "examples": count,
        "accuracy": right / count,
        "majority": max(sum(e.label == word for e in one.test) for word in task.labels) / count,
        "tokens": sum(len(question) for question in questions),
        "memorized_tokens": demonstrations.memorized if reader.has_memory else 0,
        "shots_in_window": in_window / count,
        "seconds": round(seconds, 1),
    }


def read_task(folder: Path, task: Task) -> Tuple[List[Example], List[Example], Dict[str, str]]:
    """Training and test examples, and the hashes of their files."""
    paths = [folder / task.folder / file for file in (task.train, task.test)]
    # three of MPQA's have no text; left out, others would be drawn than by the released script
    train = read_examples(paths[0], task.labels, allow_empty=True)
    test = read_examples(paths[1], task.labels)
    return train, test, {path.name: file_hash(path) for path in paths}


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "batch_size", "limit")
    tasks = chosen("--tasks", args.tasks, list(TASKS))
    data = {name: read_task(args.data, TASKS[name]) for name in tasks}
    in_memory = numbers("--memory-demonstrations", args.memory_demonstrations)
    settings = product(
        tasks, in_memory, numbers("--shots", args.shots), numbers("--seeds", args.seeds)
    )
    lm = model_options.load(args)
    reader = PromptReader(lm)
    check_demonstrations(args, lm, in_memory)
    for name, memory, shots, seed in settings:
        train, test, hashes = data[name]
        setting = {"task": name, "shots": shots, "memory_demonstrations": memory}
        setting["scoring"] = args.scoring
        title = f"{name}, {shots} shots, {memory} in memory, seed {seed}"
        one = Run(TASKS[name], *draw(train, shots, memory, seed), some_of(test, args.limit), title)
        key = model_options.settings(args, lm.model, "icl", hashes)
        key["options"].update(setting, tasks=name, seeds=seed)
        measured = evaluate(reader, one, ItemLog(args.results, key), args)
        model_options.append_measured(args, lm.model, "icl", measured, setting, seed)
        print(f"{args.name}: {title}: accuracy {100 * measured['accuracy']:.1f}%")


def table(lines: List[Dict]) -> List[str]:
    """Accuracy (%) by task, mean and standard deviation over the seeds, and the mean of the tasks."""
    tasks = list(dict.fromkeys(line["setting"]["task"] for line in lines))
    groups: Dict[tuple, Dict[str, List[float]]] = {}
    for line in lines:
        setting = line["setting"]
        key = (
            line["label"],
            setting["scoring"],
            setting["shots"],
            setting["memory_demonstrations"],
        )
        groups.setdefault(key, {}).setdefault(setting["task"], []).append(100 * line["accuracy"])
    rows = [["model", "scoring", "in context", "in memory", *tasks, "mean"]]
    for (name, scoring, shots, memory), by_task in groups.items():
        cells = [mean_and_deviation(by_task.get(task, [])) for task in tasks]
        means = [statistics.mean(by_task[task]) for task in tasks if task in by_task]
        mean = f"{statistics.mean(means):.1f}" if len(means) == len(tasks) else ""
        rows.append([name, scoring, f"{shots:,}", f"{memory:,}", *cells, mean])
    majority: Dict[str, Dict[str, None]] = {}  # several where the number of examples differs
    for line in lines:
        majority.setdefault(line["setting"]["task"], {})[percent(line["majority"])] = None
    cells = [" / ".join(majority[task]) for task in tasks]
    rows.append(["the most frequent label", "", "", "", *cells, ""])
    for name, mean in PAPER_20_SHOTS.items():
        memory = "2,000" if name == PAPER_LONGMEM else "0"
        rows.append([name, "argmax", "20", memory, *[""] * len(tasks), f"{mean:.1f}"])
    return markdown(rows)


def plot(lines: List[Dict], path: Path) -> None:
    """Accuracy by demonstrations in memory, mean over tasks and seeds."""
    from eval.common.plots import line_plot  # matplotlib, which takes a while

    series: Dict[str, Dict[int, List[float]]] = {}
    for line in lines:
        setting = line["setting"]
        label = f"{line['label']}, {setting['shots']} in context ({setting['scoring']})"
        by_memory = series.setdefault(label, {})
        by_memory.setdefault(setting["memory_demonstrations"], []).append(100 * line["accuracy"])
    line_plot(
        {
            label: {m: sum(v) / len(v) for m, v in points.items()}
            for label, points in series.items()
        },
        ("demonstrations in memory", "accuracy (%), mean of tasks and seeds"),
        path,
    )


if __name__ == "__main__":
    run(main)
