"""Texts in which benchmarks hide their facts: files, and their sentences."""

import re
from pathlib import Path
from typing import List, Sequence

from longmem_fairseq.utils.text_files import parse_json, read_text

# after a mark and what closes a quotation, before what can begin a sentence
SENTENCE_END = re.compile(r"(?<=[.!?])([\"')\]]*)\s+(?=[\"'(\[]*[A-Z0-9])")


def read_haystack(option: str, path: Path) -> List[str]:
    """The texts of a folder of .txt files in the order of their names, or of one file.

    RULER's own PaulGrahamEssays.json, an object with "text", is one text.

    Args:
        option: what the command line calls the path

    Raises:
        FileNotFoundError: there is no such folder or file, or no .txt in the folder
        ValueError: a file is no text, or all are empty
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        missing = "holds no .txt files" if path.is_dir() else "no such file or folder"
        raise FileNotFoundError(f"{option} ({path}): {missing}")
    texts = [_read(file) for file in files]
    if not any(text.strip() for text in texts):
        raise ValueError(f"{option} ({path}) is empty")
    return texts


def _read(file: Path) -> str:
    if file.suffix != ".json":
        return read_text(file)
    try:
        text = parse_json(file.read_bytes())["text"]
        if not isinstance(text, str):
            raise ValueError("text is no string")
        return text
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} is no object with "text": {error}') from None


def sentences(text: str) -> List[str]:
    """The sentences of a text, with single spaces for white space.

    A rule in place of nltk's trained splitter, which RULER and BABILong use: after an abbreviation
    before a capital letter it splits too.
    """
    text = " ".join(text.split())
    return SENTENCE_END.sub("\\1\n", text).split("\n") if text else []


def inserted(pieces: Sequence[str], places: Sequence[int], added: Sequence[str]) -> List[str]:
    """*pieces* with *added* before those at *places*, which are sorted."""
    parts, start = [], 0
    for place, new in zip(places, added, strict=True):
        parts += [*pieces[start:place], new]
        start = place
    return [*parts, *pieces[start:]]
