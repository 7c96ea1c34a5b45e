"""Which token of which document every token of a bank is."""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.chunk_store import Placement

UNKNOWN = -1  # the id of a token of which nobody said what it is


class Source(NamedTuple):
    """From token *first* of a bank on (counted from its last reset), what was written is document
    *name* (None: nobody said which) from its token *offset* on."""

    first: int
    name: Optional[str]
    offset: int


class TokenLog:
    """Ids of the last tokens of one bank, and the documents that they came from.

    Tokens are numbered from the bank's last reset on.

    Args:
        size: how many ids are kept

    Raises:
        ValueError: no machine keeps so many
    """

    def __init__(self, size: int):
        # token t is at t % size; zeros take no memory before they are written, nor are they read
        self.ids = Placement().buffer("token ids", (size,), torch.int32)
        self.sources: List[Source] = []

    def write(self, first: int, ids: Tensor) -> None:
        """The tokens from *first* on have these ids."""
        kept = min(len(ids), len(self.ids))
        places = torch.arange(first + len(ids) - kept, first + len(ids)) % len(self.ids)
        self.ids[places] = ids[len(ids) - kept :].to(self.ids)

    def read(self, tokens: range) -> Tensor:
        """Their ids; the tokens have to be among the last ones."""
        return self.ids[torch.arange(tokens.start, tokens.stop) % len(self.ids)]

    def sources_from(self, token: int) -> List[Source]:
        """The sources of the tokens from *token* on, the first of which begins there."""
        current, later = Source(token, None, 0), []
        for source in self.sources:
            if source.first <= token:
                current = Source(token, source.name, source.offset + token - source.first)
            else:
                later.append(source)
        return [current, *later]

    def parts(self, tokens: range) -> List[Tuple[Source, range]]:
        """The documents that some tokens came from, and which of the tokens came from each."""
        sources = self.sources_from(tokens.start)
        stops = [source.first for source in sources[1:]] + [tokens.stop]
        parts = [
            (source, range(source.first, min(stop, tokens.stop)))
            for source, stop in zip(sources, stops, strict=True)
        ]
        return [(source, part) for source, part in parts if len(part) > 0]
