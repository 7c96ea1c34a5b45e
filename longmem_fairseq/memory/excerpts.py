"""Excerpts of a memory that share words with a query, found by their token ids alone.

The search of the bank finds the places that resemble one token; this one finds, for a whole question,
what its words occur in, to be read again in the window.

Q tokens of a query, n tokens in memory, V vocabulary.
"""

from typing import List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.token_log import Source

BLOCK = 32  # tokens; an excerpt can begin at every block
# of a match, by its block of the excerpt: of those that hold it, one with text before and more after it
WEIGHTS = (0.9, 1.0, 0.9, 0.8)
LENGTH = BLOCK * len(WEIGHTS)  # tokens of an excerpt
LEAST = 1 / 3  # of the best score: excerpts with less are left out
QUERY = 128  # tokens of a query that are looked for: the last ones


class Excerpt(NamedTuple):
    """Tokens of one document that stand together.

    source: the document, and where in it the excerpt begins
    tokens: numbered from the bank's last reset, see :meth:`TokenLog.read`
    score: see :func:`excerpt_scores`; the best, where several excerpts met
    """

    source: Source
    tokens: range
    score: float


def find_excerpts(
    bank: MemoryBank, row: int, query: Tensor, max_tokens: int, words: Optional[Tensor] = None
) -> List[Excerpt]:
    """The excerpts that share most with a query, in the order of the memory.

    Args:
        row: the bank that is searched
        query: Q token ids
        max_tokens: of all together, at most
        words: V numbers, equal for tokens that count as the same (default: none do)
    """
    log, held = bank.logs[row], bank.held(row)
    if len(held) == 0:
        return []
    ids, query = log.read(held), query[-QUERY:].cpu()
    if words is not None:
        ids, query = words[ids], words[query]
    begins = torch.zeros(len(ids), dtype=torch.bool)
    begins[[source.first - held.start for source, _ in log.parts(held)]] = True
    scores = excerpt_scores(ids, begins, query)
    excerpts = []
    for first, stop, score in chosen(scores, len(ids), max_tokens):
        for source, tokens in log.parts(range(held.start + first, held.start + stop)):
            excerpts.append(Excerpt(source, tokens, score))
    return excerpts


def excerpt_scores(ids: Tensor, begins: Tensor, query: Tensor) -> Tensor:
    """How much each excerpt shares with a query: for every token of the query, the weight of the
    heaviest run of tokens that ends with it and stands in the excerpt too, times WEIGHTS. A token
    weighs the more, the fewer of the N blocks of the memory have it: log((N + 1) / (blocks + 1/2)), as
    in BM25 (Robertson and Zaragoza 2009). So words that are everywhere count for nothing.

    Args:
        ids: of n tokens, at least one
        begins: which of them begin a document, over whose beginning no run goes
        query: Q token ids

    Returns:
        a score for the excerpt at every BLOCK tokens, zero where nothing is shared
    """
    num_blocks = -(-len(ids) // BLOCK)
    scores, runs = torch.zeros(num_blocks), torch.zeros(len(ids))
    weights = torch.tensor(WEIGHTS)

    def in_blocks(of_tokens: Tensor) -> Tensor:
        rest = num_blocks * BLOCK - len(ids)
        return F.pad(of_tokens, (0, rest)).view(num_blocks, BLOCK).amax(dim=1)

    for token in query:
        same = ids == token
        count = in_blocks(same.float()).sum()
        weight = max(0.0, float(torch.log((num_blocks + 1) / (count + 0.5))))
        before = F.pad(runs[:-1], (1, 0)).masked_fill(begins, 0.0)
        runs = torch.where(same, before + weight, 0.0)
        blocks = in_blocks(runs)
        by_excerpt = F.pad(blocks, (0, len(WEIGHTS) - 1)).unfold(0, len(WEIGHTS), 1)
        scores += (by_excerpt * weights).amax(dim=1)
    return scores


def chosen(scores: Tensor, num_tokens: int, max_tokens: int) -> List[tuple]:
    """First token, stop and score of the best excerpts that fit *max_tokens*, in order; of equal ones
    the latest, which may correct the others. Those that follow each other become one.

    Args:
        scores: of the excerpt at every BLOCK of *num_tokens* tokens
    """
    taken: List[int] = []
    least = LEAST * float(scores.max())
    for block in (len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)).tolist():
        if scores[block] <= 0 or scores[block] < least:
            break
        if any(abs(block - other) < len(WEIGHTS) for other in taken):
            continue  # a part of it is there already
        if (len(taken) + 1) * LENGTH > max_tokens:
            break
        taken.append(block)
    spans: List[tuple] = []
    for block in sorted(taken):
        first, score = block * BLOCK, float(scores[block])
        stop = min(first + LENGTH, num_tokens)
        if spans and first == spans[-1][1]:
            first, _, best = spans.pop()
            score = max(score, best)
        spans.append((first, stop, score))
    return spans
