"""Goals of a measurement of speed, and its report in JSON."""

import json
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Iterable, NamedTuple

from eval.common.hardware import Rates
from eval.common.provenance import commit


class Check(NamedTuple):
    """A goal and whether *value* meets it; ``_asdict()`` goes into the JSON."""

    name: str
    value: float
    goal: str  # such as ">= 0.75"
    ok: bool

    @classmethod
    def at_least(cls, name: str, value: float, goal: float) -> "Check":
        """The goal that *value* is at least so large."""
        return cls(name, value, f">= {goal:g}", value >= goal)

    @classmethod
    def at_most(cls, name: str, value: float, goal: float) -> "Check":
        """The goal that *value* is at most so large."""
        return cls(name, value, f"<= {goal:g}", value <= goal)

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'NOT MET':7}  {self.name}: {self.value:.3f} ({self.goal})"


def write_report(
    path: Path, hardware: str, rates: Rates, checks: Iterable[Check], **results: object
) -> None:
    """Writes *results* as JSON, with date, hardware, commit and command."""
    report = {
        "date": date.today().isoformat(),
        "hardware": hardware,
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "rates": rates._asdict(),
        **results,
        "checks": [check._asdict() for check in checks],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
