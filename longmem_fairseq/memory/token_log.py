"""Which token of which document every token of a bank is.

b rows, T tokens, R chunks retrieved per query, c chunk_size in tokens, K = R * c, n tokens, M tokens of
a context.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.chunk_store import Placement
from longmem_fairseq.memory.literal_places import PER_QUERY, LiteralPlaces

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
        self._literal: Tuple[range, Optional[LiteralPlaces]] = (range(0), None)

    def write(self, first: int, ids: Tensor) -> None:
        """Notes the ids of the tokens from *first* on."""
        count = min(len(ids), len(self.ids))
        places = torch.arange(first + len(ids) - count, first + len(ids)) % len(self.ids)
        self.ids[places] = ids[len(ids) - count :].to(self.ids)
        self._literal = (range(0), None)

    def read(self, tokens: range) -> Tensor:
        """Ids of n tokens, which have to be among the last ones."""
        return self.ids[torch.arange(tokens.start, tokens.stop) % len(self.ids)]

    def literal_places(self, tokens: range) -> LiteralPlaces:
        """A search of some of the last tokens, which is kept until others are asked for."""
        if self._literal[1] is None or self._literal[0] != tokens:
            self._literal = tokens, LiteralPlaces(self.read(tokens), tokens.start)
        return self._literal[1]

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


def look_up(
    logs: Sequence[TokenLog],
    tokens: Tensor,
    held: Sequence[range],
    contexts: Optional[Tensor] = None,
) -> Tuple[Tensor, Optional[Tensor]]:
    """Ids of the tokens that b rows of queries have retrieved, and the lengths of literal matches.

    Args:
        logs: of the b rows
        tokens: b x T x K numbers, -1 where there is none; on the CPU
        held: of each row, the tokens whose ids are known
        contexts: b x T x M ids of the query's token and those before it, the newest first; negative
            where there are none

    Returns:
        ids: b x T x K (int64), UNKNOWN where there is no token
        matches: how many of the tokens before each one are those of the context, b x T x K, at most M;
            None without *contexts*
    """
    ids = [log.ids[row % len(log.ids)] for log, row in zip(logs, tokens, strict=True)]
    ids = torch.stack(ids).long().masked_fill(tokens < 0, UNKNOWN)
    if contexts is None:
        return ids, None
    rows = zip(logs, tokens, contexts.cpu(), held, strict=True)
    return ids, torch.stack([_match_lengths(*row) for row in rows])


def literal_slots(
    layout: BankLayout, logs: Sequence[TokenLog], num_written: Sequence[int], contexts: Tensor
) -> Optional[Tensor]:
    """Slots of the latest chunks after the same words as each of b x T queries, b x 1 x T x n; see
    :class:`LiteralPlaces`.

    Args:
        logs: of the b rows
        num_written: chunks that the bank of each row was given
        contexts: see :func:`look_up`

    Returns:
        None where a query retrieves too few chunks for any of them to be of this kind
    """
    count = layout.chunks_per_query // PER_QUERY
    if count == 0:
        return None
    slots = []
    for log, written, row in zip(logs, num_written, contexts.cpu(), strict=True):
        places = log.literal_places(layout.held(written, 0)).latest(row, count)
        chunks = places // layout.chunk_size % layout.num_slots
        slots.append(chunks.masked_fill(places < 0, -1))
    return torch.stack(slots).unsqueeze(1).to(contexts.device)


def _match_lengths(log: TokenLog, tokens: Tensor, contexts: Tensor, held: range) -> Tensor:
    """See :func:`look_up`, for one row."""
    lengths = torch.zeros_like(tokens)
    places, flat = tokens.flatten(), lengths.view(-1)
    alive = torch.arange(len(places))  # most matches end soon: only those that go on are looked at
    for back, expected in enumerate(contexts.unbind(dim=1), start=1):
        before = places[alive] - back
        wanted = expected[alive // tokens.size(1)]
        same = (log.ids[before % len(log.ids)] == wanted) & (wanted >= 0)
        alive = alive[same & (before >= held.start)]
        if len(alive) == 0:
            break
        flat[alive] = back
    return lengths
