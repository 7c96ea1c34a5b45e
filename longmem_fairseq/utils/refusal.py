"""Reading data that a stranger may have sent."""

from contextlib import contextmanager
from typing import Iterator


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Around the reading of a stranger's data: anything that goes wrong inside is one ValueError.

    A reader that meets data it does not expect raises any exception at all.

    Raises:
        ValueError: *message* and the reason; but a missing file or package, or too little memory, is
            told as it is
    """
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).split("\n")[0]
        if not isinstance(error, (ValueError, RuntimeError)):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{message} ({reason})") from error
