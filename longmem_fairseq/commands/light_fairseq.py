"""Importing fairseq without scikit-learn and scipy, which take longer to import than fairseq itself.

Two of its tasks, for other purposes than language models, take a few functions of them.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Callable

HEAVY = ("sklearn", "sklearn.metrics", "scipy", "scipy.stats")


class _LateModule(ModuleType):
    """Stands for a module while fairseq is imported; its functions import the module when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call


def import_fairseq() -> None:
    """Imports fairseq; the modules named in HEAVY are imported when a function of theirs is called."""
    if any(name in sys.modules for name in ("fairseq", *HEAVY)):
        return
    late = {name: _LateModule(name) for name in HEAVY}
    late["sklearn"].metrics, late["scipy"].stats = late["sklearn.metrics"], late["scipy.stats"]
    sys.modules.update(late)
    try:
        importlib.import_module("fairseq")
    finally:
        for name in HEAVY:
            del sys.modules[name]
