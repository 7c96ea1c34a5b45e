"""Errors about arguments, and about what strangers send."""

from contextlib import contextmanager
from pathlib import PurePath
from string import Formatter
from typing import Any, Callable, Iterator


class ArgumentError(ValueError):
    """An argument that does not fit. Our commands name it as the option that it is there.

    Args:
        template: one line, in which ``{name}`` stands for the argument of that name and ``{}`` for the
            next of *values*
    """

    def __init__(self, template: str, *values: Any):
        super().__init__(template, *values)
        self.template, self.values = template, values

    @property
    def argument(self) -> str:
        """The name of the argument that the message names first."""
        return next(name for _, name, _, _ in Formatter().parse(self.template) if name)

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with every argument called what *spell* makes of its name."""
        names = {name for _, name, _, _ in Formatter().parse(self.template) if name}
        return self.template.format(*self.values, **{name: spell(name) for name in names})

    def within(self, place: Any) -> "ArgumentError":
        """The same error, with the place where it happened before the message."""
        return type(self)("{}: " + self.template, place, *self.values)

    def replaced(self, old: str, new: str) -> "ArgumentError":
        """The same error, with *new* for *old* in the texts and paths that it names."""
        texts = (str, PurePath)
        values = (str(v).replace(old, new) if isinstance(v, texts) else v for v in self.values)
        return type(self)(self.template, *values)

    def __str__(self) -> str:
        return self.spelled(str)


class ArgumentFileError(ArgumentError, FileNotFoundError):
    """An argument that names a file which is not there."""


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Around the reading of data that a stranger may have sent.

    A reader that meets what it does not expect raises whatever its author did not think of.

    Raises:
        ValueError: *message* and the reason, whatever went wrong inside, unless a file or a package is
            missing or there is too little memory
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
