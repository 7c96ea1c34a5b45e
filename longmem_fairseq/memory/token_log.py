"""Which token of which document every token of a bank is.

b rows, T tokens, R chunks retrieved per query, c chunk_size in tokens, K = R * c, n tokens.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.chunk_store import Placement

UNKNOWN = -1  # the id of a token that was written without one


class Source(NamedTuple):
    """Tokens from *first* on, counted from a bank's last reset, are those of document *name* (None if
    unknown) from *offset* on."""

    first: int
    name: Optional[str]
    offset: int


class TokenLog:
    """Ids of the last tokens of one bank, and the documents that they came from.

    Tokens are numbered from the bank's last reset on.

    Args:
        size: how many ids are kept

    Raises:
        ArgumentError: no machine keeps so many
    """

    def __init__(self, size: int):
        # token t is at t % size; zeros take no memory before they are written, nor are they read
        self.ids = Placement().buffer("token ids", (size,), torch.int32)
        self.sources: List[Source] = []

    def write(self, first: int, ids: Tensor) -> None:
        """Notes the ids of the tokens from *first* on."""
        count = min(len(ids), len(self.ids))
        places = torch.arange(first + len(ids) - count, first + len(ids)) % len(self.ids)
        self.ids[places] = ids[len(ids) - count :].to(self.ids)

    def read(self, tokens: range) -> Tensor:
        """Ids of n tokens, which have to be among the last ones."""
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

    def documents(self, tokens: range) -> Dict[Optional[str], int]:
        """How many of some tokens are of each document, the oldest first; None if unknown."""
        counts: Dict[Optional[str], int] = {}
        for source, part in self.parts(tokens):
            counts[source.name] = counts.get(source.name, 0) + len(part)
        return counts

    def copy(self) -> "TokenLog":
        """Another log of the same tokens."""
        log = TokenLog(len(self.ids))
        log.ids.copy_(self.ids)
        log.sources = list(self.sources)
        return log


def ids_of_slots(
    slots: Tensor,
    logs: Sequence[TokenLog],
    banks: Sequence[int],
    num_written: Sequence[int],
    layout: BankLayout,
) -> Tensor:
    """Ids of the tokens in the slots that queries have retrieved; UNKNOWN where there are none.

    Args:
        slots: b x T x R, -1 where there was no chunk
        logs: of all banks
        banks: of each of the b rows
        num_written: chunks that every bank was given

    Returns:
        b x T x K (int64), on the CPU
    """
    within, ids = torch.arange(layout.chunk_size), []
    for row, bank in zip(slots.cpu(), banks, strict=True):
        chunks = layout.chunk_in(row.clamp(min=0), num_written[bank])
        tokens = chunks.unsqueeze(-1) * layout.chunk_size + within  # T x R x c
        known = logs[bank].ids[tokens % len(logs[bank].ids)]
        ids.append(known.masked_fill(row.unsqueeze(-1) < 0, UNKNOWN))
    return torch.stack(ids).flatten(2).long()
