"""Reading a corpus: which files belong to which split, and their documents one at a time."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from longmem_fairseq.corpus.files import (
    content_of,
    counted_kinds,
    files_under,
    has_suffix,
    lines_of,
)
from longmem_fairseq.utils.argument_error import ArgumentError, MissingFileError
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.text_files import chance_of, parse_json, plain_text, read_json, text_of

SPLITS = ("train", "valid", "test")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")
RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
DOCUMENT_SUFFIXES = TEXT_SUFFIXES + RECORD_SUFFIXES


class Document(NamedTuple):
    """A document of the source; *where* is its file (and line), for error messages."""

    name: str
    text: str
    questions: Optional[List[Dict[str, Any]]]
    where: str


class Source:
    """A file or folder of documents.

    Args:
        path: a .txt or .jsonl file, also .gz or .zst, or a folder of them at any depth, linked folders
            included and hidden ones left out. Its folders or record files called train, valid and
            test are the splits, and then the only input
        text_field: field of a record that holds the text
        exclude: folder inside *path* that is not input (the result, where it is written there)
        argument: name of *path* in errors

    Raises:
        FileNotFoundError: *path* is missing
        ValueError: it holds no documents, or two things claim to be the same split
    """

    def __init__(
        self,
        path: Path,
        text_field: str = "text",
        exclude: Optional[Path] = None,
        argument: str = "source",
    ):
        self.named = f"{{{argument}}} ({{}})"  # beginning of errors
        if not path.exists():
            raise MissingFileError(f"{self.named} does not exist", path)
        self.path = path
        self.text_field = text_field
        self.split_files: Dict[str, List[Path]] = {}
        self.files, self.left_out = [path], Counter()  # how many files are no input, by ending
        if not path.is_file():
            self.files, self.left_out = files_under(path, DOCUMENT_SUFFIXES, exclude)
            self._find_splits(exclude)
            if self._corpus_json.is_file():
                self.left_out -= Counter([self._corpus_json.suffix])
        if not self.files or not all(has_suffix(file, DOCUMENT_SUFFIXES) for file in self.files):
            others = f"; there are {counted_kinds(self.left_out)}" if self.left_out else ""
            raise ArgumentError(
                f"{self.named} holds no documents: expected .txt or .jsonl files, also .gz or .zst{{}}",
                path,
                others,
            )

    @property
    def has_splits(self) -> bool:
        """True for a source that comes with its own train, valid and test."""
        return bool(self.split_files)

    def _find_splits(self, exclude: Optional[Path]) -> None:
        """Where there are splits, makes their files the only ones."""
        for split in SPLITS:
            candidates = [
                path
                for path in sorted(self.path.glob(f"{split}*"))
                if (path.name == split and path.is_dir())
                or path.name.lower() in [split + suffix for suffix in RECORD_SUFFIXES]
            ]
            if len(candidates) > 1:
                names = ", ".join(path.name for path in candidates)
                message = f"{self.named} has {{}}: keep one for each split"
                raise ArgumentError(message, self.path, names)
            for path in candidates:
                is_folder = path.is_dir()
                files = files_under(path, DOCUMENT_SUFFIXES, exclude)[0] if is_folder else [path]
                self.split_files[split] = files
        if self.split_files:
            everything = {file.resolve() for file in self.files}
            self.files = [file for files in self.split_files.values() for file in files]
            if beside := everything - {file.resolve() for file in self.files}:
                self.left_out[f"beside {', '.join(self.split_files)}"] = len(beside)

    def content_hash(self) -> str:
        """sha256 over the names and bytes of all files, and over corpus.json where there is one."""
        digest = hashlib.sha256()
        extra = [self._corpus_json] if self._corpus_json.is_file() else []
        for path in self.files + extra:
            name = path.name if self.path.is_file() else path.relative_to(self.path).as_posix()
            digest.update(f"{name}\0{file_hash(path)}\n".encode())
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
            if has_suffix(path, TEXT_SUFFIXES):
                yield Document(name, text_of(content_of(path), str(path)), None, str(path))
            else:
                yield from self._records(path, name)

    def _records(self, path: Path, file_name: str) -> Iterator[Document]:
        for where, number, record in json_records(path):
            text = record.get(self.text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                message = "{}: no text in field '{}' ({text_field} names another)"
                raise ArgumentError(message, where, self.text_field)
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
    """Every record of a .jsonl file, which may be compressed: its place, for messages, its line, its
    content.

    Raises:
        ValueError: a line is not JSON
    """
    for number, line in enumerate(lines_of(path), start=1):
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
