"""Needles: haystacks, where a needle is hidden, and what is found, against plain readings."""

import json

import pytest
import torch
from torch.testing import assert_close

from eval import needle
from eval.common.prompt_reader import PromptReader
from longmem_fairseq import LongMem
from preprocess import make_haystack
from preprocess.recall_words import NAMES, TRADES
from tests.helpers.benchmark_runs import assert_one_line, assert_resumes, call, lines
from tests.helpers.model_folders import story

WINDOW = 24


def made(folder, *options):
    path = folder / "haystack.json"
    make_haystack.main(["--dest", str(path), *map(str, options)])
    return json.loads(path.read_text())


def test_recall_needles_are_about_people_the_haystack_does_not_know(tmp_path):
    content = made(tmp_path, "--words", 4000, "--needles", 10, "--names", 50, "--values", 8)
    words = set(content["haystack"].replace(".", "").replace("?", "").split())
    assert len(content["haystack"].split()) >= 4000
    assert words & set(NAMES) == set(NAMES[:40])
    assert words & set(TRADES) == set(TRADES[:8])
    assert content["chance"] == 1 / 8
    for hidden, name in zip(content["needles"], NAMES[40:50], strict=True):
        value = hidden["answer"].strip()
        assert value in TRADES[:8]
        assert hidden["needle"] == f" {name} {value}."
        assert hidden["question"] == f" Do you remember? {name}"
    assert made(tmp_path, "--words", 4000, "--needles", 10, "--names", 50, "--values", 8) == content


