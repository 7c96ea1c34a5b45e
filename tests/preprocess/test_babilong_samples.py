"""preprocess/make_babilong.py: facts in their order between sentences of books."""

import json
import random
import re

import pytest

from longmem_fairseq.tokenizers import load_tokenizer
from preprocess import make_babilong
from preprocess.make_babilong import PROMPT_TOKENS, Background, hidden
from tests.helpers.benchmark_runs import assert_one_line

PEOPLE, PLACES = ("Mary", "John", "Daniel"), ("garden", "office", "kitchen", "hallway")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """bAbI's files, one with tabs and one with bars, and two books."""
    folder, rng = tmp_path_factory.mktemp("babilong"), random.Random(1)
    for task, bar in (("qa1", "\t"), ("qa2", "|")):
        lines = []
        for _ in range(6):
            for number in range(1, 6, 2):
                person, place = rng.choice(PEOPLE), rng.choice(PLACES)
                lines.append(f"{number} {person} went to the {place}.")
                lines.append(f"{number + 1} Where is {person}? {bar}{place}{bar}{number}")
        (folder / f"{task}_single-fact_test.txt").write_text("\n".join(lines) + "\n\n")
    books = folder / "books"
    books.mkdir()
    for name in "ab":
        text = " ".join(
            f"In chapter {i} of book {name} nobody said anything of note." for i in range(900)
        )
        (books / f"{name}.txt").write_text(text)
    return folder


def make(files, tokenizer_folder, dest, **options):
    given = {"model": tokenizer_folder, "babi": files, "books": files / "books", "dest": dest}
    given |= {"tasks": "qa1,qa2", "lengths": "0k,1k,2k", "samples": 4, **options}
    make_babilong.main([str(part) for name, v in given.items() for part in (f"--{name}", v)])
    return {
        (path.parent.name, path.stem): json.loads(path.read_text())
        for path in (dest / "data").glob("*/*.json")
    }


def test_facts_decide_the_answer_and_lengths_are_exact(files, odd_corpus, tmp_path):
    made = make(files, odd_corpus[1], tmp_path)
    tokenizer = load_tokenizer(odd_corpus[1])
    assert set(made) == {(task, length) for task in ("qa1", "qa2") for length in ("0k", "1k", "2k")}
    for (task, length), samples in made.items():
        known = make_babilong.read_questions(files, task, "test")
        assert len(samples) == 4
        for sample in samples:
            text, name = sample["input"], sample["question"][len("Where is ") : -1]
            facts = re.findall(rf"(?:{'|'.join(PEOPLE)}) went to the \w+\.", text)
            assert any(
                (facts, sample["question"], sample["target"]) == (q.facts, q.question, q.answer)
                for q in known
            )
            last = [fact for fact in facts if fact.startswith(name)][-1]
            assert last.endswith(f"the {sample['target']}.")
            if length == "0k":
                assert text == " ".join(facts)
            else:
                room = int(length[:-1]) * 1000 - PROMPT_TOKENS
                assert room - 40 <= len(tokenizer.encode(text)) <= room
    # the same questions at every length
    assert [s["question"] for s in made["qa1", "0k"]] == [s["question"] for s in made["qa1", "2k"]]
    assert make(files, odd_corpus[1], tmp_path / "again") == made
    assert make(files, odd_corpus[1], tmp_path / "other", seed=1) != made


def test_facts_stay_in_order_at_any_place():
    facts, background = ["F0", "F1", "F2"], [f"s{i}" for i in range(4)]
    places = set()
    for seed in range(200):
        words = hidden(random.Random(seed), facts, background).split()
        assert [w for w in words if w in facts] == facts
        assert [w for w in words if w in background] == background
        places.add(words.index("F0"))
    assert places == {0, 1, 2, 3, 4}
    assert hidden(random.Random(1), facts, []) == "F0 F1 F2"


def test_background_is_consecutive_whole_sentences(odd_corpus, files):
    text = (files / "books" / "a.txt").read_text()
    background = Background([text, " "], load_tokenizer(odd_corpus[1]))
    *whole, last = background.sentences(random.Random(2), 600)
    assert " ".join(whole) in text and all(sentence.endswith("note.") for sentence in whole)
    assert " ".join([*whole, last]) in text
    assert background.sentences(random.Random(2), 0) == []


BAD = {
    "unknown task": ({"tasks": "qa11"}, "--tasks (qa11) must be of qa1, qa2, "),
    "unknown length": ({"lengths": "3k"}, "--lengths (3k) must be of 0k, 1k, "),
    "no such task": ({"tasks": "qa3"}, "{babi}): 0 files qa3_*_test.txt, expected 1"),
    "missing books": ({"books": "nowhere"}, "--books (nowhere): no such file or folder"),
    "too many samples": (
        {"samples": 19},
        "--samples (19) must be at most 18, the questions of qa1 whose facts --lengths (0k) has room "
        "for",
    ),
    "no model": ({"model": "nowhere"}, "nowhere/dict.txt: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, files, odd_corpus, tmp_path, monkeypatch, capsys):
    changed, message = BAD[case]
    given = {"model": odd_corpus[1], "babi": files, "books": files / "books", "dest": tmp_path}
    given = {**given, "tasks": "qa1", "lengths": "0k", "samples": 1, **changed}
    parts = [part for name, value in given.items() for part in (f"--{name}", value)]
    line = assert_one_line(monkeypatch, capsys, make_babilong.main, "make_babilong.py", *parts)
    assert message.replace("{babi}", str(files)) in line


def test_a_damaged_file_names_its_line(files, odd_corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "qa1_x_test.txt").write_text("1 Mary went.\nno number\n")
    parts = ["--model", odd_corpus[1], "--babi", tmp_path, "--books", files / "books"]
    parts += ["--dest", tmp_path / "made", "--tasks", "qa1"]
    line = assert_one_line(monkeypatch, capsys, make_babilong.main, "make_babilong.py", *parts)
    assert line == f"{tmp_path}/qa1_x_test.txt, line 2: expected a number and a sentence"
