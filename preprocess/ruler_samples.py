"""How RULER's samples are put together (github.com/NVIDIA/RULER, scripts/data/synthetic).

Every builder takes a random generator and a size, the number of pieces of the haystack (words,
lines, needles, documents), and gives a sample. Sizes below its smallest have no room for needles.
"""

import math
import random
import string
import uuid
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np

from eval.ruler_tasks import PROMPTS
from longmem_fairseq.utils.text_files import parse_json
from preprocess.haystack_text import inserted, sentences
from preprocess.make_haystack import REPEATED

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = REPEATED.strip()
DEPTHS = np.linspace(0, 100, num=40).round().astype(int).tolist()  # percent
HOPS = 4
EXAMPLE_LINES = 10  # of noise: RULER's search for an example of 500 tokens goes in steps of 5 lines
COMMON_WORDS = 10
FREQUENT_WORDS = 3


class Sample(NamedTuple):
    """A prompt up to its question, how its answer begins, and the reference strings."""

    input: str
    answer_prefix: str
    outputs: List[str]


class Builder(NamedTuple):
    """Builds samples of a task from *smallest* to *largest* pieces of haystack."""

    build: Callable[[random.Random, int], Sample]
    smallest: int
    largest: float = math.inf


class Niah(NamedTuple):
    """A task of needles: what they hide in, of which kinds keys and values are, and how many of each
    are hidden or asked for."""

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NIAH_TASKS = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("essay"),
    "niah_single_3": Niah("essay", values="uuids"),
    "niah_multikey_1": Niah("essay", num_keys=4),
    "niah_multikey_2": Niah("needles"),
    "niah_multikey_3": Niah("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Niah("essay", num_values=4),
    "niah_multiquery": Niah("essay", num_keys=4, num_queries=4),
}


def english_words() -> Dict[str, List[str]]:
    """Nouns, adjectives and verbs of the package ``wonderwords``, which RULER uses too.

    Raises:
        ImportError: it is not installed
    """
    try:
        folder = resources.files("wonderwords.assets")
    except ModuleNotFoundError:
        raise ImportError(
            "words for keys need the package wonderwords: pip install 'longmem-fairseq[ruler]'"
        ) from None
    return {
        kind: (folder / f"{kind}list.txt").read_text(encoding="utf-8").split()
        for kind in ("noun", "adjective", "verb")
    }


def filled(family: str, context: str, outputs: Sequence[str], **fields) -> Sample:
    """A sample of a family of tasks."""
    prompt = PROMPTS[family]
    fields = {"context": context, **fields}
    return Sample(
        prompt.template.format(**fields), prompt.answer_prefix.format(**fields), list(outputs)
    )


