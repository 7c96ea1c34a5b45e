"""Text and JSON that people give us, by name, by pattern or as standard input."""

import glob
import json
import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

Text = Union[str, Path]  # a text itself, or the file that holds it


def matching_files(pattern: Path) -> List[Path]:
    """The file of that name, or the files that match it, sorted; ``**`` stands for any folders.

    Raises:
        FileNotFoundError: there is none
    """
    if pattern.is_file():
        return [pattern]
    found: Dict[Tuple[str, str], Path] = {}
    for name in sorted(glob.glob(str(pattern), recursive=True), key=len):
        folder, file = os.path.split(name)
        # ** follows links, and would read a folder with a link to itself forty times
        found.setdefault((os.path.realpath(folder), file), Path(name))
    files = sorted(file for file in found.values() if file.is_file())
    if files:
        return files
    if pattern.is_dir():
        raise FileNotFoundError(f"{pattern} is a folder: give its files, as {pattern}/*.txt")
    raise FileNotFoundError(f"{pattern}: no such file")


def named_texts(
    texts: Union[Text, Iterable[Text]], names: Union[str, Sequence[str], None] = None
) -> List[Tuple[Optional[str], Text]]:
    """Names, None for a text that has none, and texts or files.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: there are not as many names, or a text is empty
    """
    documents = []
    for text in [texts] if isinstance(texts, (str, Path)) else texts:
        files = matching_files(text) if isinstance(text, Path) else [text]
        documents += [(str(file) if isinstance(file, Path) else None, file) for file in files]
    if names is not None:
        names = [names] if isinstance(names, str) else list(names)
        if len(names) != len(documents):
            raise ValueError(f"{len(names)} names for {len(documents)} documents")
        documents = [(name, text) for name, (_, text) in zip(names, documents, strict=True)]
    for name, text in documents:
        if text == "" or (isinstance(text, Path) and text.stat().st_size == 0):
            raise ValueError(f"{name or 'a document'}: the text is empty")
    return documents


def read_text(path: Path) -> str:
    """The text of a file, as :func:`text_of` reads it.

    Raises:
        OSError: the file cannot be read
        ValueError: it is not a text in UTF-8
    """
    return text_of(path.read_bytes(), str(path))


def parse_json(text: Union[str, bytes]) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or has so many levels that reading it would exhaust the stack
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many levels") from None


def read_json(path: Path) -> Dict[str, Any]:
    """The object of a JSON file.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is not a JSON object
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def text_of(data: bytes, name: str) -> str:
    """The text that bytes of UTF-8 stand for, without byte order mark and with ``\\n`` as line end.

    Raises:
        ValueError: naming *name*, they are no text
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02X} at offset {error.start}"
        raise ValueError(f"{name} is not a text in UTF-8 ({found})") from None
    if "\0" in text:
        raise ValueError(
            f"{name} is not a text in UTF-8 (byte 0x00 at offset {text.index(chr(0))})"
        )
    return plain_text(text)


def plain_text(text: str) -> str:
    """A text without the marks of editors: no byte order mark before it, and ``\\n`` as line
    end, whether lines ended in ``\\r\\n``, ``\\r`` or ``\\n``.

    Corpora, prompts and memorized documents all pass through here, so that the same text gives the
    same tokens whatever wrote it.
    """
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def chance_of(content: Dict, path: Path) -> Optional[float]:
    """The accuracy of a guess, if *content*, which *path* holds, tells it.

    Raises:
        ValueError: it is no number from 0 to 1
    """
    chance = content.get("chance")
    if chance is not None and not (type(chance) in (int, float) and 0 <= chance <= 1):
        raise ValueError(f"{path}: chance is {chance!r}, expected a number from 0 to 1")
    return chance
