"""Books of Project Gutenberg and papers as LaTeX: sources as documents."""

import csv
import io
import json
import tarfile

import pytest

from preprocess import extract_arxiv, extract_gutenberg
from preprocess.gutenberg_text import strip_boilerplate, unwrap, with_ascii_punctuation
from tests.helpers.benchmark_runs import assert_one_line

HEADER = "The Project Gutenberg eBook of Moby\n\nTitle: Moby\n\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK MOBY ***\n\n"
END = "\n\n*** END OF THE PROJECT GUTENBERG EBOOK MOBY ***\n\nSection 1. General Terms\n"
PROSE = (
    "Call me Ishmael. Some years ago--never mind how long precisely--having\n"
    "little or no money in my purse, and nothing particular to interest me on\n"
    "shore, I thought I would sail about a little and see the watery-\n"
    "blue part of the world."
)
UNWRAPPED = (
    "Call me Ishmael. Some years ago--never mind how long precisely--having little or no money in my "
    "purse, and nothing particular to interest me on shore, I thought I would sail about a little and "
    "see the watery-blue part of the world."
)


@pytest.mark.parametrize(
    "text",
    [
        HEADER + START + "Body." + END,
        HEADER + START.replace("THE PROJECT", "THIS PROJECT") + "Body." + END,
        HEADER + "*** START OF THE PROJECT GUTENBERG EBOOK A LONG\nTITLE ***\n\nBody." + END,
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\nBody.\n\n"
        "End of the Project Gutenberg Etext of Moby\n",
        HEADER + START + "Produced by Ann\nand Bob\n\nBody." + END,
        HEADER
        + START
        + "E-text prepared by Ann\n\n\nBody.\n\nEnd of Project Gutenberg's Moby"
        + END,
    ],
)
def test_header_footer_and_credits_go(text):
    assert strip_boilerplate(text) == "Body."


def test_a_text_without_header_says_so():
    assert strip_boilerplate("Body.") is None


def test_prose_is_unwrapped_and_verse_is_not():
    verse = "  Tiger, tiger, burning bright\n  In the forests of the night,"
    short = "Of Man's first disobedience\nAnd the fruit"
    text = f"CHAPTER I\n\n\n{PROSE}\n\n{verse}\n\n{short}\n\n{PROSE}\n"
    paragraphs = ["CHAPTER I", UNWRAPPED, verse, short, UNWRAPPED]
    assert unwrap(text) == "\n\n".join(paragraphs)


def test_spaces_are_single_and_punctuation_plain():
    assert unwrap("One.  Two\r\n\r\nThree   four") == "One. Two\n\nThree four"
    assert with_ascii_punctuation("\u201cIt\u2019s\u2014so\u201d") == '"It\'s--so"'


@pytest.fixture
def gutenberg(tmp_path):
    folder = tmp_path / "gutenberg"
    (folder / "sub").mkdir(parents=True)
    for name, text in (("pg11", PROSE), ("sub/22-0", "Two."), ("33", "Three.")):
        (folder / f"{name}.txt").write_bytes((HEADER + START + text + END).encode())
    (folder / "44.txt").write_bytes("Caf\u00e9.".encode("latin-1"))
    return folder


def test_books_of_some_years(gutenberg, tmp_path):
    catalog = tmp_path / "pg_catalog.csv"
    catalog.write_text(
        "Text#,Type,Issued,Title,Language,Authors\n"
        '11,Text,2020-05-01,"Moby, Dick",en,"Melville, Herman"\n'
        "22,Text,2022-12-31,Two,en,\n33,Text,2023-01-01,Three,en,\n44,Text,,Four,en,\n"
    )
    options = ["--source", gutenberg, "--metadata", catalog, "--from-year", 2020]
    options += ["--to-year", 2022, "--dest", tmp_path / "pg22"]
    extract_gutenberg.main(list(map(str, options)))
    texts = {path.name: path.read_text() for path in (tmp_path / "pg22" / "test").iterdir()}
    assert texts == {"11.txt": UNWRAPPED + "\n", "22.txt": "Two.\n"}
    with open(tmp_path / "pg22" / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "id": "11",
        "title": "Moby, Dick",
        "author": "Melville, Herman",
        "year": "2020",
        "file": "test/11.txt",
        "words": str(len(UNWRAPPED.split())),
        "characters": str(len(UNWRAPPED)),
    }
    assert [row["id"] for row in rows] == ["11", "22"]


