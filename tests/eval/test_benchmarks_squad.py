"""SQuAD: metrics by hand and by their definitions, prompts, generation and resume."""

import json
import random
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import squad
from eval.squad_metrics import exact_match, f1, normalize_answer
from longmem_fairseq import LongMem
from tests.helpers.benchmark_runs import assert_one_line, assert_resumes, call, lines, whole_chunks
from tests.helpers.examples import examples
from tests.helpers.model_folders import story

WINDOW = 96


def test_normalization():
    assert normalize_answer("  The  Denver-Broncos, (an NFL team)! ") == "denverbroncos nfl team"
    assert normalize_answer("A. An THE") == ""
    assert normalize_answer("Theodore and Ann") == "theodore and ann"  # no articles inside words


@pytest.mark.parametrize(
    "prediction, answers, em, expected",
    [
        ("the Denver Broncos", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("in Santa Clara, California", ["Santa Clara"], 0, 2 / 3),  # precision 1/2, recall 1
        ("gold gold gold", ["gold"], 0, 1 / 2),  # a word counts as often as both have it
        ("gold", ["golden", "gold"], 1, 1),  # the best of several answers
        ("February 7", ["7 February 2016", "the 7th"], 0, 4 / 5),
        ("", ["gold"], 0, 0),
        ("the", ["a"], 1, 0),  # both empty once normalized: equal, and without a word in common
    ],
)
def test_metrics_by_hand(prediction, answers, em, expected):
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(expected)


@settings(max_examples=examples(100))
@given(*[st.text("Aan the,.x ", max_size=12)] * 2)
def test_f1_is_the_harmonic_mean(prediction, answer):
    """By the definition: precision and recall over the words of both, as multisets."""

    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    predicted, expected = words(prediction), words(answer)
    common = sum(min(predicted.count(w), expected.count(w)) for w in set(predicted))
    if common == 0:
        assert f1(prediction, [answer]) == 0
    else:
        precision, recall = common / len(predicted), common / len(expected)
        harmonic = 2 * precision * recall / (precision + recall)
        assert f1(prediction, [answer]) == pytest.approx(harmonic)
    assert exact_match(prediction, [answer]) == (predicted == expected)


def test_the_official_files(shared_dir):
    """The 1,190 questions of XQuAD, in the official form: what is right scores 100."""
    folder = shared_dir / "data"
    packed = folder / "squad_gpt2bpe.tar.xz"
    if not packed.is_file():
        pytest.skip(f"no {packed}")
    import tarfile

    with tarfile.open(packed) as archive:
        content = json.load(archive.extractfile("squad/xquad.en.json"))
    questions = [q for a in content["data"] for p in a["paragraphs"] for q in p["qas"]]
    assert len(questions) == 1190
    for question in questions:
        answers = [answer["text"] for answer in question["answers"]]
        assert exact_match(f"The {answers[0].upper()}.", answers) == 1 == f1(answers[0], answers)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training questions and those to answer."""
    folder, rng = tmp_path_factory.mktemp("squad"), random.Random(1)
    for name, count in (("train", 8), ("dev", 7)):
        asked = [
            {
                "id": f"{name}{i}",
                "question": story(2 + i % 3, seed=i) + "?",
                "answers": [{"text": "Bob"}],
            }
            for i in range(count)
        ]
        paragraphs = [
            {"context": story(rng.randint(1, 6), seed=i), "qas": [question]}
            for i, question in enumerate(asked)
        ]
        content = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def options(files, model, *more):
    data = ("--data", files / "dev.json", "--train", files / "train.json")
    window = ("--path", model, "--name", "m", "--tokens-per-sample", WINDOW)
    return (*data, *window, "--max-new-tokens", 5, "--batch-size", 2, *more)


@pytest.mark.parametrize("model", ["longmem", "backbone"])
def test_answers_are_greedy_continuations(files, models, tmp_path, monkeypatch, model):
    memory = 3 if model == "longmem" else 0
    overrides = {"memory_size": 2048} if memory else {}
    size = ("--memory-size", 2048) if memory else ()
    more = ("--shots", 1, "--memory-demonstrations", memory, *size)
    results = tmp_path / "results.jsonl"
    arguments = options(files, models[model], *more, "--results", results)
    call(monkeypatch, squad.main, "squad.py", *arguments)
    lm = LongMem.from_pretrained(models[model], tokens_per_sample=WINDOW, **overrides)
    drawn = random.Random(1).sample(
        squad.read_questions("--train", files / "train.json"), 1 + memory
    )
    questions = squad.read_questions("--data", files / "dev.json")
    (path,) = (tmp_path / "results.jsonl.items").iterdir()
    said = {}
    for record in lines(path)[1:]:
        said.update(zip(record["questions"], record["answers"], strict=True))
    assert sorted(said) == list(range(7))
    (line,) = lines(results)
    assert line["questions"] == 7 and line["data"] == str(files / "dev.json")
    compared = 0
    for i, question in enumerate(questions):
        shown = drawn[0].demonstration + question.prompt
        ids = [lm.dictionary.eos(), *lm.tokenizer.indices(shown).tolist()]
        if len(ids) + 5 <= WINDOW:  # else the demonstration is in the memory
            assert said[i] == hand_generated(lm, ids, drawn[1:])
            compared += 1
    assert compared >= 3
    expected = [exact_match(said[i], q.answers) for i, q in enumerate(questions)]
    assert line["exact_match"] == pytest.approx(100 * sum(expected) / 7)


@torch.no_grad()
def hand_generated(lm, ids, remembered):
    """Five tokens by plain forwards, up to the end of the line."""
    if lm.decoder.memory is not None:
        texts = "".join(question.demonstration for question in remembered)
        memorized = whole_chunks(lm, [lm.dictionary.eos(), *lm.tokenizer.indices(texts).tolist()])
    text, written = list(ids), []
    for _ in range(5):
        fresh = torch.tensor([True])
        if lm.decoder.memory is not None:
            lm.decoder.memory.reset()
            for segment in memorized.split(WINDOW, dim=1):
                lm.decoder(segment, new_document=fresh)
                fresh = torch.tensor([False])
        logits = lm.decoder(torch.tensor([text]), new_document=fresh)[0][0, -1]
        written.append(int(logits.argmax()))
        text.append(written[-1])
        if written[-1] == lm.dictionary.eos() or "\n" in lm.tokenizer.decode(written[-1:]):
            break
    return lm.tokenizer.decode(written).strip(" ").split("\n")[0].strip()


def test_an_answer_ends_with_its_document_whatever_follows(models):
    """Rows that have ended are continued until all have, and that is no part of the answer."""
    tokenizer = LongMem.from_pretrained(models["backbone"]).tokenizer
    name, end = tokenizer.indices(" Bob").tolist(), tokenizer.dictionary.eos()
    more = tokenizer.indices(" and more").tolist()
    assert squad.answer_of(torch.tensor([*name, end, *more]), tokenizer) == "Bob"
    assert squad.answer_of(torch.tensor([*name, *more]), tokenizer) == "Bob and more"
    assert squad.answer_of(torch.tensor([end, *name]), tokenizer) == ""


def test_a_killed_run_goes_on_to_the_same_line(files, models, tmp_path, monkeypatch):
    more = ("--shots", 2, "--memory-demonstrations", "0,4", "--memory-size", 2048)
    arguments = options(files, models["longmem"], *more)
    assert_resumes(monkeypatch, tmp_path, squad.main, "squad.py", *arguments)


BAD = {
    "no file": ({"--data": "nowhere"}, None, "--data (nowhere): no such file"),
    "no JSON": ({}, "{", "is not of SQuAD's form"),
    "other JSON": ({}, '{"data": [{"title": "t"}]}', "KeyError 'paragraphs'"),
    "no questions": ({}, '{"data": []}', "holds no questions"),
    "no answer": (
        {},
        '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 7, "question": "q", '
        '"answers": []}]}]}]}',
        "question 7 has no answer",
    ),
    "an answer that is a number": (
        {},
        '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 7, "question": "q", '
        '"answers": [{"text": 3}]}]}]}]}',
        "question 7 has an answer that is no text",
    ),
    "no context": (
        {},
        '{"data": [{"paragraphs": [{"context": " ", "qas": [{"id": 7, "question": "q", '
        '"answers": [{"text": "a"}]}]}]}]}',
        "question 7 has no text or paragraph",
    ),
    "a seed twice": ({"--seeds": "1,1"}, None, "--seeds (1,1) must name every number once"),
    "a memory twice": (
        {"--memory-demonstrations": "2,0,2"},
        None,
        "--memory-demonstrations (2,0,2) must name every number once",
    ),
    "too many": (
        {"--shots": "9"},
        None,
        "--shots (9) and --memory-demonstrations (0) must be",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, files, models, tmp_path, monkeypatch, capsys):
    changed, content, message = BAD[case]
    more = ["--memory-demonstrations", 0]
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
        changed = {"--data": tmp_path / "bad.json"}
    more += [part for pair in changed.items() for part in pair]
    arguments = options(files, models["longmem"], *more)
    assert message in assert_one_line(monkeypatch, capsys, squad.main, "squad.py", *arguments)


def test_a_model_without_memory_remembers_no_demonstrations(files, models, monkeypatch, capsys):
    arguments = options(files, models["backbone"], "--memory-demonstrations", 2)
    message = assert_one_line(monkeypatch, capsys, squad.main, "squad.py", *arguments)
    assert message.startswith("--memory-demonstrations (2) needs a model with a memory bank")
