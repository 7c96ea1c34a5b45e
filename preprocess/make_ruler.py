#!/usr/bin/env python3
"""Write the tasks of RULER (arXiv 2404.06654) at any length, for the tokenizer of a model.

Example:
    python -m preprocess.make_ruler --model models/smollm2 --haystack essays/ --squad dev-v1.1.json \
        --dest data/ruler --lengths 4096,8192 --samples 100

Writes DEST/LENGTH/data/TASK/validation.jsonl, where RULER's own scripts would, a line for each sample:
{"index", "input", "outputs", "length", "answer_prefix", "haystack"}. A length counts the prompt and the
budget of its answer. RULER's haystack are Paul Graham's essays; "haystack" names the text that stands
in for them. Keys are words of the package wonderwords. qa_2 is HotpotQA, which is not made here.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from eval.common.long_contexts import chosen
from eval.common.model_options import numbers
from eval.ruler_tasks import TASKS, max_new_tokens
from longmem_fairseq.tokenizers import Tokenizer, load_tokenizer
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from preprocess import ruler_samples
from preprocess.haystack_text import read_haystack
from preprocess.ruler_samples import NIAH_TASKS, Builder, Niah, Sample

MADE = TASKS[:-1]


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder with dict.txt and the tokenizer")
    add("--dest", type=Path, required=True, help="folder to write")
    add("--tasks", default=",".join(MADE), help="with commas between them")
    lengths = ",".join(str(2**power) for power in range(12, 18))
    add("--lengths", default=lengths, help="tokens of a prompt and its answer, with commas")
    add("--samples", type=int, default=500, help="of each task and length")
    add("--seed", type=int, default=42, help="same seed and options, same files")
    add("--haystack", type=Path, help="essays: a folder of .txt files, or one file")
    add("--squad", type=Path, help="qa_1: questions in SQuAD's form, .json")
    return parser


class Sources(NamedTuple):
    """Material of the samples, as far as the tasks need it: words by kind, words of the essays, and
    the builder of questions."""

    words: Dict[str, List[str]]
    essays: List[str]
    questions: Optional[Builder]


def read_sources(args: argparse.Namespace, tasks: Sequence[str]) -> Sources:
    """Reads the material that the tasks need.

    Raises:
        FileNotFoundError, ImportError, ValueError: something that a task needs is missing or damaged
    """
    with_words = [task for task in tasks if task == "cwe" or needles_of(task).keys == "words"]
    with_essays = [task for task in tasks if needles_of(task).haystack == "essay"]
    if with_essays and args.haystack is None:
        raise ValueError(f"--haystack is missing: {', '.join(with_essays)} hide needles in essays")
    if "qa_1" in tasks and args.squad is None:
        raise ValueError("--squad is missing: qa_1 asks questions of SQuAD")
    essays = read_haystack("--haystack", args.haystack) if with_essays else []
    return Sources(
        words=ruler_samples.english_words() if with_words else {},
        essays=[word for text in essays for word in text.split()],
        questions=ruler_samples.question_answering(args.squad) if "qa_1" in tasks else None,
    )


def needles_of(task: str) -> Niah:
    """Kinds of a task's needles and haystack; empty for a task without needles."""
    return NIAH_TASKS.get(task, Niah(haystack="", keys=""))


def builder_of(task: str, length: int, sources: Sources) -> Builder:
    """Builds samples of a task, *length* tokens long."""
    if task in NIAH_TASKS:
        return ruler_samples.niah(NIAH_TASKS[task], sources.words, sources.essays)
    if task == "vt":
        return ruler_samples.variable_tracking()
    if task == "cwe":
        return ruler_samples.common_words(sources.words)
    if task == "fwe":
        return ruler_samples.frequent_words(length)
    return sources.questions


class Fitter:
    """Makes samples as long as a number of tokens allows.

    Args:
        room: tokens of a prompt, the beginning of its answer included
        seed: of what is drawn, with the number of the sample

    Raises:
        ValueError: the shortest sample has more tokens
    """

    def __init__(self, tokenizer: Tokenizer, builder: Builder, room: int, seed: str):
        self.tokenizer, self.builder, self.room, self.seed = tokenizer, builder, room, seed
        self._fit(0, builder.smallest)
        self.size = self._largest()

    def sample(self, index: int) -> Sample:
        """The sample of that number, with a piece of haystack less in 200 until it fits.

        Raises:
            ValueError: it does not fit at all
        """
        size = self.size
        while (sample := self._fit(index, size)) is None:
            size = max(self.builder.smallest, size - max(1, size // 200))
        return sample

    def tokens(self, sample: Sample) -> int:
        """How many tokens the prompt and the beginning of its answer have."""
        return len(self.tokenizer.encode(sample.input + sample.answer_prefix))

    def _fit(self, index: int, size: int) -> Optional[Sample]:
        """A sample of that size; None if it does not fit, ValueError if no smaller one does."""
        sample = self.builder.build(random.Random(f"{self.seed} {index}"), size)
        tokens = self.tokens(sample)
        if tokens <= self.room:
            return sample
        if size == self.builder.smallest:
            raise ValueError(f"the shortest prompt of sample {index} has {tokens:,} tokens")
        return None

    def _largest(self) -> int:
        """The largest size of the first sample, by steps that double until one is too large, and are
        halved from then on."""
        size, added, grows = self.builder.smallest, 1, True
        while added > 0:
            larger = min(size + added, self.builder.largest)
            if larger > size and self._fit(0, larger) is not None:
                size = larger
            else:
                grows = False
            added = added * 2 if grows else added // 2
        return size


def records(
    args: argparse.Namespace, tokenizer: Tokenizer, sources: Sources, task: str, length: int
) -> Iterator[Dict]:
    """The lines of one file.

    Raises:
        ValueError: the length is too short
    """
    budget = max_new_tokens(task)
    builder = builder_of(task, length, sources)
    essays = needles_of(task).haystack == "essay"
    try:
        fitter = Fitter(tokenizer, builder, length - budget, f"{args.seed} {task} {length}")
        samples = (fitter.sample(index) for index in range(args.samples))
        for index, sample in enumerate(samples):
            yield {
                "index": index,
                "input": sample.input,
                "outputs": sample.outputs,
                "length": fitter.tokens(sample) + budget,
                "answer_prefix": sample.answer_prefix,
                "haystack": args.haystack.name if essays else "",
            }
    except ValueError as error:
        raise ValueError(
            f"--lengths ({length}) is too short for {task}, whose answers have up to {budget} tokens: "
            f"{error}"
        ) from None


def chosen_tasks(text: str) -> List[str]:
    """The value of --tasks.

    Raises:
        ValueError: a task is unknown or cannot be made
    """
    if "qa_2" in text:
        raise ValueError(f"--tasks ({text}): qa_2 is HotpotQA, which is not made here")
    return chosen("--tasks", text, MADE)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_positive(args, "samples")
    tasks, lengths = chosen_tasks(args.tasks), numbers("--lengths", args.lengths, least=1)
    tokenizer = load_tokenizer(args.model)
    sources = read_sources(args, tasks)
    for length in lengths:
        for task in tasks:
            lines = list(records(args, tokenizer, sources, task, length))
            path = args.dest / str(length) / "data" / task / "validation.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            path.write_text(text, encoding="utf-8")
            shortest = min(line["length"] for line in lines)
            print(f"{path}: {len(lines)} samples of {shortest:,} tokens and more")


if __name__ == "__main__":
    run(main)
