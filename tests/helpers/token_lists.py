"""The slow obvious version of a memory bank: lists of tokens."""

from dataclasses import dataclass, replace
from typing import Optional

import torch


@dataclass
class Token:
    """A stored token: the search key E, keys and values H x D, the id, and its place in a document."""

    search: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    number: int
    document: Optional[str]
    offset: int


class ListOfTokens:
    """One bank as a list, of which nothing is taken out but by forgetting.

    next: the document of the next token that is stored, and its offset there
    """

    def __init__(self, chunk_size, num_slots):
        self.chunk_size, self.num_slots = chunk_size, num_slots
        self.clear()

    def clear(self):
        self.tokens, self.next = [], (None, 0)

    def append(self, search, keys, values, number):
        document, offset = self.next
        self.tokens.append(Token(search, keys, values, number, document, offset))
        self.next = document, offset + 1

    @property
    def first_chunk(self):
        return max(0, len(self.tokens) // self.chunk_size - self.num_slots)

    @property
    def chunks(self):
        """Those that can be found, oldest first, each a list of tokens."""
        size = self.chunk_size
        numbers = range(self.first_chunk, len(self.tokens) // size)
        return [self.tokens[i * size : (i + 1) * size] for i in numbers]

    @property
    def held(self):
        """Those that can be found, and those that wait."""
        return self.tokens[self.first_chunk * self.chunk_size :]

    def moved(self):
        """The held tokens as another bank gets them: a chunk keeps one search key."""
        whole = [
            replace(token, search=torch.stack([t.search for t in chunk]).mean(dim=0))
            for chunk in self.chunks
            for token in chunk
        ]
        return whole + self.held[len(whole) :]

    def scores(self, query, head=None):
        """Of every chunk, for a query: by its search keys, or by the keys of a head."""
        means = [
            torch.stack([t.search if head is None else t.keys[head] for t in chunk]).mean(dim=0)
            for chunk in self.chunks
        ]
        return [float(mean.double() @ query.double()) for mean in means]

    def forget(self, name, held):
        """Leaves the tokens of *held* that are of other documents."""
        self.tokens = [token for token in held if token.document != name]
        if self.next[0] == name:
            self.next = None, 0

    def documents(self):
        """How many tokens of each are held."""
        tokens = {}
        for token in self.held:
            tokens[token.document] = tokens.get(token.document, 0) + 1
        return tokens
