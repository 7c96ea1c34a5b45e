"""Banks with something in them, and all that they hold."""

import copy

import torch

from longmem_fairseq.memory import MemoryBank

STREAMS, HEADS, HEAD_DIM = 3, 2, 8
SIZES = {"memory_size": 24, "chunk_size": 2, "k": 6}


def filled(scope="stream", wrapped=True, seed=1, **options):
    """Rings of 12 slots: one that has wrapped, one that has not, an empty one; tokens that wait."""
    torch.manual_seed(seed)
    bank = MemoryBank(STREAMS, HEADS, HEAD_DIM, **{**SIZES, **options}, scope=scope)
    tokens = 2 * bank.layout.memory_size + 7 if wrapped else bank.layout.memory_size - 1
    valid = torch.zeros(STREAMS, tokens, dtype=torch.bool)
    valid[0], valid[1, :9] = True, True
    bank.begin_document(0, "first \N{EM DASH} document", offset=3)
    half = tokens // 2
    keys, values = torch.randn(2, STREAMS, HEADS, tokens, HEAD_DIM)
    ids = torch.arange(STREAMS * tokens).view(STREAMS, tokens)
    bank.write(keys[:, :, :half], values[:, :, :half], valid[:, :half], ids[:, :half])
    bank.begin_document(0, "second")
    bank.write(keys[:, :, half:], values[:, :, half:], valid[:, half:], ids[:, half:])
    return bank


def snapshot(bank):
    """A copy of its header and tensors."""
    return copy.deepcopy((bank.header(), bank.state_dict()))


def assert_same(state, other):
    """Two snapshots."""
    assert state[0] == other[0] and state[1].keys() == other[1].keys()
    for name, tensor in state[1].items():
        assert torch.equal(tensor, other[1][name]), name
