"""Memories of one head and one channel, whose keys are numbers, written and read as a forward does."""

import torch

from longmem_fairseq.memory import ExternalMemory


def external(**options):
    return ExternalMemory(1, 1, **{"memory_size": 8, "chunk_size": 2, "k": 4, **options})


def begin(memory, streams, new_document, training=True, device="cpu"):
    memory.begin(streams, torch.tensor(new_document), training, torch.device(device))


def write(memory, start, stop, streams=1, valid=None):
    """Keys and values B x 1 x T x 1 holding the numbers start to stop, as a forward does."""
    tokens = torch.arange(start, stop, dtype=torch.float).view(1, 1, -1, 1)
    tokens = tokens.repeat(streams, 1, 1, 1).requires_grad_()
    if valid is None:
        valid = torch.ones(streams, stop - start, dtype=torch.bool)
    memory.write(tokens, -tokens, valid)


def stored(memory, row=0, training=True):
    """All chunks of a stream, oldest first."""
    bank = memory.banks[training]
    found = bank.retrieve(-torch.ones(bank.layout.num_streams, 1, 1, 1))
    if found is None:
        return []
    return found.tokens()[0][row, 0, 0][found.valid[row, 0, 0]].flatten().tolist()
