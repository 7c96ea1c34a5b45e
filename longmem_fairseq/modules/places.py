"""Places that resemble the one to be predicted, in memory and in the window, and the tokens that came
next there.

B streams, T tokens, P tokens of the window that were read before, K places of a query, E numbers of a
search key, M tokens of a context.
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from longmem_fairseq.memory import Retrieved

MATCH_LENGTHS = (1, 2, 4, 8, 16, 32)  # tokens from which on a literal match counts for more
IN_WINDOW = 32  # places of the window for each query
NEAREST = (
    32  # tokens between a place and its query: nearer ones make a generated text repeat itself
)
# what equal tokens add to a similarity, when places of the window are chosen: the last two, and three
LITERAL = ((2, 0.5), (3, 0.5))


class Places(NamedTuple):
    """K places of every query; each tensor is B x T x K.

    similarities: of the query and the state before the place, -inf where there is no place
    ids: the tokens that stand there; any where there is no place
    match_classes: how many of MATCH_LENGTHS the tokens before it reach that equal the query's
    near: whether it is in the window
    """

    similarities: Tensor
    ids: Tensor
    match_classes: Tensor
    near: Tensor

    def and_those(self, others: "Places") -> "Places":
        """The places of both."""
        return Places(*(torch.cat(both, dim=-1) for both in zip(self, others, strict=True)))


def contexts_of(tokens: Tensor, before: Optional[Tensor] = None) -> Tensor:
    """Every token and those before it, B x T x M, the newest first; -1 where there are none.

    Args:
        tokens: B x T
        before: the tokens before these, B x P
    """
    past, length = (
        tokens if before is None else torch.cat([before, tokens], dim=1),
        MATCH_LENGTHS[-1],
    )
    # one window more than there are tokens: unfold takes no tensor shorter than a window
    windows = F.pad(past, (length, 0), value=-1).unfold(1, length, 1)
    return windows[:, windows.size(1) - tokens.size(1) :].flip(-1)  # B x T x M


def places_of(
    found: Retrieved,
    search_keys: Tensor,
    tokens: Tensor,
    num_new: int,
    memorized: Optional[Tensor] = None,
) -> Places:
    """The places of the last *num_new* tokens in memory and, of those that found some there, in the
    window: with an empty memory a model without a SideNet is its backbone, exactly.

    Args:
        found: in memory, by those tokens and some before
        search_keys, tokens, memorized: see :func:`places_in_window`
    """
    in_memory = places_in_memory(found.from_query(found.scores.size(1) - num_new))
    in_window = places_in_window(search_keys, tokens, num_new, memorized)
    nothing = in_memory.similarities.isneginf().all(dim=-1, keepdim=True)
    similarities = in_window.similarities.masked_fill(nothing, -torch.inf)
    return in_memory.and_those(in_window._replace(similarities=similarities))


def places_in_memory(found: Retrieved) -> Places:
    """The places that T tokens retrieved."""
    similarities = found.scores.repeat_interleave(found.store.chunk_size, dim=-1)
    ids = found.token_ids
    near = torch.zeros_like(ids, dtype=torch.bool)
    similarities = similarities.masked_fill(ids < 0, -torch.inf)
    return Places(similarities, ids.clamp(min=0), _classes(found.matches), near)


def places_in_window(
    search_keys: Tensor, tokens: Tensor, num_new: int, memorized: Optional[Tensor] = None
) -> Places:
    """For each of the last T tokens the places, at least NEAREST before it, that resemble it most, or
    are after the same two or three tokens; fewer than IN_WINDOW in a short window.

    Args:
        search_keys: B x (P + T) x E
        tokens: B x (P + T)
        num_new: T
        memorized: B, how many of the first tokens are in memory, and not to be found twice
    """
    length, start = tokens.size(1), tokens.size(1) - num_new
    if length == 0:  # a row without tokens has places of its own shape, for the gradients
        nothing = tokens.new_zeros(len(tokens), 0, 1)
        return Places(nothing.float(), nothing, nothing, nothing.bool())
    rows = torch.arange(start, length, device=tokens.device).unsqueeze(1)
    columns = torch.arange(length, device=tokens.device)
    # column j is the place of token j, which is after state j - 1
    there = ((columns > 0) & (columns <= rows - NEAREST)).unsqueeze(0)  # 1 x T x (P + T)
    if memorized is not None:
        there = there & (columns >= memorized.unsqueeze(1)).unsqueeze(1)
    before = F.pad(search_keys, (0, 0, 1, 0))[:, :-1]
    similarities = search_keys[:, start:] @ before.transpose(1, 2)
    wanted = similarities + _literal(tokens, start)
    count = min(IN_WINDOW, length)
    best, columns = wanted.masked_fill(~there, -torch.inf).topk(count, dim=-1)  # B x T x K
    similarities = similarities.gather(-1, columns).masked_fill(best.isneginf(), -torch.inf)
    ids = tokens.unsqueeze(1).expand(-1, num_new, -1).gather(-1, columns)
    near = torch.ones_like(ids, dtype=torch.bool)
    return Places(similarities, ids, _classes(_matches(tokens, start, columns)), near)


def _literal(tokens: Tensor, start: int) -> Tensor:
    """What the places of all tokens gain by equal tokens before them, B x T x (P + T)."""
    equal, gain = None, 0.0
    for back in range(LITERAL[-1][0]):
        # of the token back before the place and the one back before the prediction
        ends = F.pad(tokens, (back, 0), value=-1)[:, start : tokens.size(1)]
        before = F.pad(tokens, (back + 1, 0), value=-2)[:, : tokens.size(1)]
        same = ends.unsqueeze(2) == before.unsqueeze(1)
        equal = same if equal is None else equal & same
        for least, weight in LITERAL:
            if back + 1 == least:
                gain = gain + weight * equal
    return gain


def _matches(tokens: Tensor, start: int, columns: Tensor) -> Tensor:
    """How many tokens before the places *columns* equal those before the prediction, B x T x K."""
    contexts = contexts_of(tokens)  # B x (P + T) x M
    before = F.pad(contexts, (0, 0, 1, 0), value=-2)[:, :-1]
    rows = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1)
    equal = before[rows, columns] == contexts[:, start:].unsqueeze(2)  # B x T x K x M
    known = contexts[:, start:].unsqueeze(2) >= 0
    return (equal & known).int().cumprod(dim=-1).sum(dim=-1)


def _classes(matches: Tensor) -> Tensor:
    """How many of MATCH_LENGTHS a number of equal tokens reaches."""
    lengths = torch.tensor(MATCH_LENGTHS, device=matches.device)
    return torch.bucketize(matches.contiguous(), lengths, right=True)
