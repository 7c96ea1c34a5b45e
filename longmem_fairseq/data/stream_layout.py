"""Which stream reads which part of which document, and when.

B streams, T tokens that a segment predicts, S segments of a span.
"""

import heapq
from collections import deque
from typing import Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np


class Piece(NamedTuple):
    """Tokens start to stop (exclusive) of a document, read by one stream without interruption."""

    document: int
    start: int
    stop: int

    def num_segments(self, segment: int) -> int:
        """How many segments of at most so many tokens it has."""
        return -(-(self.stop - self.start) // segment)


def lay_out_streams(
    sizes: Sequence[int],
    num_streams: int,
    segment: int,
    span: int = 0,
    rng: Optional[np.random.Generator] = None,
) -> List[List[Piece]]:
    """Deals all tokens of all documents out to streams, each token to exactly one.

    Every stream takes the next piece when it has finished the last one. Without *rng* several
    streams take the longest documents first, so that they end at about the same time; a single
    stream reads in file order. With *rng* the order is random. With *span* a document is cut, at a
    random phase, into pieces of S segments (the first and the last are shorter), and the first piece
    of every stream is shortened so that the streams do not all start afresh in the same step.

    Args:
        sizes: tokens of every document
        num_streams: B
        segment: T
        span: S, 0 for whole documents
        rng: for order and phases; None for evaluation

    Returns:
        B lists of pieces, in reading order; the streams with most segments first
    """
    pieces: List[Piece] = []
    for document, size in enumerate(sizes):
        cuts = [0, int(size)]
        if span > 0:
            phase = int(rng.integers(span * segment)) if rng is not None else 0
            cuts = sorted({0, int(size), *range(phase, int(size), span * segment)})
        pieces += [Piece(document, a, b) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]
    if rng is not None:
        pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    elif num_streams > 1:
        pieces.sort(key=lambda piece: piece.start - piece.stop)
    return _deal(deque(pieces), num_streams, segment, span)


def _deal(queue: Deque[Piece], num_streams: int, segment: int, span: int) -> List[List[Piece]]:
    streams: List[List[Piece]] = [[] for _ in range(num_streams)]
    ready = [(0, stream) for stream in range(num_streams)]  # (segments read, stream): a heap
    while queue:
        steps, stream = heapq.heappop(ready)
        piece = queue.popleft()
        if span > 0 and not streams[stream]:
            # stream b starts with (b + 1) / B of a span; the rest of that piece is read at the end
            limit = -(-span * (stream + 1) // num_streams) * segment
            if piece.stop - piece.start > limit:
                queue.append(piece._replace(start=piece.start + limit))
                piece = piece._replace(stop=piece.start + limit)
        streams[stream].append(piece)
        steps += piece.num_segments(segment)
        heapq.heappush(ready, (steps, stream))
    num_segments = dict((stream, steps) for steps, stream in ready)
    return [streams[i] for i in sorted(num_segments, key=num_segments.get, reverse=True)]


def lay_out_again(
    streams: List[List[Piece]],
    continued: Sequence[Optional[int]],
    num_steps: int,
    num_streams: int,
    segment: int,
) -> Tuple[List[List[Piece]], List[Optional[int]]]:
    """Deals the rest of streams, after some steps, out to another number of streams.

    The pieces that are being read go first: as many of them as there are streams are continued there,
    and any others are read later like pieces of their own. Then those that no stream has begun, in the
    order in which they would have been read.

    Args:
        continued: for every stream, not None if its first piece was begun before its first step
        num_steps: segments that each of the streams has read
        num_streams: B
        segment: T

    Returns:
        B lists of pieces, in reading order, the streams with most segments first; and for each of them
        the stream whose piece it continues, or None
    """
    begun: Dict[Piece, int] = {}
    waiting = []
    for number, stream in enumerate(streams):
        first = 0  # step of the piece
        for piece in stream:
            left = piece._replace(start=piece.start + (num_steps - first) * segment)
            if first > num_steps or (
                first == num_steps and (first > 0 or continued[number] is None)
            ):
                waiting.append((first, number, piece))
            elif left.start < left.stop:
                begun[left] = number
            first += piece.num_segments(segment)
    pieces = [*begun, *(piece for _, _, piece in sorted(waiting))]
    again = _deal(deque(pieces), num_streams, segment, span=0)
    return again, [begun.get(stream[0]) if stream else None for stream in again]