def test_passkeys(tmp_path):
    (tmp_path / "text.txt").write_text("One two three.\n")
    more = ("--format", "passkey", "--text", tmp_path / "text.txt", "--words", 7, "--needles", 2)
    content = made(tmp_path, *more)
    assert content["haystack"] == "One two three. One two three. One two three."
    for hidden in content["needles"]:
        key = hidden["answer"].strip()
        assert len(key) == 5 and key.isdigit()
        assert hidden["needle"].count(key) == 2
    assert content["chance"] == pytest.approx(1 / 90_000)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--words", 0), "--words (0) must be at least 1"),
        (("--needles", 240), "--needles (240) must be less than --names (240)"),
        (("--names", 400), "--names (400) must be at most 260"),
        (
            ("--format", "passkey", "--text", "{folder}/latin.txt"),
            "{folder}/latin.txt is not a text in UTF-8 (byte 0xE9 at offset 3)",
        ),
        (("--text", "x"), "--text (x) is for --format passkey"),
        (("--values", 60), "--values (60) must be from 2 to 50"),
    ],
)
def test_bad_haystacks_are_one_line(tmp_path, monkeypatch, capsys, more, message):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    more = [str(part).format(folder=tmp_path) for part in more]
    arguments = ("--dest", tmp_path / "x.json", *more)
    main = make_haystack.main
    line = assert_one_line(monkeypatch, capsys, main, "make_haystack.py", *arguments)
    assert line == message.format(folder=tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 sentences and three needles in the tokens of the tiny models."""
    path = tmp_path_factory.mktemp("needle") / "haystack.json"
    sentences = " ".join(" ".join(story(4, seed=i).split()) + "." for i in range(300))
    needles = [
        {"needle": f" {name} saw.", "question": f" the {name}", "answer": " saw"}
        for name in ("Ann", "Bob", "Emil")
    ]
    content = {"format": "recall", "chance": 0.5, "haystack": sentences, "needles": needles}
    path.write_text(json.dumps(content))
    return path


def options(data, model, *more):
    window = ("--path", model, "--name", "m", "--tokens-per-sample", WINDOW)
    return ("--data", data, *window, *more)


@pytest.fixture(params=["longmem", "memtrm"])
def reader(request, models):
    return PromptReader(
        LongMem.from_pretrained(models[request.param], tokens_per_sample=WINDOW, memory_size=1024)
    )


def haystack_of(data, reader):
    return needle.encode_haystack(json.loads(data.read_text())["haystack"], reader.lm.tokenizer)


def test_sentences_begin_after_a_full_stop(data, reader):
    haystack = haystack_of(data, reader)
    text = json.loads(data.read_text())["haystack"]
    pieces = reader.lm.tokenizer.pieces(haystack.tokens.tolist())
    assert "".join(pieces) == text
    begins = {len("".join(pieces[:start])) for start in haystack.sentences}
    # sentence-final marks inside a token, or at the very end, begin nothing
    assert begins <= {i + 1 for i, character in enumerate(text) if character in ".?"}
    assert len(begins) > 250


@pytest.mark.parametrize("length", [WINDOW, 100, 500])
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_the_memory_is_that_of_a_haystack_with_the_needle(data, reader, length, depth):
    haystack, hidden = haystack_of(data, reader), reader.tokens(" Ann saw.")
    start = needle.Hider(reader, haystack, 500).hide(hidden, length, depth)
    first = start // WINDOW * WINDOW
    last = min(first + WINDOW, length)
    assert start in haystack.sentences and start + len(hidden) <= last
    with_needle = haystack.tokens[:length].clone()
    with_needle[start:last] = torch.cat([hidden, haystack.tokens[start:last]])[: last - start]
    bank = reader.lm.memory.single_bank(reader.lm.device)
    other = reader.lm.memory._new_bank(1, reader.lm.device)
    for segment in with_needle.split(WINDOW):
        other.write(**reader.decoder.entries(segment[None])._asdict())
    assert (bank.num_written, bank.num_pending) == (other.num_written, other.num_pending)
    for name in ("keys", "values", "chunk_keys"):
        assert_close(bank.state_dict()[name], other.state_dict()[name], atol=1e-5, rtol=0)


def test_depths_are_where_they_say(data, reader):
    haystack, hidden = haystack_of(data, reader), reader.tokens(" Ann saw.")
    hider = needle.Hider(reader, haystack, 500)
    starts = [hider.hide(hidden, 500, depth) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert starts[0] == min(haystack.sentences[haystack.sentences % WINDOW <= WINDOW - len(hidden)])
    for start, depth in zip(starts[1:4], (0.25, 0.5, 0.75), strict=True):
        assert 0 <= start - depth * (500 - len(hidden)) < WINDOW
    assert 500 - WINDOW <= starts[4] + len(hidden) <= 500


@torch.no_grad()
def test_an_answer_is_right_if_every_token_is_the_likeliest(data, reader):
    haystack = haystack_of(data, reader)
    question = reader.tokens(" the Ann")
    hidden = needle.Needle(reader.tokens(" Ann saw."), question, torch.tensor([]))
    needle.Hider(reader, haystack, 200).hide(hidden.needle, 200, 0.5)
    room = WINDOW + 1 - len(question) - 2
    context = torch.cat([haystack.tokens[200 : 200 + room], question])
    fresh, said = torch.tensor([False]), []
    with reader.lm.memory.frozen():
        for _ in range(2):
            tokens = torch.cat([context, torch.tensor(said, dtype=torch.long)])
            logits = reader.decoder(tokens[None], new_document=fresh)[0]
            said.append(int(logits[0, -1].argmax()))
    for answer, right in ((said, True), ([said[0], said[1] + 1], False), ([said[0] + 1], False)):
        asked = hidden._replace(answer=torch.tensor(answer))
        if len(answer) == 2:  # one token leaves room for one more of the haystack
            assert needle.ask(reader, haystack.tokens, asked, 200) is right


def test_the_grid(data, models, tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    more = ("--lengths", "48,100", "--depths", 3, "--trials", 3, "--results", results)
    for model, size in (("longmem", ("--memory-size", 128)), ("backbone", ())):
        call(monkeypatch, needle.main, "needle.py", *options(data, models[model], *more, *size))
    with_memory, without = lines(results)
    for line in (with_memory, without):
        assert line["setting"]["depths"] == [0.0, 0.5, 1.0]
        assert [len(row) for row in line["grid"]] == [2, 2, 2]
        assert all(3 * share == round(3 * share) for row in line["grid"] for share in row)
    assert with_memory["memorized_tokens"] == 148 * 9
    assert without["memorized_tokens"] == 0 and without["memory_options"] is None
    # without memory neither depth nor length changes anything but the window's haystack
    assert without["grid"][0] == without["grid"][1] == without["grid"][2]


def test_a_killed_run_goes_on_to_the_same_line(data, models, tmp_path, monkeypatch):
    more = ("--lengths", "48,100", "--depths", 3, "--trials", 1)
    arguments = options(data, models["longmem"], *more)
    assert_resumes(monkeypatch, tmp_path, needle.main, "needle.py", *arguments)


BAD = {
    "no file": ({"--data": "nowhere"}, "--data (nowhere): no such file"),
    "too long": ({"--lengths": "9000"}, "--lengths (9000) and a window need more than"),
    "too many": ({"--trials": "4"}, "--trials (4) must be at most 3, the needles of"),
    "memory": (
        {"--lengths": "48,200,100"},
        "--memory-size (128) is too small for the 200 tokens to be memorized",
    ),
    "a length twice": ({"--lengths": "48,100,48"}, "(48,100,48) must name every number once"),
    "no length": ({"--lengths": "48,0"}, "--lengths (48,0) must be at least 1 each"),
    "depths": ({"--depths": "0"}, "--depths (0) must be at least 1"),
    "window": (
        {"--tokens-per-sample": "2", "--memory-size": "128"},
        "leave no sentence whose segment",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, data, models, monkeypatch, capsys):
    changed, message = BAD[case]
    more = ["--lengths", "48", "--depths", "2", "--trials", "1"]
    more += [part for pair in changed.items() for part in pair]
    arguments = options(data, models["longmem"], *more)
    assert message in assert_one_line(monkeypatch, capsys, needle.main, "needle.py", *arguments)


NO_FORMAT = {
    "haystack": "a",
    "chance": 0.5,
    "needles": [{"needle": "a", "question": "a", "answer": "a"}],
}


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"haystack": "", "needles": []}', json.dumps(NO_FORMAT)),
        json.dumps({**NO_FORMAT, "format": "recall", "chance": None}),
    ],
)
def test_other_files_are_no_haystacks(content, models, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.json").write_text(content)
    arguments = options(tmp_path / "x.json", models["longmem"])
    message = assert_one_line(monkeypatch, capsys, needle.main, "needle.py", *arguments)
    assert "is not a haystack of preprocess/make_haystack.py" in message


@pytest.mark.parametrize("chance", ["0.5", [0.5], -1])
def test_a_chance_that_is_none_is_one_line(chance, data, models, tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**json.loads(data.read_text()), "chance": chance}))
    arguments = options(path, models["longmem"])
    message = assert_one_line(monkeypatch, capsys, needle.main, "needle.py", *arguments)
    assert message == f"{path}: chance is {chance!r}, expected a number from 0 to 1"
