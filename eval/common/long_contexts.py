"""Questions about contexts that are longer than a window, which is memorized or cut off.

T tokens.
"""

import argparse
import statistics
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor
from tqdm import tqdm

from eval.common import model_options
from eval.common.item_log import ItemLog
from eval.common.prompt_reader import PromptReader
from eval.common.provenance import file_hash
from eval.common.results import append_result
from eval.common.timing import Stopwatch
from longmem_fairseq import LongMem
from longmem_fairseq.api.decoding import Token, decode
from longmem_fairseq.api.remembering import check_excerpts
from longmem_fairseq.api.text_stream import TextStream

MEMORIES = ("own", "empty", "other")


class Question(NamedTuple):
    """A question about a context.

    references: what the score compares the answer with
    head: what the window holds before the question, wherever the context is
    """

    context: str
    question: str
    references: List[str]
    head: str = ""


class Rules(NamedTuple):
    """How a task is answered and scored.

    max_new_tokens: of an answer, at most
    score: of a question's answer, from 0 to 1
    complete: whether the answer, as far as it has come, keeps its score whatever follows
    """

    max_new_tokens: int
    score: Callable[[Question, str], float]
    complete: Callable[[Question, str], bool]


class Answer(NamedTuple):
    """An answer, and the tokens that the window held before it."""

    text: str
    window_tokens: int


class ContextReader:
    """Asks questions about contexts, greedily.

    A model with memory memorizes the context, and its window holds head and question, and between them
    excerpts of the memory, if any are asked for. The window of a model without memory holds as much of
    the context's end there as there is room for.

    Args:
        excerpts: tokens of all excerpts together, at most
        words_only: the contexts are memorized without being read by the model

    Raises:
        ValueError: there are to be excerpts, but there is no memory, or room for one
    """

    def __init__(self, lm: LongMem, rules: Rules, excerpts: int = 0, words_only: bool = False):
        self.lm, self.rules, self.prompts = lm, rules, PromptReader(lm)
        self.excerpts, self.words_only = excerpts, words_only
        self.has_memory = self.prompts.has_memory
        if excerpts:
            check_excerpts(excerpts)
            if not self.has_memory:
                raise ValueError(f"--excerpts ({excerpts}) needs a model with a memory bank")
        elif words_only:
            raise ValueError("--words-only needs --excerpts: nothing else finds words")

    def memorize(self, context: str) -> None:
        """Leaves nothing but this context in memory, if there is one.

        Raises:
            ValueError: the memory is too small
        """
        self.prompts.forget()
        if self.has_memory:
            tokens = self.prompts.tokens(context)
            self.prompts.memorize(torch.cat([self.prompts.start, tokens]), self.words_only)

    def window(self, question: Question) -> Tensor:
        """The tokens in the window before the answer, T.

        Raises:
            ValueError: it has no room for the question and its answer
        """
        start, size = self.prompts.start, self.prompts.window
        head, asked = self.prompts.tokens(question.head), self.prompts.tokens(question.question)
        if self.has_memory:
            asked = self.lm.with_excerpts(asked, self.excerpts)
        needed = len(start) + len(head) + len(asked) + self.rules.max_new_tokens
        if needed > size:
            raise ValueError(
                f"--tokens-per-sample ({size}) is too small for a question and its answer, which have "
                f"{needed:,} tokens"
            )
        if self.has_memory:
            return torch.cat([start, head, asked])
        context = self.prompts.tokens(question.context)
        shown = context[max(0, len(context) - (size - needed)) :]
        return torch.cat([start, head, shown, asked])

    def answer(self, question: Question) -> Answer:
        """The most likely tokens; the memory stays as it is."""
        stream, window = TextStream(self.lm.tokenizer), self.window(question)

        def on_token(_: int, token: Token) -> bool:
            stream.push(token.index)
            return self.rules.complete(question, stream.text)

        decode(self.lm.decoder, self.lm.tokenizer, [window], self.rules.max_new_tokens, on_token)
        stream.finish()
        return Answer(stream.text, len(window) - len(self.prompts.start))

    def answers(
        self, question: Question, following: Question, memories: Sequence[str]
    ) -> Dict[str, Answer]:
        """Of a question with its own and with an empty memory, and as "other" of the question that
        *follows* with this one's memory, which is thus written once."""
        answers = {}
        if "empty" in memories:
            self.prompts.forget()
            answers["empty"] = self.answer(question)
        if set(memories) != {"empty"}:
            self.memorize(question.context)
        if "own" in memories:
            answers["own"] = self.answer(question)
        if "other" in memories:
            answers["other"] = self.answer(following)
        return answers

    def token_counts(self, questions: Sequence[Question]) -> Dict[str, int]:
        """Tokens of all prompts, and those memorized."""
        contexts, heads, asked = (
            sum(len(self.prompts.tokens(getattr(question, part))) for question in questions)
            for part in ("context", "head", "question")
        )
        memorized = contexts if self.has_memory else 0
        return {"tokens": contexts + heads + asked, "memorized_tokens": memorized}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark of this kind."""
    add = parser.add_argument
    add("--limit", type=int, help="first samples of every task and length (default: all)")
    add(
        "--excerpts",
        type=int,
        default=0,
        help="tokens of the memory, at most, that share words with the question, to be read before it",
    )
    add(
        "--words-only",
        action="store_true",
        help="memorize the tokens of a context without reading them: --excerpts find them",
    )
    add(
        "--memory",
        default="own",
        help="contents of the memory, with commas: own, the question's context; the controls empty, "
        "and other, the context of the question before",
    )


def chosen(option: str, text: str, known: Sequence[str]) -> List[str]:
    """The value of an option that takes names with commas between them.

    Raises:
        ValueError: a name is unknown, or there twice
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"{option} ({name}) must be of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{option} ({text}) must name everything once")
    return names


