"""preprocess/make_ruler.py: lengths, needles in their places, and answers that follow from contexts."""

import collections
import json
import random
import re

import pytest

from eval.ruler_tasks import TASKS, max_new_tokens
from longmem_fairseq.tokenizers import load_tokenizer
from preprocess import make_ruler, ruler_samples
from preprocess.haystack_text import sentences
from preprocess.ruler_samples import DEPTHS, NIAH_TASKS
from tests.helpers.benchmark_runs import assert_one_line

NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
WORDS = {"adjective": ["red", "blue", "odd"], "noun": ["owl", "tree"], "verb": ["go"]}
ESSAYS = [f"Sentence{i} ends here." for i in range(400)]
LENGTH = 12_000


def build(task, size, seed=1):
    essay_words = " ".join(ESSAYS).split()
    builder = ruler_samples.niah(NIAH_TASKS[task], WORDS, essay_words)
    return builder.build(random.Random(seed), size)


@pytest.mark.parametrize("task", NIAH_TASKS)
def test_the_question_is_answered_by_the_needles_of_its_keys(task):
    kind = NIAH_TASKS[task]
    size = 1200 if kind.haystack == "essay" else 40
    for seed in range(3):
        sample = build(task, size, seed)
        _, context, question = re.split(r"afterwards\.\n|\n(?=What)", sample.input)
        needles = NEEDLE.findall(context)
        hidden = kind.num_keys * kind.num_values
        assert len(needles) == hidden + (size if kind.haystack == "needles" else 0)
        assert {found for found, _, _ in needles} == {kind.values}
        values = collections.defaultdict(set)
        for _, key, value in needles:
            values[key].add(value)
        asked = [key for key in values if re.search(rf"[ ,]{key}[ ,]", question)]
        expected = {value for key in asked for value in values[key]}
        assert len(asked) >= kind.num_queries and set(sample.outputs) <= expected
        assert len(sample.outputs) == kind.num_queries * kind.num_values
        if kind.haystack != "needles":  # whose other keys may be the same words here
            assert set(sample.outputs) == expected
        one = len(sample.outputs) == 1
        assert question.startswith("What is the" if one else "What are all the")
        assert sample.answer_prefix.endswith(" is" if one else " are")


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multikey_1"])
def test_needles_stand_between_sentences_at_the_depths(task):
    depths = set()
    for seed in range(30):
        context = build(task, 1200, seed).input.split("\n")[1]
        found = sentences(context)
        places = [i for i, sentence in enumerate(found) if NEEDLE.fullmatch(sentence)]
        rest = [sentence for i, sentence in enumerate(found) if i not in places]
        assert rest == ESSAYS[: len(rest)] and len(rest) == 400
        allowed = {400 * depth // 100 for depth in DEPTHS}
        before = [place - number for number, place in enumerate(places)]
        assert set(before) <= allowed and len(set(before)) == NIAH_TASKS[task].num_keys
        depths.update(before)
    assert min(depths) < 80 and max(depths) > 320


def test_values_are_numbers_of_seven_digits_or_uuids():
    assert re.fullmatch(r"[1-9]\d{6}", build("niah_single_1", 5).outputs[0])
    assert re.fullmatch(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", build("niah_single_3", 9).outputs[0]
    )


def test_a_short_essay_is_repeated():
    context = build("niah_single_2", 2000).input.split("\n")[1]
    assert context.count("Sentence0 ") == 2


def test_variables_are_traced_to_the_value_that_is_asked_for():
    sample = ruler_samples.variable_tracking().build(random.Random(1), 30)
    text = sample.input[sample.input.rindex("Memorize and track") :]
    (value,) = re.findall(r"assigned the value (\d+) in the text", text)
    named = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
        named[name] = named.get(source, source)
    assert [name for name, held in named.items() if held == value] == sample.outputs
    assert len(sample.outputs) == 5 and text.count("The grass is green.") == 30
    assert f"5 variables are assigned the value {value}, they are: " in sample.answer_prefix
    # the example before it is answered
    example = sample.input[: sample.input.rindex("Memorize and track")]
    answer = example.split("they are: ")[1].split()
    assert len(answer) == 5 and all(f"VAR {name} = " in example for name in answer)


def test_common_words_are_those_that_are_listed_most():
    words = {"noun": [f"word{i}" for i in range(100)]}
    sample = ruler_samples.common_words(words).build(random.Random(1), 25)
    text = sample.input[sample.input.rindex("Below is a numbered list") :]
    numbers, listed = zip(*re.findall(r"(\d+)\. (word\d+)", text), strict=True)
    assert [int(number) for number in numbers] == list(range(1, 10 * 30 + 15 * 3 + 1))
    counts = collections.Counter(listed)
    assert {word for word, count in counts.items() if count == 30} == set(sample.outputs)
    assert sorted(counts.values()) == [3] * 15 + [30] * 10


def test_frequent_words_come_after_the_dots():
    sample = ruler_samples.frequent_words(5000).build(random.Random(1), 900)
    text = re.search(r"coded words\. (.*)\nQuestion", sample.input)[1]
    ranked = [word for word, _ in collections.Counter(text.split()).most_common(4)]
    assert ranked == ["...", *sample.outputs]


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"In town {a}{p} the mayor is Number{a}{p}.",
                    "qas": [
                        {
                            "question": f"Who is the mayor of {a}{p}?",
                            "answers": [{"text": f"Number{a}{p}"}],
                        },
                        {"question": "Nothing?", "answers": [], "is_impossible": True},
                    ],
                }
                for p in range(3)
            ]
        }
        for a in range(100)
    ]
}


