"""Backbone, LongMem and the MemTRM baseline."""

from longmem_fairseq.models.backbone import LongMemBackbone
from longmem_fairseq.models.longmem import LongMemModel
from longmem_fairseq.models.memtrm import MemTRM

__all__ = ["LongMemModel", "LongMemBackbone", "MemTRM"]
