"""What our own commands share: bad input is one line and exit code 2, never a traceback."""

import argparse
import io
import logging
import os
import sys
from typing import Callable


def run(main: Callable[[], None]) -> None:
    """Calls *main*; a ValueError, OSError or ImportError becomes ``PROGRAM: error: MESSAGE``.

    What it prints is UTF-8, as what it reads is.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # else a character that the locale lacks ends it
        sys.stdout.reconfigure(encoding="utf-8")
    logging.getLogger().setLevel(logging.WARNING)  # fairseq leaves it at DEBUG
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        program = os.path.basename(sys.argv[0])
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def script_parser(documentation: str) -> argparse.ArgumentParser:
    """A parser whose help shows the first line of a module's *documentation*, and defaults."""
    return argparse.ArgumentParser(
        description=documentation.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def counted(number: int, thing: str) -> str:
    """As in "1 document" and "2,000 documents"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def as_option(name: str) -> str:
    """What the command line calls an argument of this name."""
    return "--" + name.replace("_", "-")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for an option that is given and less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{as_option(name)} ({value}) must be at least 1")
