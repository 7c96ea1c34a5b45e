"""ChapterBreak: items made of books, ranking against plain readings, resume and bad input."""

import json

import pytest
import torch

from eval import chapterbreak
from longmem_fairseq import LongMem
from preprocess import make_chapterbreak
from tests.helpers.benchmark_runs import assert_one_line, assert_resumes, call, lines, whole_chunks
from tests.helpers.model_folders import story

WINDOW, SUFFIX = 32, 8


def book(chapters, wrapped=False):
    """Chapters of 3,000 characters, each with a heading, a title and a text of its own."""
    parts = ["THE BOOK\n\nCONTENTS\n\nCHAPTER I\n\nCHAPTER II\n"]
    for number in range(1, chapters + 1):
        sentence = f"This is chapter {number}, about the owl and the tree. "
        text = (sentence * 70)[:3000].strip()
        if wrapped:
            text = text.replace("the owl and the ", "the owl and the\n")
        parts.append(f"CHAPTER {'I' * number}.\n\nA Title\n\n{text}\n")
    return "\n\n".join(parts)


def test_chapters_are_found_by_their_headings():
    text = book(3)
    found = make_chapterbreak.chapters(text, suffix=20)
    assert [text[start:end] for _, start, end in found] == [
        "This is chapter 1, a",
        "This is chapter 2, a",
        "This is chapter 3, a",
    ]
    assert [text[heading:].split("\n")[0] for heading, _, _ in found] == [
        "CHAPTER I.",
        "CHAPTER II.",
        "CHAPTER III.",
    ]


@pytest.mark.parametrize(
    "heading", ["Chapter 12", "BOOK THE SECOND", "XIV", "XIV.", "Part One: Home"]
)
def test_headings(heading):
    assert make_chapterbreak.HEADING.fullmatch(heading)


@pytest.mark.parametrize("line", ["I went home", "Chapters", "xiv", "Booking a room", "MILD"])
def test_other_lines_are_no_headings(line):
    assert not make_chapterbreak.HEADING.fullmatch(line)


