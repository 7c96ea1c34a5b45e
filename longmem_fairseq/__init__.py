"""LongMem ("Augmenting Language Models with Long-Term Memory", arXiv 2306.07174) for fairseq.

``fairseq-train --user-dir longmem_fairseq`` imports this module, which registers the models
``longmem_backbone``, ``longmem`` and ``memtrm``, the task ``longmem_language_modeling`` and the
criterion ``longmem_cross_entropy``.
"""

from longmem_fairseq import criterions, models, tasks
from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.fairseq_patches import checkpoints, processes, shared_parameters

__version__ = "0.1.0"
__all__ = [
    "LongMem",
    "checkpoints",
    "criterions",
    "models",
    "processes",
    "shared_parameters",
    "tasks",
]
