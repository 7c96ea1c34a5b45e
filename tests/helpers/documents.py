"""Documents in memory, whose tokens are numbered."""

import numpy as np
import torch

PAD, BOS = 1, 2
FIRST = 100  # tokens are numbered through all documents from here


class Documents:
    """The interface of an indexed dataset."""

    def __init__(self, sizes):
        self.sizes = np.array(sizes, dtype=np.int32)
        self.tokens = torch.arange(FIRST, FIRST + int(self.sizes.sum()), dtype=torch.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return self.tokens[self.starts[index] : self.starts[index + 1]]
