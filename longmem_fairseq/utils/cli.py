"""The command line: errors are one line and exit code 2, never a traceback, and name options."""

import argparse
import io
import logging
import os
import sys
from contextlib import contextmanager
from typing import Callable, Iterator

from longmem_fairseq.utils.argument_error import ArgumentError

# arguments of a memory bank whose options have other names
_OPTIONS = {
    "directory": "memory_dir",
    "dtype": "memory_dtype",
    "index": "memory_index",
    "index_parameters": "memory_index_parameters",
    "num_shards": "memory_shards",
    "num_streams": "batch_size",
    "scope": "memory_scope",
    "search": "memory_search",
    "storage": "memory_storage",
}


def run(main: Callable[[], None]) -> None:
    """Calls *main*; a ValueError, OSError or ImportError becomes ``PROGRAM: error: MESSAGE``.

    Its output is UTF-8, as its input is.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # else a character that the locale lacks ends it
        sys.stdout.reconfigure(encoding="utf-8")
    logging.getLogger().setLevel(logging.WARNING)  # fairseq leaves it at DEBUG
    try:
        with option_names():
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


def documented_parser(documentation: str) -> argparse.ArgumentParser:
    """A parser whose help shows all of a module's *documentation*."""
    return argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


@contextmanager
def option_names() -> Iterator[None]:
    """Inside, an :class:`ArgumentError` becomes a ValueError that names options.

    For calls from above whose arguments come from options: the layers below need not know these.
    """
    try:
        yield
    except ArgumentError as error:
        raise ValueError(error.spelled(as_option)) from error


def counted(number: int, thing: str) -> str:
    """As in "1 document" and "2,000 documents"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def as_option(name: str) -> str:
    """The option that sets an argument of this name."""
    return "--" + _OPTIONS.get(name, name).replace("_", "-")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for an option that is given and less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{as_option(name)} ({value}) must be at least 1")
