"""Errors about arguments, which a command line says with the names of its options."""

from string import Formatter
from typing import Callable


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

    def __str__(self) -> str:
        return self.spelled(str)


class _Names:
    """A mapping that has every name."""

    def __init__(self, spell: Callable[[str], str]):
        self.spell = spell

    def __getitem__(self, name: str) -> str:
        return self.spell(name)
