"""Attention with memory and the decoder block: tensors in, tensors out."""

from longmem_fairseq.modules.alibi import CausalAlibiBias, alibi_slopes
from longmem_fairseq.modules.decoder_block import ACTIVATIONS, DecoderBlock
from longmem_fairseq.modules.joint_attention import JointAttention
from longmem_fairseq.modules.memory_attention import memory_attention

__all__ = [
    "ACTIVATIONS",
    "CausalAlibiBias",
    "DecoderBlock",
    "JointAttention",
    "alibi_slopes",
    "memory_attention",
]