def test_books_of_a_table_without_header(gutenberg, tmp_path):
    """PG-19's metadata.csv."""
    (tmp_path / "m.csv").write_text("11,Moby,1851,http://a\n33,Three,1900,http://b\n")
    columns = ["--columns", "id,title,year,url", "--id-column", "id", "--year-column", "year"]
    options = ["--source", gutenberg, "--metadata", tmp_path / "m.csv", *columns]
    options += ["--to-year", 1899, "--dest", tmp_path / "out"]
    extract_gutenberg.main(list(map(str, options)))
    assert [path.name for path in (tmp_path / "out" / "test").iterdir()] == ["11.txt"]


def test_all_books_as_they_are(gutenberg, tmp_path, capsys):
    options = ["--source", gutenberg, "--dest", tmp_path / "out", "--keep-wraps"]
    extract_gutenberg.main(list(map(str, options)))
    assert (tmp_path / "out" / "test" / "11.txt").read_text() == PROSE + "\n"
    assert (tmp_path / "out" / "test" / "44.txt").read_text(encoding="utf-8") == "Caf\u00e9.\n"
    assert "4 of 4 books, 1 of them without Gutenberg's header" in capsys.readouterr().out


GUTENBERG_BAD = {
    "no folder": (("--source", "nowhere"), "--source (nowhere): no such folder"),
    "years": (("--from-year", 1900), "--from-year (1900) needs --metadata, where years are"),
    "columns": (
        ("--metadata", "{folder}/m.csv"),
        "has no column 'Text#' but a, b: name yours with",
    ),
    "none": (
        ("--metadata", "{folder}/m.csv", "--id-column", "a", "--year-column", "b", "--to-year", 1),
        "has no book of these years",
    ),
    "no table": (("--metadata", "nowhere"), "--metadata (nowhere): no such file"),
    "a table in Latin-1": (
        ("--metadata", "{folder}/latin.csv"),
        "latin.csv is not a text in UTF-8 (byte 0xE9 at offset 3)",
    ),
    "a used folder": (("--dest", "{folder}"), "is not empty: give a new or empty folder"),
}


@pytest.mark.parametrize("case", GUTENBERG_BAD)
def test_bad_books_are_one_line(case, gutenberg, tmp_path, monkeypatch, capsys):
    more, message = GUTENBERG_BAD[case]
    (tmp_path / "m.csv").write_text("a,b\n11,1851\n")
    (tmp_path / "latin.csv").write_bytes(b"caf\xe9,b\n")
    more = [str(part).format(folder=tmp_path) for part in more]
    arguments = ("--source", gutenberg, "--dest", tmp_path / "out", *more)
    main = extract_gutenberg.main
    assert message in assert_one_line(monkeypatch, capsys, main, "extract_gutenberg.py", *arguments)
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_book_are_one_line(gutenberg, tmp_path, monkeypatch, capsys):
    (gutenberg / "11-0.txt").write_text("Body.")
    arguments = ("--source", gutenberg, "--dest", tmp_path / "out")
    main = extract_gutenberg.main
    message = assert_one_line(monkeypatch, capsys, main, "extract_gutenberg.py", *arguments)
    assert "are both book 11: keep one of them" in message