def test_items_of_a_folder(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text(book(8))
    (tmp_path / "books" / "short.txt").write_text(book(4))
    dest = tmp_path / "made" / "items.json"
    options = ["--source", tmp_path / "books", "--dest", dest, "--least-context", 5000]
    options += ["--most-context", 4000, "--suffix", 25]
    make_chapterbreak.main(list(map(str, options)))
    works = json.loads(dest.read_text())["pg19"]
    # chapter 3 starts behind 5,000 characters and has five after it, chapter 4 has four
    assert list(works) == ["one"] and len(works["one"]) == 1
    (item,) = works["one"]
    assert item["pos"] == "This is chapter 3, about "
    assert sorted(item["negs"]) == [f"This is chapter {n}, about " for n in range(4, 9)]
    assert len(item["ctx"]) <= 4002 and item["ctx"].endswith("th\n\n")
    assert "chapter 2" in item["ctx"] and "CHAPTER III" not in item["ctx"]
    before = dest.read_bytes()
    make_chapterbreak.main(list(map(str, options)))
    assert dest.read_bytes() == before


def test_items_of_given_offsets_unwrapped(tmp_path):
    text = book(7, wrapped=True)
    (tmp_path / "one.txt").write_text(text)
    third, fourth = text.index("This is chapter 3"), text.index("This is chapter 4")
    item = {"file": "one.txt", "ctx_end": text.index("CHAPTER III"), "pos": [third, third + 60]}
    offsets = tmp_path / "offsets.jsonl"
    offsets.write_text(json.dumps({**item, "negs": [[fourth, fourth + 60]] * 5}) + "\n")
    options = ["--source", tmp_path, "--offsets", offsets, "--dest", tmp_path / "items.json"]
    make_chapterbreak.main(list(map(str, [*options, "--unwrap"])))
    (found,) = json.loads((tmp_path / "items.json").read_text())["pg19"]["one"]
    assert found["pos"].startswith("This is chapter 3, about the owl and the")
    assert found["ctx"].endswith("\n\n") and len(found["negs"]) == 5


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"file": "one.txt"}', "line 1: expected file, ctx_end, pos [start, end]"),
        ('{"file": "no.txt", "ctx_end": 9, "pos": [1, 2], "negs": [[1, 2]]}', "line 1: no file"),
        ('{"file": "one.txt", "ctx_end": 0, "pos": [1, 2], "negs": [[1, 2]]}', "line 1: expected"),
        (
            json.dumps({"file": "9" * 300, "ctx_end": 9, "pos": [1, 2], "negs": [[1, 2]]}),
            "line 1: expected file",
        ),
        ("{", "line 1: invalid JSON"),
    ],
)
def test_bad_offsets_are_one_line(tmp_path, monkeypatch, capsys, line, message):
    (tmp_path / "one.txt").write_text("text")
    (tmp_path / "o.jsonl").write_text(line + "\n")
    arguments = ("--source", tmp_path, "--offsets", tmp_path / "o.jsonl", "--dest", tmp_path / "x")
    main = make_chapterbreak.main
    assert message in assert_one_line(monkeypatch, capsys, main, "make_chapterbreak.py", *arguments)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--suffix", -5), "--suffix (-5) must be at least 1"),
        (("--most-context", 0), "--most-context (0) must be at least 1"),
        (("--least-context", 0), "--least-context (0) must be at least 1"),
        ((), "{folder}/one.txt is not a text in UTF-8 (byte 0xE9 at offset 3)"),
    ],
)
def test_bad_books_are_one_line(tmp_path, monkeypatch, capsys, more, message):
    (tmp_path / "one.txt").write_bytes(b"caf\xe9")
    arguments = ("--source", tmp_path, "--dest", tmp_path / "x.json", *more)
    main = make_chapterbreak.main
    line = assert_one_line(monkeypatch, capsys, main, "make_chapterbreak.py", *arguments)
    assert line == message.format(folder=tmp_path)


