"""Perplexity of a corpus: in a model's vocabulary, of killed runs, and what is refused."""

import json
import shutil

import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

from eval import evaluate, report
from longmem_fairseq.commands.prepare import main as prepare_corpus
from tests.helpers.benchmark_runs import assert_one_line, assert_resumes, call, lines
from tests.helpers.corpora import items_of
from tests.helpers.model_folders import WINDOW, story


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, models):
    """A corpus of test documents alone, in the vocabulary of the models."""
    folder = tmp_path_factory.mktemp("books")
    (folder / "text" / "test").mkdir(parents=True)
    for i in range(7):
        (folder / "text" / "test" / f"{i}.txt").write_text(story(8 + 9 * i, seed=i))
    prepare(folder / "text", folder / "data", "--vocabulary", models["longmem"])
    return folder / "data"


def prepare(source, dest, *options):
    arguments = ["--source", source, "--dest", dest, *options]
    prepare_corpus(list(map(str, arguments)))


def test_a_corpus_in_the_vocabulary_of_a_model(corpus, models):
    for name in ("dict.txt", "sentencepiece.model"):
        assert (corpus / name).read_bytes() == (models["longmem"] / name).read_bytes()
    assert not (corpus / "train.bin").exists()
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert list(manifest["splits"]) == ["test"]
    assert manifest["splits"]["test"]["tokens"] == sum(map(len, items_of(corpus, "test")))


@pytest.mark.parametrize(
    "more, message",
    [
        (
            (),
            "has no documents in its train split, from which the tokenizer is made; for evaluation",
        ),
        (("--vocabulary", "{model}", "--dict", "x"), "is tokenizer and dictionary: leave out"),
        (("--vocabulary", "nowhere"), "--vocabulary (nowhere) has no dict.txt: give the folder"),
    ],
)
def test_bad_vocabularies_are_one_line(
    more, message, corpus, models, tmp_path, monkeypatch, capsys
):
    more = [part.format(model=models["longmem"]) for part in more]
    arguments = ("--source", corpus.parent / "text", "--dest", tmp_path / "out", *more)
    assert message in assert_one_line(
        monkeypatch, capsys, prepare_corpus, "prepare_corpus.py", *arguments
    )


def options(corpus, model, *more):
    path = ("--path", model / "checkpoint_last.pt", "--name", "m")
    return (corpus, *path, "--tokens-per-sample", WINDOW, "--batch-size", 2, *more)


def test_a_killed_run_goes_on_to_the_same_line(corpus, models, tmp_path, monkeypatch):
    arguments = options(corpus, models["longmem"], "--benchmark", "books")
    assert_resumes(monkeypatch, tmp_path, evaluate.main, "evaluate.py", *arguments)
    (line,) = lines(tmp_path / "whole.jsonl")
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert line["tokens"] == manifest["splits"]["test"]["tokens"]
    assert line["benchmark"] == "books" and len(line["gate"]) == 2
    assert (line["compute_dtype"], line["limit"]) == ("float32", None)
    assert (line["memory_options"]["heads"], line["memory_options"]["distance"]) == ("query", 0)
    assert [document["name"] for document in line["documents"]] == [f"{i}.txt" for i in range(7)]


def test_the_window_is_the_one_it_was_trained_with(corpus, models, tmp_path, monkeypatch):
    results, kept = tmp_path / "results.jsonl", ("--results", tmp_path / "results.jsonl")
    arguments = list(options(corpus, models["longmem"], *kept))
    call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
    place = arguments.index("--tokens-per-sample")
    del arguments[place : place + 2]
    call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
    (line,) = lines(results)  # the second run is the first once more
    assert line["tokens_per_sample"] == WINDOW
    items = tmp_path / "results.jsonl.items"
    assert len(list(items.iterdir())) == 1
    # items that other code has finished are done again
    monkeypatch.setattr("eval.common.model_options.code_hash", lambda: "other")
    call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
    assert len(list(items.iterdir())) == 2


QUESTION = {"document": 6, "position": 3, "tokens": 1, "mention": 1, "distance": 2}


def test_questions_without_chance_and_about_documents_that_are_not_read(
    corpus, models, tmp_path, monkeypatch, capsys
):
    data = shutil.copytree(corpus, tmp_path / "data")
    (data / "test.questions.jsonl").write_text(json.dumps(QUESTION) + "\n")
    results = tmp_path / "results.jsonl"
    for more in ((), ("--limit", 3)):
        arguments = options(data, models["backbone"], *more, "--results", results)
        call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
    every, first = lines(results)
    assert every["chance"] is None and every["questions"] == {"within": 1, "beyond": 0}
    assert "recall" not in first
    printed = capsys.readouterr().out.splitlines()
    assert ", recall within the window " in printed[0] and printed[0].endswith("%")


