#!/usr/bin/env python3
"""SQuAD v1.1 by open generation: a few demonstrations in the window, hundreds in the memory.

Example:
    python -m eval.squad --data dev-v1.1.json --train train-v1.1.json \
        --path runs/longmem/checkpoint_last.pt --name longmem

Draws --shots demonstrations for the window and --memory-demonstrations for the memory from --train, and
lets the model write the answer to every question of --data, one most likely token after the other up to
the end of the line. Both files have the official form. Where the window does not hold all --shots
beside a question and its paragraph, the first of them are in the memory too. Appends a JSON line with
exact match and F1 (%) to --results, and prints one for people.
"""

import argparse
import random
from functools import partial
from itertools import groupby, takewhile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from eval.common import model_options
from eval.common.item_log import ItemLog
from eval.common.model_options import check_demonstrations, numbers
from eval.common.prompt_reader import Demonstrations, PromptReader
from eval.common.tables import PAPER_BACKBONE, PAPER_LONGMEM, markdown, mean_and_deviation
from eval.squad_metrics import exact_match, f1
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.text_files import parse_json

PROMPT = "Context: {context}\nQuestion: {question}\nAnswer:"
ANSWER = " {answer}\n\n"

# fields that the table shows beside a line's label
SHOWN = ("shots", "memory_demonstrations", "questions")
# exact match and F1 (%), 3 demonstrations in context; LongMem has 200 in memory
PAPER = {PAPER_BACKBONE: (22.28, 30.78), PAPER_LONGMEM: (26.77, 35.70)}


class Question(NamedTuple):
    """A question about a paragraph (*context*), and its reference answers."""

    name: str
    context: str
    question: str
    answers: List[str]

    @property
    def prompt(self) -> str:
        """The text that an answer continues."""
        return PROMPT.format(context=self.context, question=self.question)

    @property
    def demonstration(self) -> str:
        """The prompt with its first reference answer."""
        return self.prompt + ANSWER.format(answer=self.answers[0])


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="questions to answer, .json")
    add("--train", type=Path, required=True, help="questions to demonstrate with, .json")
    add("--shots", type=int, default=3, help="demonstrations in context")
    add("--memory-demonstrations", default="200", help="those in memory: one run for each number")
    add("--seeds", default="1", help="of the demonstrations: one run for each")
    add("--max-new-tokens", type=int, default=32, help="tokens of an answer")
    add("--batch-size", type=int, default=8, help="questions answered side by side, at most")
    add("--limit", type=int, help="first questions (default: all)")
    model_options.add_model_options(parser)
    return parser


