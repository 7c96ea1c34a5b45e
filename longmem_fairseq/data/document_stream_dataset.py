"""Batches of contiguous document streams.

B streams of this shard, W shards, T tokens of a segment, N of which the segment before has too.
"""

from itertools import zip_longest
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from longmem_fairseq.data.stream_layout import Piece, lay_out_again, lay_out_streams


class _Segment(NamedTuple):
    piece: Piece
    start: int  # of what it predicts, in the document
    is_first: bool  # its stream remembers nothing of the document


class _Row(NamedTuple):
    """A segment's tokens: which document, and from where; of a stream that has run out, -1 and none.

    The first *overlap* tokens are context: their targets are padding.
    """

    document: int
    position: int
    source: Tensor
    target: Tensor
    overlap: int

    def of_no_tokens(self) -> "_Row":
        return self._replace(source=self.source[:0], target=self.target[:0], overlap=0)


class DocumentStreamDataset(torch.utils.data.Dataset):
    """Every item is a whole batch: the next segment of each of B streams.

    Row b of batch t + 1 continues row b of batch t, until its document (or span) ends and the next
    one starts, which ``new_document`` announces. Every token of every document is a target exactly
    once: the first of a document is predicted from *bos*, the first of a later span from the token
    before it. The streams are ordered by their length, so that those that have run out are the last
    rows: they are left out (a shard whose streams all have run out while another's have not gets one
    row without tokens).

    A segment predicts T - N tokens. It begins with the N tokens before them, as many as the document
    has there, which are context alone: ``overlap`` counts them, their targets are padding, and so is
    the right of a segment that is shorter than others.

    fairseq's iterator gives batches i, i + W, i + 2W, ... to shard i, so batch t of shard i is item
    t * W + i, and streams stay with their shard: i, i + W, ... are its own.

    Args:
        documents: indexed dataset, one item per document
        pad, bos: padding symbol, and the one that stands before a document
        batch_size: B
        tokens_per_sample: T
        segment_overlap: N, less than T
        stream_span: segments that a stream reads before it jumps, 0 for whole documents
        num_shards: W
        seed: of order and phases; None reads in a fixed order (evaluation)
        memory_size: tokens that a stream's memory holds, to give back as ``earlier``
    """

    def __init__(
        self,
        documents,
        pad: int,
        bos: int,
        batch_size: int,
        tokens_per_sample: int,
        segment_overlap: int = 0,
        stream_span: int = 0,
        num_shards: int = 1,
        seed: Optional[int] = None,
        memory_size: int = 0,
    ):
        self.memory_size = memory_size
        self.documents, self.pad, self.bos = documents, pad, bos
        self.batch_size, self.num_shards = batch_size, num_shards
        self.segment_overlap, self.stream_span, self.seed = segment_overlap, stream_span, seed
        self.stride = tokens_per_sample - segment_overlap  # tokens that a segment predicts
        self._open: Dict[int, tuple] = {}  # stream -> (document, its tokens), the one being read
        self.lay_out()

    @property
    def num_streams(self) -> int:
        """Of all shards together."""
        return self.batch_size * self.num_shards

    def lay_out(self, earlier: Sequence[Tuple[int, int]] = ()) -> None:
        """Lays the documents out; of an epoch that other numbers of streams began, what is left of it.

        Batches keep their numbers: those before the last change are no longer there.

        Args:
            earlier: (streams of all shards, step before which they ended) of those, in their order
        """
        rng = np.random.default_rng(self.seed) if self.seed is not None else None
        segment = self.stride
        counts = [*(count for count, _ in earlier), self.num_streams]
        streams = lay_out_streams(self.documents.sizes, counts[0], segment, self.stream_span, rng)
        # by document and end: where its first stream began it, with an empty memory
        self._begins = {(p.document, p.stop): p.start for stream in streams for p in stream}
        continued: List[Optional[int]] = [None] * counts[0]
        self.first_step = 0
        for (_, stop), count in zip(earlier, counts[1:], strict=True):
            steps = stop - self.first_step
            streams, continued = lay_out_again(streams, continued, steps, count, segment)
            self.first_step = stop
        self.streams = streams
        # of every stream, the one of the layout before that began the document it is in the middle of
        self.continued = continued
        # cumulative segments of every stream, to find the piece of a step without listing them all
        self._ends = [
            np.cumsum([piece.num_segments(segment) for piece in stream], dtype=np.int64)
            for stream in streams
        ]
        longest = max((int(ends[-1]) for ends in self._ends if len(ends)), default=0)
        self.num_steps = self.first_step + longest

    def __len__(self) -> int:
        return self.num_steps * self.num_shards

    def __getitem__(self, index: int) -> Dict:
        """
        Raises:
            IndexError: there is no such batch, which is what ends a loop over the dataset
        """
        step, shard = divmod(index, self.num_shards)
        if not self.first_step <= step < self.num_steps:
            raise IndexError(f"batch {index} of {len(self)}")
        streams = range(shard, len(self.streams), self.num_shards)
        segments = [(stream, self._segment(stream, step)) for stream in streams]
        segments = [(s, segment) for s, segment in segments if segment is not None] or segments[:1]
        rows = [self._read(*segment) for segment in segments]
        earlier = [self._earlier(*segment) for segment in segments]
        fresh = torch.tensor([segment is not None and segment.is_first for _, segment in segments])
        taken_over = torch.tensor([len(before) > 0 for before in earlier])
        nothing = rows[0].of_no_tokens()
        return {
            "id": torch.tensor([row.document for row in rows]),
            "position": torch.tensor([row.position for row in rows]),
            "nsentences": len(rows),
            "ntokens": sum(len(row.target) - row.overlap for row in rows),
            # where fairseq's SequenceScorer begins to score
            "start_indices": [row.overlap for row in rows],
            "net_input": self._net_input(rows, fresh & ~taken_over),
            "target": _pad_right([row.target for row in rows], self.pad),
            "earlier": [
                self._net_input(before, taken_over & (number == 0))
                for number, before in enumerate(zip_longest(*earlier, fillvalue=nothing))
            ],
        }

    def _net_input(self, rows: Sequence[_Row], new_document: Tensor) -> Dict[str, Tensor]:
        return {
            "src_tokens": _pad_right([row.source for row in rows], self.pad),
            "new_document": new_document,
            "overlap": torch.tensor([row.overlap for row in rows]),
        }

    def _segment(self, stream: int, step: int) -> Optional[_Segment]:
        ends, step = self._ends[stream], step - self.first_step
        number = int(np.searchsorted(ends, step, side="right"))
        if number == len(ends):
            return None
        piece = self.streams[stream][number]
        before = int(ends[number - 1]) if number else 0
        start = piece.start + (step - before) * self.stride
        continues = step == 0 and self.continued[stream] is not None
        return _Segment(piece, start, start == piece.start and not continues)

    def _earlier(self, stream: int, segment: Optional[_Segment]) -> List[_Row]:
        """The segments before one whose stream takes a piece over, T tokens each."""
        if segment is None or not segment.is_first:
            return []
        piece, start, stride = segment.piece, segment.start, self.stride
        remembered = -(-self.memory_size // stride) * stride  # in whole segments
        first = max(self._begins[piece.document, piece.stop], start - remembered)
        return [self._read(stream, segment._replace(start=a)) for a in range(first, start, stride)]

    def _read(self, stream: int, segment: Optional[_Segment]) -> _Row:
        if segment is None:
            return _Row(-1, -1, torch.empty(0).long(), torch.empty(0).long(), 0)
        piece, start, _ = segment
        # an indexed dataset only gives whole documents: keep the one that this stream is reading
        if self._open.get(stream, (None,))[0] != piece.document:
            self._open[stream] = (piece.document, self.documents[piece.document])
        tokens: Tensor = self._open[stream][1]
        position = max(0, start - self.segment_overlap)
        stop, overlap = min(start + self.stride, piece.stop), start - position
        before = tokens[position - 1 : position].long() if position else torch.tensor([self.bos])
        source = torch.cat([before, tokens[position : stop - 1].long()])
        target = torch.cat([torch.full((overlap,), self.pad), tokens[start:stop].long()])
        return _Row(piece.document, position, source, target, overlap)


def _pad_right(rows: Sequence[Tensor], pad: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