@pytest.fixture
def squad(tmp_path):
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    return tmp_path / "squad.json"


def test_questions_are_answered_by_one_of_the_documents(squad):
    builder = ruler_samples.question_answering(squad)
    assert builder.largest == 300
    for seed, size in enumerate((1, 2, 3, 10, 300)):
        sample = builder.build(random.Random(seed), size)
        documents = re.findall(r"Document (\d+):\nIn town (\d+) the mayor is (\w+)\.", sample.input)
        assert [int(number) for number, _, _ in documents] == list(range(1, size + 1))
        (town,) = re.findall(r"mayor of (\d+)\?", sample.input)
        assert [mayor for _, place, mayor in documents if place == town] == sample.outputs
        same_article = [place for _, place, _ in documents if place[:-1] == town[:-1]]
        assert len(same_article) >= min(3, size)


@pytest.fixture
def arguments(odd_corpus, tmp_path, squad):
    """Of a small run, with sources for all tasks."""
    pytest.importorskip("wonderwords")
    essays = tmp_path / "essays"
    essays.mkdir()
    for i in range(2):
        (essays / f"{i}.txt").write_text("\n\n".join(ESSAYS[i * 200 : i * 200 + 200]))
    given = {"--model": odd_corpus[1], "--haystack": essays, "--squad": squad}
    given |= {"--dest": tmp_path / "ruler", "--lengths": LENGTH, "--samples": 2, "--seed": 3}
    return given


def call(given):
    make_ruler.main([str(part) for pair in given.items() for part in pair])


def test_every_task_is_as_long_as_the_length_allows(arguments, capsys):
    call(arguments)
    tokenizer = load_tokenizer(arguments["--model"])
    folder = arguments["--dest"] / str(LENGTH) / "data"
    assert {path.name for path in folder.iterdir()} == set(TASKS) - {"qa_2"}
    for path in sorted(folder.glob("*/validation.jsonl")):
        task, records = path.parent.name, [json.loads(line) for line in path.open()]
        assert [record["index"] for record in records] == [0, 1]
        assert records[0]["input"] != records[1]["input"]
        essays = NIAH_TASKS[task].haystack == "essay" if task in NIAH_TASKS else False
        for record in records:
            prompt = record["input"] + record["answer_prefix"]
            assert record["length"] == len(tokenizer.encode(prompt)) + max_new_tokens(task)
            assert 0.97 * LENGTH < record["length"] <= LENGTH, task
            assert record["haystack"] == ("essays" if essays else "")
            assert all(text in record["input"] for text in record["outputs"])
    before = {path: path.read_text() for path in folder.glob("*/*.jsonl")}
    call({**arguments, "--tasks": "niah_single_1,vt"})
    for task in ("niah_single_1", "vt"):
        path = folder / task / "validation.jsonl"
        assert path.read_text() == before[path]
    call({**arguments, "--tasks": "vt", "--seed": 4})
    assert path.read_text() != before[path]


