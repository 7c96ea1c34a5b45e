"""Scoring many texts side by side, each with as much of itself in the window as there is room for.

B rows, T tokens, V vocabulary, W window, O of it overlap with the segment before, n tokens of a row
are scored.
"""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.memory import MemoryFork
from longmem_fairseq.modules.rotary_scaling import length_that_counts


class Row(NamedTuple):
    """Dictionary indices of a text and its context, of which the last *scored* are scored.

    There has to be a token before those.
    """

    tokens: Tensor
    scored: int


class Scored(NamedTuple):
    """For each scored token its log-probability (nats), n, and the most likely tokens instead, the
    likeliest first, with theirs, n x top each."""

    log_probs: Tensor
    choices: Tensor
    choice_log_probs: Tensor


class _Plan(NamedTuple):
    """Where the last window of a row begins and ends, the first of the row's tokens that is scored, and
    how far segments are read before the last window.

    The window's tokens are those that predict: all of the row but the last.
    """

    begin: int
    stop: int
    first: int
    read: int

    @property
    def rolls(self) -> bool:
        """True where earlier segments are scored too."""
        return self.first < self.begin


@torch.no_grad()
def score_rows(lm: LongMem, rows: Sequence[Row], top: int = 1, memory: bool = True) -> List[Scored]:
    """Scores the last tokens of every row; the memory is afterwards as it was.

    A row that the window holds is read at once. Of a longer one the window holds the last W tokens,
    and the tokens before them go to a memory of its own, in segments of W that advance by W - O. If
    more is to be scored than the window holds, every segment is scored as it is read, and the last
    window, too, scores only the tokens after O. Without memory (``memory=False``, or
    a backbone) the window is all that is seen, which is how other models read.

    Args:
        rows: of a batch of :func:`batches`
        top: how many of the most likely tokens to name
        memory: read it, and write to the row's own copy of it
    """
    fork = lm.fork(len(rows)) if memory else None
    plans = [_plan(lm, row, fork) for row in rows]
    scored = [[] for _ in rows]
    stride = lm.window - lm.decoder.overlap
    for start in range(0, max(plan.read for plan in plans), stride):
        _score_segment(lm, rows, plans, start, fork, top, scored)
    _score_last(lm, rows, plans, fork, top, scored)
    return [Scored(*(torch.cat(parts) for parts in zip(*pieces, strict=True))) for pieces in scored]


def batches(
    lm: LongMem, lengths: Sequence[int], size: int, apart: Optional[int] = None
) -> Iterator[List[int]]:
    """The numbers of rows that are read together, at most *size* of them, the longest first.

    Rows that the window does not hold are not with others, whose memory would be copied too; nor are
    rows of different lengths for a model whose positions depend on the length of the text.

    Args:
        lengths: tokens of every row
        apart: most tokens between the longest and the shortest of a batch (default: any number)
    """

    def kind(i: int) -> Tuple[bool, int]:
        read = min(lengths[i] - 1, lm.window)
        return lengths[i] - 1 > read, length_that_counts(lm.decoder.rotary_rule, read)

    batch: List[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            far = apart is not None and lengths[batch[0]] - lengths[i] > apart
            if len(batch) == size or far or kind(i) != kind(batch[0]):
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def _plan(lm: LongMem, row: Row, fork: Optional[MemoryFork]) -> _Plan:
    stop, overlap = len(row.tokens) - 1, lm.decoder.overlap
    begin, stride = max(0, stop - lm.window), lm.window - overlap
    if begin > 0 and fork is not None:
        # tokens of an incomplete chunk would be neither in memory nor in the window
        begin += -(fork.bank.num_pending[0] + begin) % fork.bank.layout.chunk_size
    first, read = stop - row.scored, begin
    if first < begin:
        read = min(stop, -(-(begin + overlap) // stride) * stride)
    return _Plan(begin, stop, first, read)


def _score_segment(
    lm: LongMem,
    rows: Sequence[Row],
    plans: Sequence[_Plan],
    start: int,
    fork: Optional[MemoryFork],
    top: int,
    scored: List[List],
) -> None:
    """Reads the segments that predict from *start* on, before the last window, and memorizes them."""
    overlap = min(lm.decoder.overlap, start)
    length = lm.window - lm.decoder.overlap
    ends = [min(start + length, plan.stop) if plan.read > start else start for plan in plans]
    firsts = [
        max(plan.first, start) if plan.rolls else end for plan, end in zip(plans, ends, strict=True)
    ]
    segment = _padded(lm, rows, [start - overlap] * len(rows), ends)
    if any(first < end for first, end in zip(firsts, ends, strict=True)):
        retrieve = None if fork is None else fork.retrieve
        memorized = torch.full((len(rows),), overlap, device=segment.device)
        reading = lm.decoder.read(segment, retrieve, first=overlap, memorized=memorized)
        entries = reading.entries
        _score(reading.scores, rows, [start] * len(rows), firsts, ends, top, scored)
    elif fork is not None:
        entries = lm.decoder.entries(segment)
    if fork is not None:
        stops = torch.tensor([min(end, plan.begin) for plan, end in zip(plans, ends, strict=True)])
        places = start - overlap + torch.arange(segment.size(1))
        valid = (places >= start) & (places < stops.unsqueeze(1))  # B x T
        fork.write(**entries._asdict(), token_ids=segment, valid=valid)


def _score_last(
    lm: LongMem,
    rows: Sequence[Row],
    plans: Sequence[_Plan],
    fork: Optional[MemoryFork],
    top: int,
    scored: List[List],
) -> None:
    """Reads the last windows."""
    begins, stops = ([getattr(plan, name) for plan in plans] for name in ("begin", "stop"))
    firsts = [max(plan.first, plan.read) if plan.rolls else plan.first for plan in plans]
    skipped = min(first - begin for first, begin in zip(firsts, begins, strict=True))
    retrieve = None if fork is None else fork.retrieve
    reading = lm.decoder.read(_padded(lm, rows, begins, stops), retrieve, first=skipped)
    begins = [begin + skipped for begin in begins]
    _score(reading.scores, rows, begins, firsts, stops, top, scored)


def _padded(lm: LongMem, rows: Sequence[Row], begins: List[int], ends: List[int]) -> Tensor:
    """A part of each row, B x T."""
    parts = [row.tokens[b:e] for row, b, e in zip(rows, begins, ends, strict=True)]
    return pad_sequence(parts, batch_first=True, padding_value=lm.dictionary.pad()).to(lm.device)


def _score(
    logits: Tensor,
    rows: Sequence[Row],
    begins: List[int],
    firsts: List[int],
    stops: List[int],
    top: int,
    scored: List[List],
) -> None:
    """Adds to *scored*, for each row, the predictions of the tokens from *firsts* to *stops*.

    Args:
        logits: B x T x V, the first of each row being that of its token at *begins*
    """
    for i, (row, begin, first, stop) in enumerate(zip(rows, begins, firsts, stops, strict=True)):
        if first < stop:
            predicted = logits[i, first - begin : stop - begin].float().log_softmax(dim=-1)
            targets = row.tokens[first + 1 : stop + 1].to(predicted.device)
            likely, choices = predicted.topk(top, dim=-1)
            log_probs = predicted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            scored[i].append((log_probs.cpu(), choices.cpu(), likely.cpu()))
