"""Attention with memory, the decoder block and the loss: tensors in, tensors out."""

from longmem_fairseq.modules.alibi import CausalAlibiBias, alibi_slopes
from longmem_fairseq.modules.decoder_block import ACTIVATIONS, DecoderBlock
from longmem_fairseq.modules.joint_attention import JointAttention, LocalCache
from longmem_fairseq.modules.memory_attention import memory_attention, memory_weights
from longmem_fairseq.modules.token_losses import row_blocks, token_losses

__all__ = [
    "ACTIVATIONS",
    "CausalAlibiBias",
    "DecoderBlock",
    "JointAttention",
    "LocalCache",
    "alibi_slopes",
    "memory_attention",
    "memory_weights",
    "row_blocks",
    "token_losses",
]