def read_questions(option: str, path: Path) -> List[Question]:
    """All questions of a file of the official form.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is not of this form, or a question has no answer or no paragraph
    """
    if not path.is_file():
        raise FileNotFoundError(f"{option} ({path}): no such file")
    try:
        articles = parse_json(path.read_bytes())["data"]
        questions = [
            Question(
                str(qa["id"]),
                paragraph["context"].strip(),
                qa["question"].strip(),
                [answer["text"] for answer in qa["answers"]],
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{option} ({path}) is not of SQuAD's form, data[].paragraphs[].{{context, qas[].{{id, "
            f"question, answers[].text}}}}: {type(error).__name__} {error}"
        ) from None
    if not questions:
        raise ValueError(f"{option} ({path}) holds no questions")
    for question in questions:
        for is_wrong, problem in (
            (not question.answers, "no answer"),
            (not all(isinstance(a, str) for a in question.answers), "an answer that is no text"),
            (not question.context or not question.question, "no text or paragraph"),
        ):
            if is_wrong:
                raise ValueError(f"{option} ({path}): question {question.name} has {problem}")
    return questions


def batches(prompts: Sequence[Tensor], size: int) -> Iterator[List[int]]:
    """Numbers of prompts of the same length, the shortest first: answers follow without padding."""

    def length(i: int) -> int:
        return len(prompts[i])

    for _, same in groupby(sorted(range(len(prompts)), key=length), key=length):
        same = list(same)
        for start in range(0, len(same), size):
            yield same[start : start + size]


def answer_of(tokens: Tensor, tokenizer: Tokenizer) -> str:
    """The generated text, up to the end of the line or of the document."""
    end = tokenizer.dictionary.eos()
    answer = list(takewhile(lambda token: token != end, tokens.tolist()))
    return tokenizer.decode(answer).strip(" ").split("\n", 1)[0].strip()


def line_ends(tokenizer: Tokenizer) -> Tensor:
    """Tokens that hold a line break, and the one that ends a document."""
    breaks = [
        int(tokenizer.to_dictionary[i])
        for i, content in enumerate(tokenizer.token_bytes)
        if b"\n" in content
    ]
    return torch.tensor([tokenizer.dictionary.eos(), *breaks])


def evaluate(
    reader: PromptReader,
    questions: List[Question],
    demonstrations: Demonstrations,
    log: ItemLog,
    args: argparse.Namespace,
) -> Dict:
    """Answers all questions; those that *log* has are not answered again."""
    prompts = [reader.tokens(question.prompt) for question in questions]
    stop = line_ends(reader.lm.tokenizer)

    def answered(batch: List[int], prefix: Tensor) -> Dict:
        rows = torch.stack([prompts[i] for i in batch])
        written = reader.generate(prefix, rows, args.max_new_tokens, stop)
        answers = [answer_of(tokens, reader.lm.tokenizer) for tokens in written]
        return {"questions": batch, "answers": answers}

    scores: Dict[str, List[float]] = {"exact_match": [], "f1": []}
    seconds, in_window = 0.0, 0
    with tqdm(total=len(questions), desc="questions", unit=" questions") as bar:
        for number, batch in enumerate(batches(prompts, args.batch_size)):
            prefix = demonstrations.before(len(prompts[batch[0]]) + args.max_new_tokens)
            done = log.measured(str(number), partial(answered, batch, prefix))
            for i, answer in zip(done["questions"], done["answers"], strict=True):
                scores["exact_match"].append(exact_match(answer, questions[i].answers))
                scores["f1"].append(f1(answer, questions[i].answers))
            seconds += done["seconds"]
            in_window += len(batch) * len(demonstrations.in_context)
            bar.update(len(batch))
    return {
        "questions": len(questions),
        **{name: 100 * sum(values) / len(questions) for name, values in scores.items()},
        "tokens": sum(len(prompt) for prompt in prompts),
        "memorized_tokens": demonstrations.memorized if reader.has_memory else 0,
        "shots_in_window": in_window / len(questions),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "max_new_tokens", "batch_size", "limit")
    in_memory = numbers("--memory-demonstrations", args.memory_demonstrations)
    seeds = numbers("--seeds", args.seeds)
    questions = read_questions("--data", args.data)[: args.limit]
    train = read_questions("--train", args.train)
    if args.shots < 0 or args.shots + max(in_memory) > len(train):
        raise ValueError(
            f"--shots ({args.shots}) and --memory-demonstrations ({max(in_memory)}) must be from 0 to "
            f"the {len(train)} questions of --train together"
        )
    lm = model_options.load(args)
    reader = PromptReader(lm)
    check_demonstrations(args, lm, in_memory)
    longest = max(len(reader.tokens(q.prompt)) for q in questions) + args.max_new_tokens
    hashes = {"data": file_hash(args.data), "train": file_hash(args.train)}
    for memory in in_memory:
        for seed in seeds:
            drawn = random.Random(seed).sample(train, args.shots + memory)
            tokens = [reader.tokens(question.demonstration) for question in drawn]
            shown = Demonstrations(reader, tokens[args.shots :], tokens[: args.shots], longest)
            setting = {"shots": args.shots, "memory_demonstrations": memory}
            key = model_options.settings(args, lm.model, "squad", hashes)
            key["options"].update(setting, seeds=seed)
            log = ItemLog(args.results, key)
            measured = evaluate(reader, questions, shown, log, args)
            model_options.append_measured(args, lm.model, "squad", measured, setting, seed)
            print(
                f"{args.name}: {memory} demonstrations in memory, seed {seed}: exact match "
                f"{measured['exact_match']:.2f}, F1 {measured['f1']:.2f}"
            )


def table(lines: List[Dict]) -> List[str]:
    """Exact match and F1 (%), mean and standard deviation over the seeds."""
    groups: Dict[tuple, List[Dict]] = {}
    for line in lines:
        key = (
            line["label"],
            line["setting"]["shots"],
            line["setting"]["memory_demonstrations"],
            line["questions"],
        )
        groups.setdefault(key, []).append(line)
    rows = [["model", "questions", "in context", "in memory", "exact match", "F1"]]
    for (name, shots, memory, questions), of_seeds in groups.items():
        metrics = [
            mean_and_deviation([line[metric] for line in of_seeds], digits=2)
            for metric in ("exact_match", "f1")
        ]
        rows.append([name, f"{questions:,}", f"{shots:,}", f"{memory:,}", *metrics])
    for name, metrics in PAPER.items():
        memory = "200" if name == PAPER_LONGMEM else "0"
        rows.append([name, "10,570", "3", memory, *(f"{metric:.2f}" for metric in metrics)])
    return markdown(rows)


def plot(lines: List[Dict], path: Path) -> None:
    """Exact match and F1, a pair of bars for every line."""
    from eval.common.plots import plt, save  # matplotlib, which takes a while

    names = [
        f"{line['label']}\n{line['setting']['shots']} in context, seed {line['seed']}\n"
        f"{line['setting']['memory_demonstrations']} in memory"
        for line in lines
    ]
    figure, axes = plt.subplots(figsize=(2 + 1.2 * len(lines), 4.5))
    for place, metric in enumerate(("exact_match", "f1")):
        places = [i + 0.4 * place for i in range(len(lines))]
        bars = axes.bar(places, [line[metric] for line in lines], width=0.4, label=metric)
        axes.bar_label(bars, fmt="{:.1f}")
    axes.set_xticks([i + 0.2 for i in range(len(lines))], names)
    axes.set(ylabel="%")
    axes.legend()
    save(figure, path)


if __name__ == "__main__":
    run(main)
