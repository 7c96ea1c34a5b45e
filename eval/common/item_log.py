"""The finished items of a run, on disk: a killed run goes on with the rest when it is started again."""

import fcntl
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Callable, Dict, Optional

from eval.common.results import whole_lines
from eval.common.timing import Stopwatch
from longmem_fairseq.utils.text_files import parse_json


class ItemLog:
    """The finished items of one run, a JSON line each, in a file that is named after its settings.

    Every line is on disk before the next item is begun; a last line that was cut off by a kill is
    dropped. A run with any other setting has another file.

    Args:
        results: file of result lines, beside which the folder of logs lies; None: nothing is logged
        settings: all that the items depend on, as plain JSON; settings["benchmark"] begins the name

    Raises:
        ValueError: another process does the same run, or the file was tampered with
    """

    def __init__(self, results: Optional[Path], settings: Dict):
        self.done: Dict[str, Dict] = {}
        self._file = None
        if results is None:
            return
        folder = Path(f"{results}.items")
        folder.mkdir(parents=True, exist_ok=True)
        header = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(header.encode()).hexdigest()[:16]
        path = folder / f"{settings['benchmark']}-{digest}.jsonl"
        self._file = open(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path}: another process is at this very run") from None
        self._read(path)
        if self._file.tell() == 0:
            self._write(settings)

    def add(self, item: str, record: Dict) -> None:
        """Writes the record (plain JSON) of a finished item."""
        self.done[item] = record
        line = {"item": item, **record}
        self._write({**line, "crc32": _crc32(line)})

    def measured(self, item: str, measure: Callable[[], Dict]) -> Dict:
        """The record of an item, which is measured now unless it is there; with its "seconds"."""
        if item not in self.done:
            watch = Stopwatch()
            record = measure()
            self.add(item, {**record, "seconds": watch.seconds})
        return self.done[item]

    def _read(self, path: Path) -> None:
        # the first line holds the settings
        for number, line in enumerate(whole_lines(self._file)[1:], start=2):
            try:
                record = parse_json(line)
                if record.pop("crc32") != _crc32(record):
                    raise ValueError
                self.done[record.pop("item")] = record
            except (ValueError, KeyError, AttributeError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: not a finished item; delete the file to start anew"
                ) from None

    def _write(self, record: Dict) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _crc32(record: Dict) -> int:
    """Checksum of a line, so that a damaged or edited line is not taken for a result."""
    return zlib.crc32(json.dumps(record).encode())
