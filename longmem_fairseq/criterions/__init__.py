"""The training criterion."""

from longmem_fairseq.criterions.longmem_cross_entropy import LongMemCrossEntropyCriterion

__all__ = ["LongMemCrossEntropyCriterion"]
