#!/usr/bin/env python3
"""Make ChapterBreak's items out of any books: which of six beginnings opens the next chapter?

Examples:
    python -m preprocess.make_chapterbreak --source books --dest chapterbreak.json
    python -m preprocess.make_chapterbreak --source data --offsets items.jsonl --dest chapterbreak.json

Writes the format of SimengSun/ChapterBreak, {split: {work: [{"ctx", "pos", "negs"}]}}: the text before
a chapter, the chapter's beginning without its heading, and the beginnings of five later chapters of
the same book. Chapters are found by their headings (CHAPTER XII., Chapter 3, BOOK II, XII), each on
a line of its own. With --offsets they are given, a line an item: {"file": in --source, "ctx_end",
"pos": [start, end], "negs": [[start, end], ...]}, in characters.
"""

import argparse
import json
import random
import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from tqdm import tqdm

from longmem_fairseq.corpus.files import counted_kinds, files_under
from longmem_fairseq.corpus.source import json_records
from longmem_fairseq.utils.cli import check_positive, counted, run, script_parser
from longmem_fairseq.utils.text_files import read_text
from preprocess.gutenberg_text import unwrap, with_ascii_punctuation, wrap_column

NUMBER = r"(?:[IVXLC]+|\d+|(?:the )?[a-z]+(?:[- ][a-z]+)?)"
HEADING = re.compile(
    rf"^[ \t]*(?:(?:chapter|book|part)[ ]+{NUMBER}\b[^\n]{{0,80}}|(?-i:[IVXLC]+)\.?)[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
# a paragraph that is no title: long enough, with lower case and punctuation
PROSE = re.compile(r"(?<=\n\n)(?=[^\n]*[a-z])(?=[^\n]*[.,;!?])\S[^\n]{50,}")
NEGATIVES = 5
# an entry of a table of contents has the next one right behind it
SHORTEST_CHAPTER = 2000


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of .txt files, at any depth")
    add("--dest", type=Path, required=True, help="file to write, .json")
    add("--offsets", type=Path, help="file of given items, .jsonl: file, ctx_end, pos, negs")
    add("--split", default="pg19", help="name of the split in --dest")
    add("--least-context", type=int, default=36000, help="characters before the chapter, at least")
    add("--most-context", type=int, default=60000, help="characters before the chapter to keep")
    add("--suffix", type=int, default=900, help="characters of a chapter's beginning")
    add("--seed", type=int, default=1, help="of the choice of the later chapters")
    add("--unwrap", action="store_true", help="undo hard line wraps")
    add("--ascii-punctuation", action="store_true", help="straight quotes, two hyphens for a dash")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError or FileNotFoundError for options out of range, and missing files."""
    check_positive(args, "least_context", "most_context", "suffix")
    if not args.source.is_dir():
        raise FileNotFoundError(f"--source ({args.source}): no such folder")
    if args.offsets is not None and not args.offsets.is_file():
        raise FileNotFoundError(f"--offsets ({args.offsets}): no such file")


def chapters(text: str, suffix: int) -> List[Tuple[int, int, int]]:
    """The positions of every chapter: start of its heading, start and end of its beginning.

    The beginning starts after the heading and a title below it, at the first paragraph of prose.
    """
    headings = list(HEADING.finditer(text))
    positions = []
    for i, heading in enumerate(headings):
        stop = headings[i + 1].start() if i + 1 < len(headings) else len(text)
        prose = PROSE.search(text, heading.end(), stop)
        if prose is not None and stop - prose.start() >= SHORTEST_CHAPTER:
            positions.append((heading.start(), prose.start(), prose.start() + suffix))
    return positions


def made_items(paths: List[Path], args: argparse.Namespace) -> Iterator[Tuple[Path, Dict]]:
    """Items with the offsets of chapters found by their headings."""
    for path in paths:
        text = read_text(path)
        positions = chapters(text, args.suffix)
        # a generator of its own for each book, so that its items do not depend on the other books
        rng = random.Random(f"{args.seed} {path.name}")
        for i, (heading, start, end) in enumerate(positions):
            later = [[first, last] for _, first, last in positions[i + 1 :]]
            if heading >= args.least_context and len(later) >= NEGATIVES:
                negatives = rng.sample(later, NEGATIVES)
                yield path, {"ctx_end": heading, "pos": [start, end], "negs": negatives}


def given_items(args: argparse.Namespace) -> Iterator[Tuple[Path, Dict]]:
    """Items of --offsets; raises ValueError where one does not fit its file."""
    for where, _, item in json_records(args.offsets):
        try:
            path = args.source / item["file"]
            spans = [item["pos"], *item["negs"]]
            numbers = [item["ctx_end"], *(number for span in spans for number in span)]
            fits = all(0 <= start < end for start, end in spans) and item["ctx_end"] > 0
            fits = fits and all(type(number) is int for number in numbers)
            # a path that leaves the folder would put any file of this machine into the items
            fits = fits and path.resolve().is_relative_to(args.source.resolve())
            is_file = path.is_file()
        except (TypeError, KeyError, ValueError, OSError):  # the last for a name that is too long
            fits = False
        if not fits:
            raise ValueError(
                f"{where}: expected file, ctx_end, pos [start, end] and negs [[start, end], ...], the "
                "file inside --source and numbers whole"
            )
        if not is_file:
            raise FileNotFoundError(f"{where}: no file {path}")
        yield path, item


def texts_of(item: Dict, text: str, args: argparse.Namespace) -> Dict:
    """The texts that the offsets of an item stand for."""
    column = wrap_column(text)

    def piece(start: int, end: int) -> str:
        part = text[start:end]
        part = unwrap(part, column) if args.unwrap else part
        return with_ascii_punctuation(part) if args.ascii_punctuation else part

    end = item["ctx_end"]
    return {
        # the paragraph break before the heading stays: the suffix starts a paragraph
        "ctx": piece(max(0, end - args.most_context), end).rstrip() + "\n\n",
        "pos": piece(*item["pos"]),
        "negs": [piece(*span) for span in item["negs"]],
    }


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_options(args)
    if args.offsets is not None:
        items = given_items(args)
    else:
        paths, others = files_under(args.source, (".txt",))
        if others:
            print(f"left out of {args.source}: {counted_kinds(others)}")
        items = made_items(paths, args)
    works: Dict[str, List[Dict]] = {}
    current, text = None, ""
    for path, item in tqdm(items, "items", unit=" items", disable=None):
        if path != current:
            current, text = path, read_text(path)
        works.setdefault(path.stem, []).append(texts_of(item, text, args))
    if not works:
        raise ValueError(
            f"--source ({args.source}) gives no item: a book needs a chapter after --least-context "
            f"({args.least_context}) characters, and {NEGATIVES} chapters after that"
        )
    args.dest.parent.mkdir(parents=True, exist_ok=True)
    args.dest.write_text(json.dumps({args.split: works}) + "\n", encoding="utf-8")
    count = sum(len(items) for items in works.values())
    print(f"{args.dest}: {counted(count, 'item')} from {counted(len(works), 'book')}")


if __name__ == "__main__":
    run(main)
