"""Documents in a folder: linked folders, capitals, compressed texts; the rest is named."""

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from longmem_fairseq.corpus.source import Source
from longmem_fairseq.utils.text_files import matching_files
from preprocess import extract_arxiv
from tests.helpers.corpora import PLAIN, prepare, read_lines, write_splits

compress = zstandard.ZstdCompressor().compress


@pytest.fixture
def folder(tmp_path):
    """Seven documents, of which one is in a linked folder, and nine other things."""
    books, elsewhere = tmp_path / "books", tmp_path / "elsewhere"
    (books / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    texts = {name: f"{name} {PLAIN}".encode() for name in "abcdefg"}
    record = (json.dumps({"text": texts["f"].decode()}) + "\n").encode()
    (books / "a.txt").write_bytes(texts["a"])
    (books / "deep" / "B.TXT").write_bytes(texts["b"])
    (books / "c.txt.gz").write_bytes(gzip.compress(texts["c"]))
    (books / "d.txt.zst").write_bytes(compress(texts["d"]))
    (elsewhere / "e.txt").write_bytes(texts["e"])
    (books / "f.jsonl.gz").write_bytes(gzip.compress(record))
    (books / "g.txt").symlink_to(tmp_path / "g")
    (tmp_path / "g").write_bytes(texts["g"])
    (books / "linked").symlink_to(elsewhere)
    (books / "again").symlink_to("deep")  # is read as deep
    (elsewhere / "loop").symlink_to(books)
    for name in ("x.md", "y.MD", "z.json", "README", "deep/.hidden.txt", "table.csv.gz"):
        (books / name).write_text("no document")
    (books / ".git").mkdir()
    (books / ".git" / "h.txt").write_text("no document")
    (books / "gone.txt").symlink_to("nowhere")
    os.mkfifo(books / "pipe.txt")
    return books


def test_every_document_is_read_once_and_the_rest_is_counted(folder, tmp_path, capsys):
    prepare(folder, tmp_path / "out")
    others = "1 .gz, 1 .json, 2 .md, 2 hidden, 2 neither file nor folder, 1 without ending"
    assert f"left out of {folder}: {others}\n" in capsys.readouterr().out
    lines = (tmp_path / "out").glob("*.documents.jsonl")
    names = sorted(line["name"] for path in lines for line in read_lines(path))
    texts = {document.name: document.text for document in Source(folder).documents()}
    assert names == sorted(texts)
    assert texts == {
        "a.txt": f"a {PLAIN}",
        "c.txt.gz": f"c {PLAIN}",
        "d.txt.zst": f"d {PLAIN}",
        "deep/B.TXT": f"b {PLAIN}",
        "f.jsonl.gz:1": f"f {PLAIN}",
        "g.txt": f"g {PLAIN}",
        "linked/e.txt": f"e {PLAIN}",
    }


def test_splits_are_found_in_capitals_and_what_is_beside_them_is_counted(folder):
    (folder / "train").symlink_to(folder / "deep")
    (folder / "test.JSONL.gz").write_bytes((folder / "f.jsonl.gz").read_bytes())
    (folder / "corpus.json").write_text("{}")  # is read
    source = Source(folder)
    assert {
        split: [file.name for file in files] for split, files in source.split_files.items()
    } == {
        "train": ["B.TXT"],
        "test": ["test.JSONL.gz"],
    }
    assert source.left_out["beside train, test"] == 6 and source.left_out[".json"] == 1


def test_a_source_without_documents_names_what_it_holds(tmp_path):
    (tmp_path / "a.md").write_text("no document")
    with pytest.raises(ValueError) as error:
        Source(tmp_path)
    assert str(error.value) == (
        f"source ({tmp_path}) holds no documents: expected .txt or .jsonl files, also .gz or .zst; "
        "there are 1 .md"
    )


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    usual = Path.iterdir

    def refuse(path):
        if path.name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match="deep"):
        Source(folder)


@pytest.mark.parametrize("content", [b"no archive", gzip.compress(b"a" * 1000, mtime=0)[:-20]])
def test_a_damaged_gzip_file_is_named(tmp_path, content):
    for name in ("a.txt.gz", "a.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            list(Source(path).documents())
        assert str(error.value).startswith(f"{path}: damaged gzip file (")


def test_a_pattern_reads_every_file_once(folder):
    names = [str(path.relative_to(folder)) for path in matching_files(folder / "**" / "*.txt")]
    assert names == ["a.txt", "g.txt", "linked/e.txt"]


def test_a_source_inside_the_result_is_never_deleted(tmp_path):
    dest = tmp_path / "out"
    source = dest / "books"
    source.mkdir(parents=True)
    (source / "a.txt").write_text(PLAIN)
    (dest / "manifest.json").write_text('{"format": 1}')  # an older result
    elsewhere = write_splits(tmp_path / "elsewhere", {"b": PLAIN})
    for inside in (source, source / "a.txt", dest):
        with pytest.raises(ValueError, match="is in --dest"):
            prepare(inside, dest, "--overwrite")
        with pytest.raises(ValueError, match=r"--also-train \(.* is in --dest"):
            prepare(elsewhere, dest, "--overwrite", "--also-train", str(inside))
    assert (source / "a.txt").read_text() == PLAIN


def test_papers_in_capitals_and_linked_folders(tmp_path, capsys):
    papers, linked = tmp_path / "papers", tmp_path / "linked"
    for path in (papers / "one", linked):
        path.mkdir(parents=True)
    text = "\\documentclass{article}\\begin{document}%s\\end{document}"
    (papers / "TWO.TEX").write_text(text % "Two.")
    (linked / "main.TEX").write_text(text % "One.")
    (papers / "one" / "source").symlink_to(linked)
    (papers / "three.pdf").write_text("no paper")
    found = dict(extract_arxiv.latex_papers(papers))
    assert found == {"TWO.TEX": text % "Two.", "one": text % "One."}
    assert capsys.readouterr().out == f"left out of {papers}: 1 .pdf\n"
