"""Result lines: what was measured, of which model, with which code."""

import fcntl
import hashlib
import json
import os
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import BinaryIO, Dict, List, Optional, Union

import longmem_fairseq
from longmem_fairseq.utils.text_files import parse_json

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The checkout's commit, "-dirty" after it if a tracked file was changed; "unknown" outside git."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(
            [*describe, "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


@cache  # what this process runs, whatever is edited meanwhile
def code_hash() -> str:
    """SHA-256 of the Python files of the package and of eval/, committed or not."""
    digest = hashlib.sha256()
    for folder in (Path(longmem_fairseq.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def check_results(option: str, path: Optional[Path]) -> None:
    """Before the work of hours.

    Raises:
        ValueError: *path*, given as *option*, cannot be a file of result lines
    """
    if path is None:
        return
    if path.suffix == ".json":
        raise ValueError(
            f"{option} ({path}) must not end in .json, where eval/report.py writes its summary: "
            "name it .jsonl"
        )
    if path.is_dir():
        raise ValueError(f"{option} ({path}) is a folder: give a file to append lines to")


def check_output(path: Optional[Path]) -> None:
    """Before the work of hours.

    Raises:
        FileNotFoundError, ValueError: there cannot be such a file
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file to write")


def file_hash(path: Union[str, Path]) -> str:
    """SHA-256 of a file.

    Raises:
        FileNotFoundError: there is none
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def append_result(path: Optional[Path], result: Dict) -> None:
    """Adds a line to a file of results, which is made with its folder; None adds nothing.

    A run that was done already gives its line once more, which is there then and not added.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(result).encode() + b"\n"
    with open(path, "a+b") as results:
        fcntl.flock(results, fcntl.LOCK_EX)  # else another run's line might be half there
        if line in whole_lines(results):
            return
        results.write(line)
        results.flush()
        os.fsync(results.fileno())


def whole_lines(file: BinaryIO) -> List[bytes]:
    """The lines of a file that is open to append to; half a line at its end is taken away.

    A kill or a full disk left it there, and the next line would go on behind it.
    """
    file.seek(0)
    lines = file.readlines()
    if lines and not lines[-1].endswith(b"\n"):
        del lines[-1]
        file.truncate(sum(map(len, lines)))
    file.seek(0, os.SEEK_END)
    return lines


def decimal(value: Optional[float], digits: int) -> str:
    """A number for people; None, such as the perplexity of no words, is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def read_json_lines(path: Union[str, Path], fields: Optional[Dict[str, type]] = None) -> List[Dict]:
    """All lines of a file of JSON lines.

    Args:
        fields: what every line has, and of which type

    Raises:
        FileNotFoundError: there is no such file
        ValueError: a line is not a JSON object, or has no such field
    """
    records = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_json(line)
            except ValueError:
                raise ValueError(f"{path}, line {number}: not JSON") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object")
            for name, kind in (fields or {}).items():
                if not isinstance(record.get(name), kind):
                    raise ValueError(
                        f"{path}, line {number}: {name} is {record.get(name)!r}, expected "
                        f"{kind.__name__}"
                    )
            records.append(record)
    return records


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start
