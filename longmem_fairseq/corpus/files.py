"""The files of a folder of documents, and the lines of a file, compressed or not."""

import gzip
import io
import os
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, List, Optional, Sequence, Tuple

# In bytes, of a line or a text: a few kilobytes can unpack to more than a machine has.
LONGEST_LINE = 1 << 28


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """True for a name that ends in one of them, in capitals or not."""
    return path.name.lower().endswith(tuple(suffixes))


def files_under(
    folder: Path, suffixes: Sequence[str], exclude: Optional[Path] = None
) -> Tuple[List[Path], Counter]:
    """Files whose names end in one of *suffixes*, at any depth, sorted; and how many others, by kind.

    Links to folders are followed. Every folder is read once: under its own name, if it is inside.

    Args:
        exclude: folder that is neither read nor counted

    Raises:
        OSError: a folder cannot be read
    """
    files, others = [], Counter()
    seen = set() if exclude is None else {os.path.realpath(exclude)}
    folders, links = [folder], []
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        if (real := os.path.realpath(current)) in seen:
            continue
        seen.add(real)
        for path in sorted(current.iterdir()):
            if path.name.startswith("."):
                others["hidden"] += 1
            elif path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif not path.is_file():  # a link to nothing, a pipe
                others["neither file nor folder"] += 1
            elif has_suffix(path, suffixes):
                files.append(path)
            else:
                others[path.suffix.lower() or "without ending"] += 1
    return sorted(files), others


def counted_kinds(others: Counter) -> str:
    """As in "2 .md, 1 hidden"."""
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(others.items()))


def decoded(data: bytes) -> str:
    """The text of an old file: in UTF-8, or else in Latin-1, which takes any byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, which may be compressed (.gz, .zst).

    Raises:
        OSError: it cannot be read
        ValueError: it is damaged, a line is too long, or zstandard is missing
    """
    with _uncompressed(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(
                    f"{path}: a line of more than {LONGEST_LINE:,} bytes: cut its document in parts"
                )
            yield line


def content_of(path: Path) -> bytes:
    """The content of a file, which may be compressed (.gz, .zst).

    Raises:
        OSError, ValueError: see :func:`lines_of`
    """
    with _uncompressed(path) as file:
        content = file.read(LONGEST_LINE + 1)
    if len(content) > LONGEST_LINE:
        raise ValueError(f"{path}: more than {LONGEST_LINE:,} bytes: cut its document in parts")
    return content


@contextmanager
def _uncompressed(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as file:
        if has_suffix(path, (".gz",)):
            try:
                yield gzip.GzipFile(fileobj=file)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: damaged gzip file ({error})") from None
        elif has_suffix(path, (".zst",)):
            try:
                import zstandard
            except ImportError:
                raise ValueError(
                    f"{path}: .zst files need zstandard: pip install zstandard"
                ) from None
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            try:
                yield io.BufferedReader(reader)
            except zstandard.ZstdError as error:
                raise ValueError(f"{path}: damaged zstandard file ({error})") from None
        else:
            yield file
