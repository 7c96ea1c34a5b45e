"""Reading a corpus: which files belong to which split, and their documents one at a time."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Tuple

from longmem_fairseq.utils.text_files import (
    chance_of,
    parse_json,
    plain_text,
    read_json,
    read_text,
    text_of,
)

SPLITS = ("train", "valid", "test")
TEXT_SUFFIX = ".txt"
RECORD_SUFFIXES = (".jsonl", ".jsonl.zst")
# Of a compressed file, in bytes: a few kilobytes can unpack to more than a machine has.
LONGEST_LINE = 1 << 28


class Document(NamedTuple):
    """A document of the source; `where` names its file (and line) in error messages."""

    name: str
    text: str
    questions: Optional[List[Dict[str, Any]]]
    where: str


class Source:
    """A file or folder of documents.

    Args:
        path: a .txt, .jsonl or .jsonl.zst file, or a folder of them at any depth, hidden ones
            left out. Its folders or record files called train, valid and test are the splits,
            and then the only input.
        text_field: field of a record that holds the text.
        exclude: folder inside `path` that is not input (the result, where it is written there).

    Raises FileNotFoundError where `path` is missing and ValueError where it holds no documents or
    where two things claim to be the same split.
    """

    def __init__(self, path: Path, text_field: str = "text", exclude: Optional[Path] = None):
        if not path.exists():
            raise FileNotFoundError(f"--source ({path}) does not exist")
        self.path = path
        self.text_field = text_field
        self._exclude = exclude.resolve() if exclude is not None else None
        self.split_files = {} if path.is_file() else self._find_splits()
        if self.split_files:
            self.files = [file for files in self.split_files.values() for file in files]
        else:
            self.files = [path] if path.is_file() else self._files_under(path)
        if not self.files or not all(_is_document_file(file) for file in self.files):
            raise ValueError(
                f"--source ({path}) holds no documents: expected .txt, .jsonl or .jsonl.zst files"
            )

    @property
    def has_splits(self) -> bool:
        return bool(self.split_files)

    def _find_splits(self) -> Dict[str, List[Path]]:
        found = {}
        for split in SPLITS:
            candidates = [self.path / split] + [self.path / (split + s) for s in RECORD_SUFFIXES]
            candidates = [path for path in candidates if path.exists()]
            if len(candidates) > 1:
                names = ", ".join(path.name for path in candidates)
                raise ValueError(f"--source ({self.path}) has {names}: keep one for each split")
            for path in candidates:
                found[split] = self._files_under(path) if path.is_dir() else [path]
        return found

    def _files_under(self, folder: Path) -> List[Path]:
        files = sorted(path for path in folder.rglob("*") if _is_document_file(path))
        return [
            path
            for path in files
            if self._exclude not in path.resolve().parents
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]

    def content_hash(self) -> str:
        """sha256 over the names and bytes of all files, and over corpus.json where there is one."""
        digest = hashlib.sha256()
        extra = [self._corpus_json] if self._corpus_json.is_file() else []
        for path in self.files + extra:
            file_digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    file_digest.update(block)
            name = path.name if self.path.is_file() else path.relative_to(self.path).as_posix()
            digest.update(f"{name}\0{file_digest.hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def _corpus_json(self) -> Path:
        return (self.path.parent if self.path.is_file() else self.path) / "corpus.json"

    def chance(self) -> Optional[float]:
        """Accuracy of a guess at the corpus' questions, from its corpus.json.

        Raises:
            ValueError: that is not a JSON object, or no number from 0 to 1
        """
        if not self._corpus_json.is_file():
            return None
        return chance_of(read_json(self._corpus_json), self._corpus_json)

    def documents(self, split: Optional[str] = None) -> Iterator[Document]:
        """Documents of one split, or of the whole source, in the order of file names and lines."""
        root = self.path if split is None else self.path / split
        for path in self.files if split is None else self.split_files[split]:
            name = path.relative_to(root).as_posix() if root in path.parents else path.name
            if path.suffix == TEXT_SUFFIX:
                text = read_text(path)
                yield Document(name, text, None, str(path))
            else:
                yield from self._records(path, name)

    def _records(self, path: Path, file_name: str) -> Iterator[Document]:
        for where, number, record in json_records(path):
            text = record.get(self.text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: no text in field '{self.text_field}' (--text-field names another)"
                )
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where}: half of a surrogate pair, which is no text") from None
            questions = record.get("questions")
            if questions is None:
                text = plain_text(text)
            else:  # whose offsets count the characters of the text as it is
                _check_questions(questions, text, where)
            yield Document(str(record.get("name", f"{file_name}:{number}")), text, questions, where)


def json_records(path: Path) -> Iterator[Tuple[str, int, Any]]:
    """Every record of a .jsonl or .jsonl.zst file: where it is, for messages, its line, its content.

    Raises ValueError for a line that is not JSON.
    """
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        text = text_of(line, where)
        if not text.strip():
            continue
        try:
            record = parse_json(text)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{where}: invalid JSON ({reason})") from None
        yield where, number, record


def _is_document_file(path: Path) -> bool:
    return path.name.endswith((TEXT_SUFFIX,) + RECORD_SUFFIXES) and path.is_file()


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        if path.suffix == ".zst":
            yield from _zstandard_lines(path, file)
        else:
            yield from file


def _zstandard_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{path}: .zst files need zstandard: pip install zstandard") from None
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    lines = io.BufferedReader(reader)
    try:
        while line := lines.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(
                    f"{path}: a line of more than {LONGEST_LINE:,} bytes: cut its document in parts"
                )
            yield line
    except zstandard.ZstdError as error:
        raise ValueError(f"{path}: damaged zstandard file ({error})") from None


def _check_questions(questions: Any, text: str, where: str) -> None:
    try:
        for question in questions:
            str(question["relation"])
            (start, end), (first, last) = question["answer"], question["mention"]
            if not 0 <= first < last <= start < end <= len(text):
                raise ValueError
            if text[first:last] != text[start:end]:
                raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{where}: each of 'questions' needs 'answer' and 'mention', [start, end] of the same "
            "characters, the mention first, and 'relation'"
        ) from None