def test_books_without_chapters_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "one.txt").write_text("text")
    arguments = ("--source", tmp_path, "--dest", tmp_path / "x.json")
    main = make_chapterbreak.main
    message = assert_one_line(monkeypatch, capsys, main, "make_chapterbreak.py", *arguments)
    assert "gives no item: a book needs a chapter after --least-context (36000)" in message


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three items of two works."""
    path = tmp_path_factory.mktemp("chapterbreak") / "items.json"
    items = [
        {
            "ctx": story(120, seed=i),
            "pos": story(20, seed=100 + i),
            "negs": [story(20 if i else 5, seed=200 + 5 * i + n) for n in range(5)],
        }
        for i in range(3)
    ]
    path.write_text(json.dumps({"ao3": {"a": items[:2], "b": items[2:]}, "pg19": {}}))
    return path


def options(data, model, *more):
    window = ("--path", model, "--name", "m", "--tokens-per-sample", WINDOW, "--suffix", SUFFIX)
    return ("--data", data, *window, *more)


@torch.no_grad()
def likelihoods(lm, item, context):
    """Of the six beginnings, by plain forwards over the same segments."""
    beginnings = [item["pos"], *item["negs"]]
    suffixes = [lm.tokenizer.indices(text).tolist()[:SUFFIX] for text in beginnings]
    length = min(map(len, suffixes))
    before = [lm.dictionary.eos(), *lm.tokenizer.indices(item["ctx"]).tolist()][-context:]
    local = WINDOW - SUFFIX + 1
    found = []
    for suffix in suffixes:
        fresh = torch.tensor([True])
        if lm.decoder.memory is not None:
            lm.decoder.memory.reset()
            for segment in whole_chunks(lm, before[:-local]).split(WINDOW, dim=1):
                lm.decoder(segment, new_document=fresh)
                fresh = torch.tensor([False])
        tokens = before[-local:] + suffix[: length - 1]
        logits = lm.decoder(torch.tensor([tokens]), new_document=fresh)[0][0, -length:]
        expected = torch.tensor(suffix[:length])
        found.append(float(logits.log_softmax(-1).gather(1, expected[:, None]).sum()))
    return found


@pytest.mark.parametrize("model", ["longmem", "backbone"])
def test_ranking_is_that_of_plain_readings(data, models, tmp_path, monkeypatch, model):
    overrides = {"memory_size": 256} if model == "longmem" else {}
    size = ("--memory-size", 256) if overrides else ()
    results = tmp_path / "results.jsonl"
    arguments = options(data, models[model], "--contexts", "80,120", *size, "--results", results)
    call(monkeypatch, chapterbreak.main, "chapterbreak.py", *arguments)
    lm = LongMem.from_pretrained(models[model], tokens_per_sample=WINDOW, **overrides)
    content = json.loads(data.read_text())["ao3"]
    items = {f"{work}/{n}": item for work, found in content.items() for n, item in enumerate(found)}
    shortened = sum(
        min(len(lm.tokenizer.indices(text)) for text in [item["pos"], *item["negs"]]) < SUFFIX
        for item in items.values()
    )
    for line in lines(results):
        context = line["setting"]["context"]
        expected = {name: likelihoods(lm, item, context) for name, item in items.items()}
        (found,) = [
            records
            for path in (tmp_path / "results.jsonl.items").iterdir()
            if (records := lines(path))[0]["options"]["contexts"] == context
        ]
        for record in found[1:]:
            assert record["log_likelihoods"] == pytest.approx(expected[record["item"]], abs=1e-3)
        right = [values[0] > max(values[1:]) for values in expected.values()]
        assert line["accuracy"] == sum(right) / 3
        assert (line["items"], line["chance"]) == (3, pytest.approx(1 / 6))
        assert line["context_tokens"] == 3 * context
        assert line["shortened_items"] == shortened == 1


def test_a_killed_run_goes_on_to_the_same_line(data, models, tmp_path, monkeypatch):
    arguments = options(data, models["longmem"], "--contexts", "40,90")
    program = "chapterbreak.py"
    assert_resumes(monkeypatch, tmp_path, chapterbreak.main, program, *arguments)


ITEM = {"ctx": "a", "pos": "b", "negs": ["c"]}
BAD = {
    "no file": (None, (), "--data (nowhere): no such file"),
    "no JSON": ("{", (), "is not JSON"),
    "a list": ("[]", (), "--split (ao3) is not in {path}, whose splits are: none"),
    "another split": ('{"pg19": {}}', (), "--split (ao3) is not in {path}, whose splits are: pg19"),
    "no items": ('{"ao3": {}}', (), "--data ({path}) holds no items of ao3"),
    "no true beginning": (
        json.dumps({"ao3": {"w": [{"ctx": "a", "negs": ["b"]}]}}),
        (),
        "{path}, ao3, work w, item 0: expected texts ctx, pos and several negs",
    ),
    "empty context": (
        json.dumps({"ao3": {"w": [ITEM, {**ITEM, "ctx": " "}]}}),
        (),
        "{path}, ao3, work w, item 1: an empty context or beginning",
    ),
    "window": (
        json.dumps({"ao3": {"w": [ITEM]}}),
        ("--suffix", 40),
        "--tokens-per-sample (32) must be at least --suffix (40)",
    ),
    "memory": (
        json.dumps({"ao3": {"w": [{**ITEM, "ctx": story(200)}]}}),
        ("--contexts", 300),
        "--memory-size (128) is too small for the 276 tokens to be memorized",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, models, tmp_path, monkeypatch, capsys):
    content, more, message = BAD[case]
    path = "nowhere"
    if content is not None:
        path = tmp_path / "items.json"
        path.write_text(content)
    arguments = options(path, models["longmem"], *more)
    main = chapterbreak.main
    found = assert_one_line(monkeypatch, capsys, main, "chapterbreak.py", *arguments)
    assert message.format(path=path) in found