MAIN = "\\documentclass{article} % of 1994\n% a note\n\\begin{document}\n\\input{sections/one}\n"
MAIN += "100\\% \\\\% line break\n% \\input{sections/two}\n\\include{missing}\n\\end{document}\n"
PAPER = "\\documentclass{article}\n\\begin{document}\nOne.\n\n100\\% \\\\\n\\include{missing}\n"
PAPER += "\\end{document}\n"


def papers_of(folder, *options):
    extract_arxiv.main(["--source", str(folder), "--dest", str(folder) + ".out", *options])
    records = map(json.loads, open(str(folder) + ".out/test.jsonl", encoding="utf-8"))
    return {record["name"]: record["text"] for record in records}


def test_papers_of_latex_sources(tmp_path, capsys):
    source = tmp_path / "sources"
    (source / "9401001" / "sections").mkdir(parents=True)
    files = {"main.tex": MAIN, "sections/one.tex": "One.\n", "sections/two.tex": "Two.\n"}
    for name, text in files.items():
        (source / "9401001" / name).write_text(text)
    with tarfile.open(source / "9401002.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    (source / "plain.tex").write_text("Just text. % comment\n")
    (source / "notes.txt").write_text("not a paper")
    (source / "fragments").mkdir()
    for name in ("a.tex", "b.tex"):
        (source / "fragments" / name).write_text("no document class")
    found = papers_of(source)
    assert found == {
        "9401001": PAPER,
        "9401002.tar.gz": PAPER,
        "plain.tex": "Just text.\n",
    }
    assert "3 papers, 1 left out for want of a main file" in capsys.readouterr().out


def test_papers_of_the_pile(tmp_path):
    source = tmp_path / "val.jsonl"
    records = [
        {"text": "A paper.", "meta": {"pile_set_name": "ArXiv"}},
        {"text": "A page.", "meta": {"pile_set_name": "Pile-CC"}},
        {"text": "Another.", "meta": {"pile_set_name": "ArXiv"}},
    ]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert papers_of(source) == {"ArXiv-1": "A paper.", "ArXiv-3": "Another."}


def test_a_folder_of_papers_that_is_not_ours_is_never_replaced(tmp_path, capsys):
    source, dest = tmp_path / "sources", tmp_path / "thesis"
    for folder in (source, dest):
        folder.mkdir()
    (source / "a.tex").write_text("Text.")
    (dest / "chapter.tex").write_text("years of work")
    options = ["--source", str(source), "--dest", str(dest)]
    with pytest.raises(ValueError, match=r"thesis\) is not empty: give a new or empty folder"):
        extract_arxiv.main(options)
    assert (dest / "chapter.tex").read_text() == "years of work"
    (dest / "chapter.tex").unlink()
    extract_arxiv.main(options)
    assert [path.name for path in dest.iterdir()] == ["test.jsonl"]
    assert "1 paper, 0 left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar"])
def test_an_archive_is_read_as_what_it_is_called(tmp_path, name):
    """The head of an .xz may ask for any amount of memory."""
    with tarfile.open(tmp_path / name, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("main.tex"))
    with pytest.raises(ValueError, match=f"{name}: damaged archive"):
        list(extract_arxiv.latex_papers(tmp_path))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"text": "no meta"}\n', "line 1: not a record of the Pile"),
        ("a.jsonl", b'{"text": "x", "meta": {"pile_set_name": "CC"}}\n', "holds no papers"),
        ("a.csv", b"", "is neither a folder nor a file of .jsonl, .jsonl.gz, .jsonl.zst"),
        ("folder/a.tar.gz", b"not an archive", "a.tar.gz: damaged archive"),
    ],
)
def test_bad_papers_are_one_line(tmp_path, monkeypatch, capsys, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = path if path.parent == tmp_path else path.parent
    arguments = ("--source", source, "--dest", tmp_path / "out")
    main = extract_arxiv.main
    assert message in assert_one_line(monkeypatch, capsys, main, "extract_arxiv.py", *arguments)
