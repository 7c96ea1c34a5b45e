"""The task that feeds document streams."""

from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingTask

__all__ = ["LongMemLanguageModelingTask"]
