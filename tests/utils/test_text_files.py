"""One place reads text: corpora, prompts and memorized documents without marks and carriage returns."""

import json

import pytest

from longmem_fairseq.corpus.source import Source
from longmem_fairseq.utils.text_files import plain_text, read_text, text_of
from tests.helpers.corpora import PLAIN, prepare, write_splits

MARK = b"\xef\xbb\xbf"  # byte order mark, which Windows' editors put before a text


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", ""),
        (MARK, ""),
        (MARK + b"a\r\nb", "a\nb"),
        (b"a\r\n\r\nb\rc\n", "a\n\nb\nc\n"),
        (b"a" + MARK, "a\ufeff"),  # a zero-width space inside is text
    ],
)
def test_marks_and_line_ends_are_not_text(tmp_path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    assert text_of(data, "it") == read_text(tmp_path / "a.txt") == text
    assert plain_text(text) == text


def test_the_same_text_gives_the_same_corpus_whatever_wrote_it(tmp_path):
    """As .txt and as .jsonl, which may have a mark before every part that was put together."""
    record = json.dumps({"name": "a", "text": "\ufeffone\r\ntwo"}).encode()
    crlf, lf = tmp_path / "crlf", tmp_path / "lf"
    crlf.mkdir()
    (crlf / "a.txt").write_bytes(MARK + b"one\r\ntwo")
    (crlf / "b.jsonl").write_bytes(MARK + record + b"\r\n" + MARK + b"\r\n" + MARK + record)
    texts = [document.text for document in Source(crlf).documents()]
    assert texts == ["one\ntwo"] * 3
    source = write_splits(lf, {"a": PLAIN}, {"b": "one\ntwo"})
    prepare(source, tmp_path / "lf_data")
    for file in source.rglob("*.txt"):
        file.write_bytes(MARK + file.read_bytes().replace(b"\n", b"\r\n"))
    prepare(source, tmp_path / "crlf_data")
    for name in ("train.bin", "valid.bin", "dict.txt"):
        assert (tmp_path / f"crlf_data/{name}").read_bytes() == (
            tmp_path / f"lf_data/{name}"
        ).read_bytes()


def test_offsets_of_questions_count_the_text_as_it_is(tmp_path):
    question = {"relation": "r", "mention": [0, 1], "answer": [3, 4]}
    record = {"text": "a\r\na", "questions": [question]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (document,) = Source(tmp_path / "a.jsonl").documents()
    assert document.text == "a\r\na" and document.questions == [question]
