"""Errors about arguments, which a command line says with the names of its options."""

from pathlib import PurePath
from string import Formatter
from typing import Any, Callable


class ArgumentError(ValueError):
    """An argument has a value that it cannot have.

    ``str`` names the arguments; :meth:`spelled` gives them other names, such as those of options.

    Args:
        text: a format string, in which ``{name}`` stands for the argument *name* and ``{}`` for a value
        values: for the ``{}``, in their order
    """

    def __init__(self, text: str, *values):
        super().__init__(text, *values)

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with ``spell(name)`` for every argument."""
        text, *values = self.args
        return Formatter().vformat(text, values, _Names(spell))

    @property
    def argument(self) -> str:
        """The name of the argument that the message names first."""
        return next(name for _, name, _, _ in Formatter().parse(self.args[0]) if name)

    def within(self, place: Any) -> "ArgumentError":
        """The same error, with its place before the message."""
        text, *values = self.args
        return type(self)("{}: " + text, place, *values)

    def replaced(self, old: str, new: str) -> "ArgumentError":
        """The same error, with *new* for *old* in the texts and paths that it names."""
        text, *values = self.args
        kinds = (str, PurePath)
        return type(self)(
            text, *(str(v).replace(old, new) if isinstance(v, kinds) else v for v in values)
        )

    def __str__(self) -> str:
        return self.spelled(str)


class MissingFileError(ArgumentError, FileNotFoundError):
    """An argument names a file that is not there."""


class _Names:
    """A mapping that has every name."""

    def __init__(self, spell: Callable[[str], str]):
        self.spell = spell

    def __getitem__(self, name: str) -> str:
        return self.spell(name)
