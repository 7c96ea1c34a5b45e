"""Indices of faiss that a bank cannot have: errors name arguments, or options where these set them."""

import pytest
import torch

from longmem_fairseq.memory import MemoryBank, check_index
from longmem_fairseq.models.building import build_memory
from longmem_fairseq.models.decoder_config import DecoderConfig
from longmem_fairseq.models.memory_config import MemoryConfig
from longmem_fairseq.utils.argument_error import ArgumentError

HEADS, HEAD_DIM = 2, 8


def make_bank(index, parameters=""):
    """A bank of 200 chunks of one token."""
    options = {"memory_size": 200, "chunk_size": 1, "k": 6, "index_parameters": parameters}
    return MemoryBank(1, HEADS, HEAD_DIM, index=index, **options)


ARGUMENTS = {name: name for name in ("index", "index_parameters", "memory_size")}
OPTIONS = {
    "index": "--memory-index",
    "index_parameters": "--memory-index-parameters",
    "memory_size": "--memory-size",
}
UNKNOWN = (
    "{{index}} ({}) is neither torch nor flat nor an index that faiss can make for 8 dimensions, "
    "such as IVF1024,Flat"
)
PARAMETERS = (
    "{{index_parameters}} ({}) do not fit {{index}} {}, for which nprobe=32 (IVF) or "
    "efSearch=64 (HNSW) are known"
)
SMALL = (
    "{{index}} ({}) needs {} chunks to be trained, but {{memory_size}} holds 200: make it larger, or "
    "the index coarser"
)
EXACT = "{{index_parameters}} ({}) do not go with {{index}} {}, which is exact"
REFUSED = [
    *((name, "", UNKNOWN.format(name)) for name in ("", "ivf", "IVF4", "PQ3", "LSH", "HNSW0,Flat")),
    ("IVF0,Flat", "", UNKNOWN.format("IVF0,Flat")),
    ("IVF4,Flat", "nprobe", PARAMETERS.format("nprobe", "IVF4,Flat")),
    ("IVF4,Flat", "nprobe=0", PARAMETERS.format("nprobe=0", "IVF4,Flat")),
    ("IVF4,Flat", "nprobe=many", PARAMETERS.format("nprobe=many", "IVF4,Flat")),
    ("IVF4,Flat", "nprobe=2,efSearch=9", PARAMETERS.format("nprobe=2,efSearch=9", "IVF4,Flat")),
    ("HNSW8", "nprobe=3", PARAMETERS.format("nprobe=3", "HNSW8")),
    ("torch", "nprobe=3", EXACT.format("nprobe=3", "torch")),
    ("flat", "nprobe=3", EXACT.format("nprobe=3", "flat")),
    ("IVF6,Flat", "", SMALL.format("IVF6,Flat", 234)),
    ("PCA4,IVF1024,Flat", "", SMALL.format("PCA4,IVF1024,Flat", "39,936")),
    ("IVF4,PQ4", "", SMALL.format("IVF4,PQ4", "9,984")),
    (
        "NSG8",
        "",
        "{index} (NSG8) cannot take one chunk after another: choose an index that can (torch, IVF..., "
        "HNSW...)",
    ),
]


@pytest.mark.parametrize("index, parameters, message", REFUSED)
def test_indices_that_there_cannot_be(index, parameters, message):
    """Refused by a bank, and long before there is one."""
    cfg = MemoryConfig(
        memory_index=index,
        memory_index_parameters=parameters,
        memory_size=200,
        chunk_size=1,
        k=4,
        retrieval_layer_index=1,
    )
    backbone = DecoderConfig(num_layers=2, embed_dim=HEADS * HEAD_DIM, num_attention_heads=HEADS)
    for make, names in (
        (lambda: check_index(index, parameters, HEAD_DIM, 200), ARGUMENTS),
        (lambda: make_bank(index, parameters), ARGUMENTS),
        (lambda: build_memory(cfg, backbone, tokens_per_sample=8), OPTIONS),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == message.format(**names)


def test_an_index_that_turns_out_not_to_be_trainable():
    bank = make_bank("PCA9,IVF4,Flat")
    with pytest.raises(ArgumentError) as error:
        bank.write(*torch.randn(2, 1, HEADS, 160, HEAD_DIM))
    assert str(error.value) == (
        "index (PCA9,IVF4,Flat) cannot be trained: PCA matrix cannot output 9 dimensions from 8"
    )
