"""Attention with memory, the decoder block and the loss: tensors in, tensors out."""

from longmem_fairseq.modules.causal_bias import CausalBias, alibi_slopes
from longmem_fairseq.modules.decoder_block import ACTIVATIONS, BLOCKS, DecoderBlock
from longmem_fairseq.modules.frozen_linear import (
    Int8Linear,
    PackedLinear,
    pack,
    packing_pays,
    quantize,
    store_by_inputs,
)
from longmem_fairseq.modules.joint_attention import JointAttention, LocalCache
from longmem_fairseq.modules.memory_attention import memory_attention, memory_weights
from longmem_fairseq.modules.norms import NORMS, QK_NORMS, RMSNorm
from longmem_fairseq.modules.pointer import ConstantPointer, Pointer, TrainedPointer
from longmem_fairseq.modules.prediction import Prediction, log_probs_of, predict
from longmem_fairseq.modules.rotary import Rotary
from longmem_fairseq.modules.search_keys import SearchKeys
from longmem_fairseq.modules.token_losses import row_blocks, token_losses

__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "CausalBias",
    "ConstantPointer",
    "DecoderBlock",
    "Int8Linear",
    "JointAttention",
    "LocalCache",
    "NORMS",
    "PackedLinear",
    "Pointer",
    "Prediction",
    "QK_NORMS",
    "RMSNorm",
    "Rotary",
    "SearchKeys",
    "TrainedPointer",
    "alibi_slopes",
    "log_probs_of",
    "memory_attention",
    "memory_weights",
    "pack",
    "packing_pays",
    "predict",
    "quantize",
    "row_blocks",
    "store_by_inputs",
    "token_losses",
]