@pytest.mark.parametrize("chance", ["0.5", [0.5], 2, True, float("nan")])
def test_a_chance_that_is_none_is_one_line(chance, corpus, models, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(corpus, tmp_path / "data")
    (data / "test.questions.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (data / "manifest.json").write_text(json.dumps({"chance": chance}))
    arguments = options(data, models["backbone"])
    message = assert_one_line(monkeypatch, capsys, evaluate.main, "evaluate.py", *arguments)
    expected = f"chance is {chance!r}, expected a number from 0 to 1"
    assert message == f"{data}/manifest.json: {expected}"


def test_a_document_without_tokens_is_one_line(corpus, models, tmp_path, monkeypatch, capsys):
    """prepare_corpus.py and fairseq-preprocess write at least the token that ends it."""
    data = shutil.copytree(corpus, tmp_path / "data")
    builder = MMapIndexedDatasetBuilder(str(data / "test.bin"))
    for document in ([4, 2], [], [2]):
        builder.add_item(torch.tensor(document, dtype=torch.int32))
    builder.finalize(str(data / "test.idx"))
    (data / "test.documents.jsonl").write_text(3 * SAID)
    arguments = options(data, models["backbone"])
    message = assert_one_line(monkeypatch, capsys, evaluate.main, "evaluate.py", *arguments)
    assert message.startswith(f"{data}/test.idx: document 1 has no tokens, not even its end")


def test_an_empty_text_has_no_perplexity_per_word(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "text" / "test").mkdir(parents=True)
    (tmp_path / "text" / "test" / "empty.txt").write_text("")
    prepare(tmp_path / "text", tmp_path / "data", "--vocabulary", models["longmem"])
    results = tmp_path / "results.jsonl"
    arguments = options(tmp_path / "data", models["backbone"], "--results", results)
    call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
    (line,) = lines(results)
    assert (line["tokens"], line["words"], line["word_ppl"]) == (1, 0, None)
    call(monkeypatch, report.main, "report.py", results)
    assert capsys.readouterr().out.count(f"{line['ppl']:.3f}") == 2


SAID = '{"name": "a", "words": 3}\n'
DAMAGED = {
    "no descriptions": ("documents", "", "has 0 lines for 7 documents: prepare the corpus again"),
    "too few": ("documents", 3 * SAID, "has 3 lines for 7 documents: prepare the corpus again"),
    "no name": ("documents", SAID + "{}\n", ", line 2: name is None, expected str"),
    "no words": (
        "documents",
        '{"name": "a", "words": "3"}',
        ", line 1: words is '3', expected int",
    ),
    "fewer than no words": ("documents", 6 * SAID + SAID.replace("3", "-3"), ", line 7: -3 words"),
    "no document": ("questions", "{}", ", line 1: document is None, expected int"),
    "no such document": ("questions", {"document": 7}, ", line 1: document 7 is none of 7"),
    "no position": ("questions", {"position": None}, ", line 1: position is None, expected int"),
    "before it": ("questions", {"position": -1}, "1: an answer of 1 tokens at -1 is not inside"),
    "beyond it": (
        "questions",
        {"tokens": 9999},
        "an answer of 9999 tokens at 3 is not inside docu",
    ),
    "of nothing": (
        "questions",
        {"tokens": 0},
        ", line 1: an answer of 0 tokens at 3 is not inside",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_descriptions_are_one_line(case, corpus, models, tmp_path, monkeypatch, capsys):
    name, content, message = DAMAGED[case]
    data = shutil.copytree(corpus, tmp_path / "data")
    if isinstance(content, dict):
        content = json.dumps({**QUESTION, **content})
    (data / f"test.{name}.jsonl").write_text(content)
    arguments = options(data, models["backbone"])
    found = assert_one_line(monkeypatch, capsys, evaluate.main, "evaluate.py", *arguments)
    assert found.startswith(f"{data}/test.{name}.jsonl") and message in found


def test_the_first_documents_alone(corpus, models, tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    for more in ((), ("--limit", 3)):
        arguments = options(corpus, models["backbone"], *more, "--results", results)
        call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
    every, first = lines(results)
    assert [d["name"] for d in first["documents"]] == ["0.txt", "1.txt", "2.txt"]
    for document, same in zip(first["documents"], every["documents"], strict=False):
        assert document["ppl"] == pytest.approx(same["ppl"], rel=1e-5)


def test_a_memory_written_by_another_model(corpus, models, tmp_path, monkeypatch):
    """By itself it is what it would write anyway; by another MemTRM it is another."""
    results, found = tmp_path / "results.jsonl", []
    for writer in (None, "memtrm", "other_memtrm"):
        more = () if writer is None else ("--memory-writer", models[writer] / "checkpoint_last.pt")
        arguments = options(corpus, models["memtrm"], *more, "--results", results)
        call(monkeypatch, evaluate.main, "evaluate.py", *arguments)
        found.append(lines(results)[-1]["ppl"])
    assert found[0] == found[1]
    assert abs(found[2] - found[0]) > 1e-3


def test_bad_evaluations_are_one_line(corpus, models, monkeypatch, capsys):
    alone = options(corpus, models["longmem"], "--memory", "other")
    without = options(
        corpus, models["backbone"], "--memory-writer", models["backbone"] / "checkpoint_last.pt"
    )
    for arguments, message in (
        ([*alone, "--memory-scope", "batch"], "--memory other needs a memory for each document"),
        (alone, "--batch-size (2) leaves one of 7 documents alone, without another whose memory"),
        (without, "--memory-writer needs two models with a memory bank"),
        (options(corpus, models["longmem"], "--limit", 0), "--limit (0) must be at least 1"),
        (options(corpus, models["longmem"], "--device", "x"), "--device (x) cannot be used"),
    ):
        found = assert_one_line(monkeypatch, capsys, evaluate.main, "evaluate.py", *arguments)
        assert message in found