def niah(task: Niah, words: Dict[str, List[str]], essays: Sequence[str]) -> Builder:
    """Needles in repeated sentences, in essays, or among other needles.

    Args:
        essays: words of the text, which is repeated where it is too short
    """

    def drawn(rng: random.Random, kind: str) -> str:
        if kind == "numbers":
            return str(rng.randint(10**6, 10**7 - 1))
        if kind == "uuids":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return f"{rng.choice(words['adjective'])}-{rng.choice(words['noun'])}"

    def needle(rng: random.Random, key: str, value: str) -> str:
        return NEEDLE.format(kind=task.values, key=key, value=value)

    def context(rng: random.Random, needles: List[str], size: int) -> str:
        if task.haystack == "essay":
            text = sentences(" ".join(islice(cycle(essays), size)))
            places = sorted(len(text) * depth // 100 for depth in rng.sample(DEPTHS, len(needles)))
            return " ".join(inserted(text, places, needles))
        if task.haystack == "noise":
            lines = [NOISE] * size
        else:
            lines = [
                needle(rng, drawn(rng, task.keys), drawn(rng, task.values)) for _ in range(size)
            ]
        places = sorted(rng.sample(range(size), len(needles)))
        return "\n".join(inserted(lines, places, needles))

    def build(rng: random.Random, size: int) -> Sample:
        hidden: Dict[str, List[str]] = {}
        while len(hidden) < task.num_keys:
            values = [drawn(rng, task.values) for _ in range(task.num_values)]
            hidden.setdefault(drawn(rng, task.keys), values)
        needles = [needle(rng, key, value) for key in hidden for value in hidden[key]]
        rng.shuffle(needles)
        queries = rng.sample(list(hidden), task.num_queries)
        outputs = [value for key in queries for value in hidden[key]]
        query = ", ".join(queries[:-1]) + ", and " + queries[-1] if queries[1:] else queries[0]
        one = len(outputs) == 1
        family, kind = ("niah_one", task.values[:-1]) if one else ("niah", task.values)
        text = context(rng, needles, size)
        return filled(family, text, outputs, query=query, kind=kind)

    return Builder(build, smallest=task.num_keys * task.num_values)


def variable_tracking() -> Builder:
    """A chain of assignments among repeated sentences, after an example with its answer."""

    def chain(rng: random.Random, size: int, letters: int) -> Sample:
        names: List[str] = []
        while len(names) < HOPS + 1:
            name = "".join(rng.choices(string.ascii_uppercase, k=letters))
            names += [name] if name not in names else []
        value = str(rng.randrange(10_000, 99_999))
        links = [f"VAR {names[0]} = {value}"]
        links += [f"VAR {new} = VAR {old} " for old, new in zip(names, names[1:], strict=False)]
        places = sorted(rng.sample(range(size), len(links)))
        text = " ".join(inserted([NOISE + "\n"] * size, places, links))
        return filled("vt", text, names, query=value, count=len(names))

    def build(rng: random.Random, size: int) -> Sample:
        example = chain(rng, EXAMPLE_LINES, letters=3)
        sample = chain(rng, size, letters=5)
        shown = f"{example.input}{example.answer_prefix} {' '.join(example.outputs)}\n\n\n\n"
        return sample._replace(input=shown + sample.input)

    return Builder(build, smallest=HOPS + 1)


def common_words(words: Dict[str, List[str]]) -> Builder:
    """Ten words 30 times each among others 3 times each, after an example with its answer."""
    words = sorted({word for kind in words.values() for word in kind})

    def listed(rng: random.Random, size: int, common: int, uncommon: int) -> Sample:
        drawn = rng.sample(words, size)
        often, seldom = drawn[:COMMON_WORDS], drawn[COMMON_WORDS:]
        repeated = often * common + seldom * uncommon
        rng.shuffle(repeated)
        return filled("cwe", _numbered(repeated), often)

    def build(rng: random.Random, size: int) -> Sample:
        example = listed(rng, 40, common=10, uncommon=3)
        sample = listed(rng, size, common=30, uncommon=3)
        shown = f"{example.input}{example.answer_prefix}{_numbered(example.outputs)}\n"
        return sample._replace(input=shown + sample.input)

    return Builder(build, smallest=COMMON_WORDS + 1, largest=len(words))


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def frequent_words(length: int) -> Builder:
    """Coded words by a zeta distribution with alpha 2, whose most frequent is dots.

    Args:
        length: tokens of the prompt, on which the number of different words depends
    """
    count = max(FREQUENT_WORDS + 1, length // 50)
    shares = np.arange(1, count + 1) ** -2.0 / (math.pi**2 / 6)

    def build(rng: random.Random, size: int) -> Sample:
        vocabulary: Dict[str, None] = {"...": None}
        while len(vocabulary) < count:
            vocabulary["".join(rng.choices(string.ascii_lowercase, k=6))] = None
        numbers = (size * shares).astype(int).tolist()
        coded = [w for w, number in zip(vocabulary, numbers, strict=True) for _ in range(number)]
        rng.shuffle(coded)
        return filled("fwe", " ".join(coded), list(vocabulary)[1 : FREQUENT_WORDS + 1])

    # the least at which the third word after the dots is there
    return Builder(build, smallest=math.ceil(1 / shares[FREQUENT_WORDS]))


def question_answering(path: Path) -> Builder:
    """Questions of SQuAD among documents, those of the same article first.

    Args:
        path: of the official form, version 1.1 or 2.0, whose questions without answer are left out

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is of another form, or has no questions
    """
    if not path.is_file():
        raise FileNotFoundError(f"--squad ({path}): no such file")
    try:
        articles = [
            [
                (part["context"], [q for q in part["qas"] if not q.get("is_impossible")])
                for part in article["paragraphs"]
            ]
            for article in parse_json(path.read_bytes())["data"]
        ]
        questions = [
            (number, text, asked["question"], [answer["text"] for answer in asked["answers"]])
            for number, article in enumerate(articles)
            for text, questions in article
            for asked in questions
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--squad ({path}) is not of SQuAD's form: {error!r}") from None
    if not questions:
        raise ValueError(f"--squad ({path}) holds no questions")
    texts = [list(dict.fromkeys(text for text, _ in article)) for article in articles]

    def build(rng: random.Random, size: int) -> Sample:
        number, text, asked, answers = rng.choice(questions)
        near = [other for other in texts[number] if other != text]
        far = [other for n, article in enumerate(texts) if n != number for other in article]
        rng.shuffle(near)
        missing = max(0, size - 1 - len(near))
        documents = [text, *near[: size - 1], *rng.sample(far, min(missing, len(far)))]
        rng.shuffle(documents)
        context = "\n\n".join(f"Document {i}:\n{d}" for i, d in enumerate(documents, start=1))
        return filled("qa", context, answers, query=asked.strip())

    return Builder(build, smallest=1, largest=sum(map(len, texts)))
