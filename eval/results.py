"""Result lines: what was measured, of which model, with which code."""

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Dict, List, Optional, Union

from longmem_fairseq.text_files import parse_json

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The checkout's commit, "-dirty" after it if a tracked file was changed; "unknown" without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


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
    line = json.dumps(result) + "\n"
    with open(path, "a+", encoding="utf-8") as results:
        results.seek(0)
        if line in results:
            return
        results.write(line)
        results.flush()
        os.fsync(results.fileno())


def read_json_lines(path: Union[str, Path]) -> List[Dict]:
    """All lines of a file of JSON lines.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: a line is not a JSON object
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
            records.append(record)
    return records


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start
