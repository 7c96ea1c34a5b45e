"""What a model read in its memory, for people.

H heads, T tokens, D head_dim, R chunks retrieved per query.
"""

from typing import Dict, List, NamedTuple, Optional

from torch import Tensor

from longmem_fairseq.memory import MemoryBank, Retrieved
from longmem_fairseq.modules import memory_weights
from longmem_fairseq.tokenizers import Tokenizer

CONTEXT = 8  # tokens that are shown before and after a chunk


class Passage(NamedTuple):
    """A chunk that one head read for one token.

    head: number of the head
    gate: the head's weight of memory against the local window, 0 to 1
    weight: the chunk's share of the head's attention to memory, 0 to 1
    score: inner product of query and search key, by which the chunk was found
    document: name, None if nobody said
    offset: tokens of the document before this chunk
    before, text, after: the chunk's text, and what stands around it in its document
    """

    head: int
    gate: float
    weight: float
    score: float
    document: Optional[str]
    offset: int
    before: str
    text: str
    after: str


def read_passages(
    queries: Tensor,
    retrieved: Optional[Retrieved],
    bank: MemoryBank,
    num_tokens: int,
    gate: Tensor,
    tokenizer: Tokenizer,
    per_head: Optional[int] = None,
) -> List[List[Passage]]:
    """The passages that each token read, by head, those with the largest weights first.

    Args:
        queries: 1 x H' x G * T x D, of H' key/value heads for G heads each
        retrieved: what they found in the first stream of *bank*; None for nothing
        num_tokens: T
        gate: of every head; those of heads that retrieve together are averaged
        tokenizer: of the token ids in the bank's log
        per_head: at most so many of each head (default: all)
    """
    if retrieved is None:
        return [[] for _ in range(num_tokens)]
    found = (*memory_weights(queries, retrieved), retrieved.chunks)
    weights, scores, chunks = (t[0].unflatten(1, (-1, num_tokens)).flatten(0, 1) for t in found)
    gate = gate.view(len(weights), -1).mean(dim=1)
    count = min(per_head or weights.size(-1), weights.size(-1))
    weights, best = weights.topk(count, dim=-1)  # H x T x count
    chunks, scores = (t.gather(-1, best).tolist() for t in (chunks, scores))
    weights, gate = weights.tolist(), gate.tolist()
    places: Dict[int, tuple] = {}
    tokens = []
    for t in range(num_tokens):
        passages = []
        for head, head_gate in enumerate(gate):
            found = zip(chunks[head][t], weights[head][t], scores[head][t], strict=True)
            for slot, weight, score in found:
                if slot < 0:
                    continue
                if slot not in places:
                    places[slot] = _place(bank, slot, tokenizer)
                passages.append(Passage(head, head_gate, weight, score, *places[slot]))
        tokens.append(passages)
    return tokens


def _place(bank: MemoryBank, slot: int, tokenizer: Tokenizer) -> tuple:
    """Document, offset, and the texts before, in and after a chunk."""
    log, held = bank.logs[0], bank.held(0)
    first = bank.first_token(0, slot)
    stop = first + bank.chunk_size
    source, *later = log.sources_from(first)
    begin = max((s.first for s in log.sources if s.first <= first), default=0)
    end = later[0].first if later else held.stop
    parts = (
        range(max(held.start, begin, first - CONTEXT), first),
        range(first, stop),
        range(stop, max(stop, min(stop + CONTEXT, end))),
    )
    texts = (tokenizer.decode(log.read(part).tolist()) for part in parts)
    return source.name, max(0, source.offset), *texts
