#!/usr/bin/env python3
"""Write ArXiv papers as documents: from LaTeX sources, or the ArXiv part of the Pile.

Examples:
    python -m preprocess.extract_arxiv --source arxiv_sources --dest arxiv
    python -m preprocess.extract_arxiv --source pile/val.jsonl.zst --dest arxiv

A folder holds a paper in each of its .tex files, and in each of its folders and archives (.tar,
.tar.gz, .tgz, and .gz of a single file) of several .tex files: the one with \\documentclass is the
paper, the files it names with \\input and \\include are put in their places, and comments go. A .jsonl
or .jsonl.zst file is the Pile's: records whose meta.pile_set_name is ArXiv, taken as they are
(there, LaTeX has been turned to Markdown already). Writes DEST/test.jsonl, which
preprocess/prepare_corpus.py takes.
"""

import argparse
import gzip
import json
import re
import tarfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Dict, Iterator, Optional, Sequence, Tuple

from tqdm import tqdm

from longmem_fairseq.corpus.files import counted_kinds, decoded, files_under, has_suffix
from longmem_fairseq.corpus.source import RECORD_SUFFIXES, SPLITS, json_records
from longmem_fairseq.utils.cli import counted, run, script_parser
from longmem_fairseq.utils.output_folder import check_new, replaced_folder

ARCHIVES = (".tar", ".tar.gz", ".tgz")
# a comment follows no backslash, or pairs of them
COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*")
INCLUDED = re.compile(r"\\(?:input|include|subfile)\s*\{([^}]*)\}")
DEEPEST = 10  # files that include files that include files ...
# Of a paper, in bytes or characters: a small archive can unpack to more than a machine has, and so
# can files that include each other many times.
LARGEST = 1 << 28


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, help="folder of LaTeX sources, or the Pile's file")
    add("--dest", type=Path, required=True, help="folder to write, new or empty")
    add("--split", choices=SPLITS, default="test", help="name of the file of documents in --dest")
    return parser


def without_comments(text: str) -> str:
    """LaTeX without comments; lines that hold nothing else are removed."""
    lines = []
    for line in text.split("\n"):
        rest = COMMENT.sub(r"\1", line).rstrip()
        if rest or not line.strip():
            lines.append(rest)
    return "\n".join(lines)


def assembled(files: Dict[str, str], main: str) -> str:
    """The text of file *main* with the files that it includes in their places, where they are known.

    Raises:
        ValueError: it has more than LARGEST characters
    """
    room = LARGEST

    def text_of(name: str, depth: int) -> str:
        def replacement(match: re.Match) -> str:
            name = str(PurePosixPath(match.group(1).strip()))
            for candidate in (name, f"{name}.tex"):
                if candidate in files and depth < DEEPEST:
                    return text_of(candidate, depth + 1)
            return match.group()

        nonlocal room
        room -= len(files[name]) + 1000  # so that many empty files are too many, too
        if room < 0:
            raise ValueError(f"{main} includes more than {LARGEST:,} characters")
        return INCLUDED.sub(replacement, files[name])

    return text_of(main, 0)


def paper(files: Dict[str, str]) -> Optional[str]:
    """The text of a paper's LaTeX files, by their names; None where none is the main file."""
    # first, so that an \\input that is commented out is none
    files = {name: without_comments(text) for name, text in files.items()}
    mains = [name for name, text in files.items() if "\\documentclass" in text]
    if len(files) == 1:
        mains = list(files)
    if not mains:
        return None
    # several, such as a supplement: the longest, with the files that it includes
    return max((assembled(files, name) for name in mains), key=len)


def _archived(path: Path) -> Dict[str, str]:
    """LaTeX files of an archive as ArXiv hands them out; a .gz may hold one bare file.

    Nothing is unpacked to disk: the names of an archive's files are keys, wherever they point.

    Raises:
        ValueError: it is damaged, or more than LARGEST
    """
    files: Dict[str, str] = {}
    try:
        if not has_suffix(path, ARCHIVES):
            with gzip.open(path) as file:
                return {path.stem: decoded(_read(path, file, 0))}
        # the format is given, not guessed: the head of an .xz may ask for any amount of memory
        with tarfile.open(path, "r:" if has_suffix(path, (".tar",)) else "r:gz") as archive:
            for member in archive:
                if member.isfile() and member.name.lower().endswith(".tex"):
                    size = sum(map(len, files.values()))
                    content = _read(path, archive.extractfile(member), size)
                    files[str(PurePosixPath(member.name))] = decoded(content)
        return files
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged archive ({error})") from None


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    """A compressed file of the archive *path*, of which *size* bytes were read before."""
    content = file.read(LARGEST - size + 1)
    if size + len(content) > LARGEST:
        raise ValueError(f"{path} unpacks to more than {LARGEST:,} bytes of LaTeX")
    return content


def latex_papers(source: Path) -> Iterator[Tuple[str, Optional[str]]]:
    """Name and text of every paper in a folder; None for the text where no main file is found."""
    others = Counter()
    for path in tqdm(sorted(source.iterdir()), "papers", unit=" papers", disable=None):
        if path.is_dir():
            sources, _ = files_under(path, (".tex",))
            files = {s.relative_to(path).as_posix(): decoded(s.read_bytes()) for s in sources}
        elif has_suffix(path, (".tex",)):
            files = {path.name: decoded(path.read_bytes())}
        elif has_suffix(path, (*ARCHIVES, ".gz")):
            files = _archived(path)
        else:
            others[path.suffix.lower() or "without ending"] += 1
            continue
        yield path.name, paper(files) if files else None
    if others:
        print(f"left out of {source}: {counted_kinds(others)}")


def pile_papers(source: Path) -> Iterator[Tuple[str, str]]:
    """Name and text of every record of the Pile's ArXiv part."""
    for where, number, record in json_records(source):
        try:
            is_paper, text = record["meta"]["pile_set_name"] == "ArXiv", record["text"]
        except (TypeError, KeyError):
            raise ValueError(
                f"{where}: not a record of the Pile, which has text and meta.pile_set_name"
            ) from None
        if is_paper:
            yield f"ArXiv-{number}", text


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    if not args.source.exists():
        raise FileNotFoundError(f"--source ({args.source}): no such file or folder")
    if args.source.is_dir():
        papers = latex_papers(args.source)
    elif has_suffix(args.source, RECORD_SUFFIXES):
        papers = pile_papers(args.source)
    else:
        kinds = ", ".join(RECORD_SUFFIXES)
        raise ValueError(f"--source ({args.source}) is neither a folder nor a file of {kinds}")
    check_new(args.dest)
    written = without_main = 0
    with replaced_folder(args.dest) as folder:
        with open(folder / f"{args.split}.jsonl", "w", encoding="utf-8") as file:
            for name, text in papers:
                if text is None or not text.strip():
                    without_main += 1
                    continue
                file.write(json.dumps({"name": name, "text": text}) + "\n")
                written += 1
        if not written:
            raise ValueError(f"--source ({args.source}) holds no papers")
    papers = counted(written, "paper")
    print(f"{args.dest}: {papers}, {without_main} left out for want of a main file")


if __name__ == "__main__":
    run(main)
