"""LongMem ("Augmenting Language Models with Long-Term Memory", arXiv 2306.07174) for fairseq.

``fairseq-train --user-dir longmem_fairseq`` knows the models ``longmem_backbone``, ``longmem`` and
``memtrm``, the task ``longmem_language_modeling`` and the criterion ``longmem_cross_entropy``
(``tasks/user_dir.py``). Importing this package imports nothing else and changes nothing.
"""

__version__ = "0.1.0"
__all__ = ["LongMem"]


def __getattr__(name: str):
    if name == "LongMem":  # which imports fairseq
        from longmem_fairseq.api.hub_interface import LongMem

        return LongMem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