def chosen_memories(text: str, lm: LongMem) -> List[str]:
    """The value of --memory.

    Raises:
        ValueError: see :func:`chosen`; or the model has no memory that could be empty or another's
    """
    memories = chosen("--memory", text, MEMORIES)
    if lm.decoder.memory is None and memories != ["own"]:
        raise ValueError(f"--memory ({text}) needs a model with a memory bank: leave it out")
    return memories


def evaluate(
    benchmark: str,
    args: argparse.Namespace,
    reader: ContextReader,
    path: Path,
    questions: Sequence[Question],
    setting: Dict,
    **more: str,
) -> None:
    """Asks the questions of a file, appends a result for every memory, and prints one for people.

    A killed run goes on with the questions that are left.

    Args:
        setting: names the "task" and the "length"
        more: further fields of the results

    Raises:
        ValueError: see :func:`chosen_memories` and :class:`ContextReader`; or another's memory is asked
            for, but there is no other question
    """
    memories, questions = chosen_memories(args.memory, reader.lm), questions[: args.limit]
    if "other" in memories and len(questions) < 2:
        raise ValueError(f"--memory ({args.memory}) needs two samples, but {path} has one")
    key = model_options.settings(args, reader.lm.model, benchmark, {"data": file_hash(path)})
    log, name = ItemLog(args.results, key), f"{setting['task']} {setting['length']}"
    answers, seconds = _ask(reader, questions, memories, log, name)
    for memory in memories:
        scores = [
            100 * reader.rules.score(question, answer.text)
            for question, answer in zip(questions, answers[memory], strict=True)
        ]
        result = {
            "benchmark": benchmark,
            **model_options.describe_model(args, reader.lm.model),
            "setting": setting,
            **more,
            "memory": memory,
            "excerpts": args.excerpts,
            "words_only": args.words_only,
            "seed": None,
            "examples": len(questions),
            "score": statistics.mean(scores),
            "standard_error": statistics.pstdev(scores) / len(scores) ** 0.5,
            **reader.token_counts(questions),
            "window_tokens": sum(answer.window_tokens for answer in answers[memory]),
            "seconds": round(seconds, 1),
        }
        append_result(args.results, result)
        print(described(result, reader.has_memory))


def _ask(
    reader: ContextReader,
    questions: Sequence[Question],
    memories: Sequence[str],
    log: ItemLog,
    name: str,
) -> Tuple[Dict[str, List[Answer]], float]:
    """Asks the questions that are not in *log* yet.

    Args:
        name: of the items in the log, before the number of the question

    Returns:
        for every memory the answers in the order of the questions, and the seconds that they took
    """
    answers = {memory: [Answer("", 0)] * len(questions) for memory in memories}
    seconds = 0.0
    for number, question in enumerate(tqdm(questions, desc=name, unit=" questions")):
        following, item = (number + 1) % len(questions), f"{name} {number}"
        if item not in log.done:
            watch = Stopwatch()
            given = reader.answers(question, questions[following], memories)
            log.add(item, {"answers": given, "seconds": watch.seconds})
        seconds += log.done[item]["seconds"]
        for memory, answer in log.done[item]["answers"].items():
            answers[memory][following if memory == "other" else number] = Answer(*answer)
    return answers, seconds


def described(result: Dict, has_memory: bool) -> str:
    """A result in a line, which says how much of a prompt did not fit a window without memory."""
    tokens, window = (round(result[f] / result["examples"]) for f in ("tokens", "window_tokens"))
    setting, score = result["setting"], f"{result['score']:.1f}% of {result['examples']}"
    line = f"{result['name']}: {setting['task']}, {setting['length']}: {score}"
    if has_memory:
        return f"{line}, {result['memory']} memory"
    lost = f", of which the window holds {window:,}" if window < tokens else ""
    return f"{line}, no memory, {tokens:,} tokens{lost}"
