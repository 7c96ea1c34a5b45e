"""Result lines: one line of JSON for each measurement."""

import fcntl
import json
import os
from pathlib import Path
from typing import BinaryIO, Dict, List, Optional, Union

from longmem_fairseq.utils.text_files import parse_json


def check_results(option: str, path: Optional[Path]) -> None:
    """Checks the value of *option* before hours of work.

    Raises:
        ValueError: *path* cannot be a file of result lines
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


def append_result(path: Optional[Path], result: Dict) -> None:
    """Adds a line to a file of results, which is made with its folder; None adds nothing.

    A finished run that is started again gives the same line, which is not added a second time.
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


def read_json_lines(path: Union[str, Path], fields: Optional[Dict[str, type]] = None) -> List[Dict]:
    """All lines of a file of JSON lines.

    Args:
        fields: name and type of the fields that every line has

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
