"""The passages that a model read in its memory, for people.

H heads, H' of them with keys and values for G heads each, T tokens, D head_dim, R chunks retrieved per
query of c tokens each, K = R * c.
"""

from typing import Dict, List, NamedTuple, Optional

from torch import Tensor

from longmem_fairseq.memory import MemoryBank, Retrieved
from longmem_fairseq.models.reading import Lookup
from longmem_fairseq.modules import JointAttention, Pointer, memory_weights
from longmem_fairseq.tokenizers import Tokenizer

CONTEXT = 8  # tokens that are shown before and after a chunk


class Passage(NamedTuple):
    """A chunk that one head read for one token.

    head: number of the head; 0 where a pointer reads memory
    gate: the head's weight of memory against the local window, 0 to 1; or the pointer's weight
    weight: the chunk's share of the head's attention to memory, 0 to 1; or of the pointer
    score: inner product of query and search key, by which the chunk was found
    document: its name, None if it has none
    offset: tokens of the document before this chunk
    before, text, after: the chunk's text, and the text around it in its document. A chunk in which
        another document begins ends there
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


class _Shares(NamedTuple):
    """The attention of H heads to R chunks for each of the last T tokens, H x T x R, and their gates,
    H x T."""

    weights: Tensor
    scores: Tensor
    chunks: Tensor
    gates: Tensor


def read_passages(
    lookup: Lookup,
    pointer: Optional[Pointer],
    bank: MemoryBank,
    num_tokens: int,
    attention: Optional[JointAttention],
    tokenizer: Tokenizer,
    per_head: Optional[int] = None,
) -> List[List[Passage]]:
    """The passages that each token read, by head, those with the largest weights first.

    Args:
        lookup: the search for the tokens in the first stream of *bank*
        pointer: of the last of the tokens
        num_tokens: T
        attention: of the layer that reads memory, of which the gates of heads that retrieve together
            are averaged; not looked at where there is a pointer, by which far more is read
        tokenizer: of the token ids in the bank's log
        per_head: at most so many of each head (default: all)
    """
    if lookup.found is None:
        return [[] for _ in range(num_tokens)]
    if pointer is not None:
        shares = _pointed_to(lookup.found, pointer)
    else:
        shares = _attended(lookup, num_tokens, attention)
    count = min(per_head or shares.weights.size(-1), shares.weights.size(-1))
    best = shares.weights.topk(count, dim=-1).indices  # H x T x count
    parts = (shares.chunks, shares.weights, shares.scores)
    chunks, weights, scores = (part.gather(-1, best).tolist() for part in parts)
    gates = shares.gates.tolist()
    places: Dict[int, tuple] = {}
    tokens = [[] for _ in range(num_tokens - shares.weights.size(1))]
    for t in range(shares.weights.size(1)):
        passages = []
        for head in range(len(chunks)):
            places_read = zip(chunks[head][t], weights[head][t], scores[head][t], strict=True)
            for slot, weight, score in places_read:
                if slot < 0:
                    continue
                if slot not in places:
                    places[slot] = _place(bank, slot, tokenizer)
                passages.append(Passage(head, gates[head][t], weight, score, *places[slot]))
        tokens.append(passages)
    return tokens


def _attended(lookup: Lookup, num_tokens: int, attention: JointAttention) -> _Shares:
    """By the heads of the layer that attends to memory."""
    queries, found = lookup.queries, lookup.found  # queries 1 x H' x G * T x D
    if found.scores is None:
        weights, scores = memory_weights(queries, found)
        gates = attention.gate.view(1, -1, 1, 1)
    else:
        group = queries.size(2) // num_tokens
        queries = queries.unflatten(2, (group, num_tokens)).flatten(1, 2)  # 1 x H x T x D
        found = found.for_heads(group)
        queries, bias, gates = attention.reads(queries, found)
        weights, _ = memory_weights(queries, found, bias)
        scores = found.scores.unsqueeze(1).expand(weights.shape)
    by_head = (
        tensor[0].unflatten(1, (-1, num_tokens)).flatten(0, 1)
        for tensor in (weights, scores, found.chunks)
    )
    weights, scores, chunks = by_head
    # those of heads that retrieve together are averaged
    gates = gates[0, :, :, 0].unflatten(0, (len(weights), -1)).mean(dim=1)
    gates = gates.expand(-1, num_tokens)
    return _Shares(weights, scores, chunks, gates)


def _pointed_to(found: Retrieved, pointer: Pointer) -> _Shares:
    """By the pointer, as the only head; places in the window are no passages."""
    num_tokens = pointer.shares.size(1)
    shares = pointer.shares[:1, :, : found.token_ids.size(-1)]  # 1 x T x K
    weights = shares.unflatten(-1, (-1, found.store.chunk_size)).sum(dim=-1)  # 1 x T x R
    scores, chunks = found.scores[:1, -num_tokens:], found.chunks[:1, 0, -num_tokens:]
    return _Shares(weights, scores, chunks, pointer.log_weight[:1].exp())


def _place(bank: MemoryBank, slot: int, tokenizer: Tokenizer) -> tuple:
    """Document, offset, and the texts before, in and after a chunk, which end where the document of
    its first token ends."""
    log, held = bank.logs[0], bank.held(0)
    first = bank.first_token(0, slot)
    source, *later = log.sources_from(first)
    begin = max((s.first for s in log.sources if s.first <= first), default=0)
    end = min((s.first for s in later if s.first > first), default=held.stop)
    stop = min(first + bank.layout.chunk_size, end)
    parts = (
        range(max(held.start, begin, first - CONTEXT), first),
        range(first, stop),
        range(stop, min(stop + CONTEXT, end)),
    )
    texts = (tokenizer.decode(log.read(part).tolist()) for part in parts)
    return source.name, max(0, source.offset), *texts