BAD = {
    "unknown task": ({"--tasks": "vt,niah"}, "--tasks (niah) must be of niah_single_1, "),
    "HotpotQA": (
        {"--tasks": "vt,qa_2"},
        "--tasks (vt,qa_2): qa_2 is HotpotQA, which is not made here",
    ),
    "a task twice": ({"--tasks": "vt,vt"}, "--tasks (vt,vt) must name everything once"),
    "too short": (
        {"--tasks": "vt", "--lengths": "100"},
        "--lengths (100) is too short for vt, whose answers have up to 30 tokens: the shortest prompt "
        "of sample 0 has ",
    ),
    "no haystack": (
        {"--haystack": None},
        "--haystack is missing: niah_single_2, niah_single_3, niah_multikey_1, niah_multivalue, "
        "niah_multiquery hide needles in essays",
    ),
    "missing haystack": ({"--haystack": "nowhere"}, "--haystack (nowhere): no such file or folder"),
    "no questions": ({"--squad": None}, "--squad is missing: qa_1 asks questions of SQuAD"),
    "missing questions": ({"--squad": "nowhere"}, "--squad (nowhere): no such file"),
    "no samples": ({"--samples": "0"}, "--samples (0) must be at least 1"),
    "no model": ({"--model": "nowhere"}, "nowhere/dict.txt: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, arguments, monkeypatch, capsys):
    changed, message = BAD[case]
    given = {k: v for k, v in {**arguments, **changed}.items() if v is not None}
    parts = [part for pair in given.items() for part in pair]
    assert assert_one_line(
        monkeypatch, capsys, make_ruler.main, "make_ruler.py", *parts
    ).startswith(message)


def test_other_bad_sources_are_one_line(arguments, tmp_path, monkeypatch, capsys):
    def message(**changed):
        given = {**arguments, **{f"--{name}": value for name, value in changed.items()}}
        parts = [part for pair in given.items() for part in pair]
        return assert_one_line(monkeypatch, capsys, make_ruler.main, "make_ruler.py", *parts)

    (tmp_path / "empty").mkdir()
    assert (
        message(haystack=tmp_path / "empty")
        == f"--haystack ({tmp_path}/empty): holds no .txt files"
    )
    (tmp_path / "empty" / "a.txt").touch()
    assert message(haystack=tmp_path / "empty") == f"--haystack ({tmp_path}/empty) is empty"
    bad = tmp_path / "bad.json"
    bad.write_text('{"data": [1]}')
    assert message(squad=bad).startswith(f"--squad ({bad}) is not of SQuAD's form: ")
    assert message(haystack=bad).startswith(f'{bad} is no object with "text": ')

    def no_package(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(ruler_samples.resources, "files", no_package)
    assert "pip install 'longmem-fairseq[ruler]'" in message(tasks="niah_single_1")


def test_official_essays_are_one_text(tmp_path):
    from preprocess.haystack_text import read_haystack

    path = tmp_path / "PaulGrahamEssays.json"
    path.write_text(json.dumps({"text": "One essay. Another."}))
    assert read_haystack("--haystack", path) == ["One essay. Another."]


def test_sentences():
    text = 'He came.  "Who?" she\nasked. (Nobody knew.) It was 3.5 miles! 7 men\n\n\nleft'
    assert sentences(text) == [
        "He came.",
        '"Who?" she asked.',
        "(Nobody knew.)",
        "It was 3.5 miles!",
        "7 men left",
    ]
    assert sentences(" \n") == []
