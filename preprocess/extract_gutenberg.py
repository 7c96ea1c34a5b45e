#!/usr/bin/env python3
"""Write the plain text of Project Gutenberg books: no header, footer or line wraps; by year if wanted.

Example:
    python -m preprocess.extract_gutenberg --source gutenberg --metadata pg_catalog.csv \
        --from-year 2020 --to-year 2022 --dest pg22

reads gutenberg/**/*.txt, whose names hold the book's number (pg2701.txt, 2701-0.txt), and writes
pg22/test/NUMBER.txt, one paragraph a line, and pg22/metadata.csv (id, title, author, year, file,
words, characters). preprocess/prepare_corpus.py takes the folder. --metadata is a table with a row a
book: by default Gutenberg's own catalog, whose year is that of the release there (PG-22). For the
dates of publication in PG-19's metadata.csv, which has no header line:
    --columns id,title,year,url --id-column id --title-column title --year-column year
"""

import argparse
import csv
import io
import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from tqdm import tqdm

from longmem_fairseq.corpus.files import counted_kinds, decoded, files_under
from longmem_fairseq.corpus.source import SPLITS
from longmem_fairseq.utils.cli import as_option, run, script_parser
from longmem_fairseq.utils.output_folder import check_new, replaced_folder
from longmem_fairseq.utils.text_files import plain_text, read_text
from preprocess.gutenberg_text import strip_boilerplate, unwrap, with_ascii_punctuation

FIELDS = ("id", "title", "author", "year", "file", "words", "characters")


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of .txt files, at any depth")
    add("--dest", type=Path, required=True, help="folder to write, new or empty")
    add("--metadata", type=Path, help="table of the books, .csv; none: all books, no years")
    add("--columns", help="names of the table's columns, if it has no header: a,b,c")
    add("--id-column", default="Text#", help="column with the number of the book")
    add("--title-column", default="Title", help="column with the title")
    add("--author-column", default="Authors", help="column with the author")
    add("--year-column", default="Issued", help="column that holds the year")
    add("--from-year", type=int, help="leave out earlier books, and those without a year")
    add("--to-year", type=int, help="leave out later books, and those without a year")
    add("--split", choices=SPLITS, default="test", help="name of the folder of texts in --dest")
    add("--ascii-punctuation", action="store_true", help="straight quotes, two hyphens for a dash")
    add("--keep-wraps", action="store_true", help="leave the lines as they are")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for options that do not fit or go together."""
    if not args.source.is_dir():
        raise FileNotFoundError(f"--source ({args.source}): no such folder")
    if args.metadata is not None and not args.metadata.is_file():
        raise FileNotFoundError(f"--metadata ({args.metadata}): no such file")
    for option in ("from_year", "to_year"):
        if getattr(args, option) is not None and args.metadata is None:
            raise ValueError(
                f"{as_option(option)} ({getattr(args, option)}) needs --metadata, where years are"
            )
    check_new(args.dest)


def read_metadata(args: argparse.Namespace) -> Dict[str, Dict[str, str]]:
    """Id, title, author and year of every book of the table, by the number of the book."""
    books = {}
    names = args.columns.split(",") if args.columns else None
    text = read_text(args.metadata)
    with io.StringIO(text, newline="") as file:
        try:
            reader = csv.DictReader(file, fieldnames=names)
            rows, columns = list(reader), reader.fieldnames or []
        except csv.Error as error:
            raise ValueError(f"--metadata ({args.metadata}) is no table ({error})") from None
        column_of = {
            field: getattr(args, f"{field}_column") for field in ("id", "title", "author", "year")
        }
        missing = [column_of[f] for f in ("id", "year") if column_of[f] not in columns]
        if missing:
            raise ValueError(
                f"--metadata ({args.metadata}) has no column {missing[0]!r} but "
                f"{', '.join(columns or ['nothing'])}: name yours with --id-column and "
                "--year-column, or all of them with --columns"
            )
        for row in rows:
            book = {field: (row.get(column) or "") for field, column in column_of.items()}
            year = re.search(r"\b\d{4}\b", book["year"])
            books[book["id"]] = {**book, "year": year.group() if year else ""}
    return books


def chosen(book: Optional[Dict[str, str]], args: argparse.Namespace) -> bool:
    """Whether a book (None: it is not in the table) is of the years asked for."""
    if args.from_year is None and args.to_year is None:
        return True
    if book is None or not book["year"]:
        return False
    year = int(book["year"])
    return (args.from_year is None or year >= args.from_year) and (
        args.to_year is None or year <= args.to_year
    )


def number_of(path: Path) -> str:
    """The number of a book, from the name of its file; "" if it has none."""
    digits = re.search(r"\d+", path.stem)
    return digits.group() if digits else ""


def write_books(folder: Path, paths: List[Path], args: argparse.Namespace) -> str:
    """Write texts and metadata.csv; returns the line for people."""
    metadata = read_metadata(args) if args.metadata else {}
    texts = folder / args.split
    texts.mkdir()
    written: Dict[str, Path] = {}
    bare = 0
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for path in tqdm(paths, "books", unit=" books", disable=None):
            number = number_of(path)
            book = metadata.get(number)
            if not chosen(book, args):
                continue
            name = f"{number or path.stem}.txt"
            if name in written:
                raise ValueError(
                    f"{path} and {written[name]} are both book {number}: keep one of them"
                )
            written[name] = path
            text = plain_text(decoded(path.read_bytes()))
            stripped = strip_boilerplate(text)
            bare += stripped is None
            text = text.strip() if stripped is None else stripped
            text = text if args.keep_wraps else unwrap(text)
            text = with_ascii_punctuation(text) if args.ascii_punctuation else text
            (texts / name).write_text(text + "\n", encoding="utf-8")
            row = {"file": f"{args.split}/{name}", "words": len(text.split())}
            table.writerow({**(book or {"id": number}), **row, "characters": len(text)})
    if not written:
        raise ValueError(
            f"--source ({args.source}) has no book of these years: see --metadata, --from-year"
        )
    return (
        f"{len(written)} of {len(paths)} books, {bare} of them without Gutenberg's header and taken "
        "as they are"
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_options(args)
    paths, others = files_under(args.source, (".txt",), args.dest)
    if not paths:
        raise ValueError(f"--source ({args.source}) holds no .txt files")
    if others:
        print(f"left out of {args.source}: {counted_kinds(others)}")
    with replaced_folder(args.dest) as folder:
        line = write_books(folder, paths, args)
    print(f"{args.dest}: {line}")


if __name__ == "__main__":
    run(main)
