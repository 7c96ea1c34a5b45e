"""Reading texts segment by segment, as evaluation does.

B texts, T tokens, t tokens of a segment, H heads, D head_dim, V vocabulary.
"""

from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from tqdm import tqdm

from longmem_fairseq.api.passages import Passage, read_passages
from longmem_fairseq.memory import MemoryBank, MemoryFork
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.models.reading import Lookup
from longmem_fairseq.modules import Pointer, token_losses
from longmem_fairseq.tokenizers import Tokenizer

THIS_TEXT = "this text"  # the name of passages of the text that is being read

# is shown the passages that were found, the pointer, the bank that holds them, and the number of tokens
# that were read
Look = Callable[[Lookup, Optional[Pointer], MemoryBank, int], None]


class TokenScores(NamedTuple):
    """The tokens of a text, which joined are the text, and the log-probability (nats) of each."""

    tokens: List[str]
    log_probs: Tensor


class TokenReading(NamedTuple):
    """A token, and the passages that were read to predict it: by head, the weightiest first."""

    token: str
    passages: List[Passage]


def progress_bar(name: str, wanted: bool, total: Optional[int] = None) -> tqdm:
    """A bar that counts tokens, on a terminal."""
    return tqdm(
        desc=name, total=total, unit="tok", unit_scale=True, disable=None if wanted else True
    )


def read_segments(
    decoder: MemoryDecoder,
    tokens: Tensor,
    fork: Optional[MemoryFork] = None,
    look: Optional[Look] = None,
    progress: bool = False,
) -> Iterator[Tensor]:
    """The logits of every segment, B x t x V, without those of tokens that the segment before has too.

    Every row is a text of its own, which sees what the fork remembers and its own segments before.

    Args:
        tokens: B x T
        fork: the memory, of B hypotheses (default: each segment is all that is seen)
        look: is shown the passages that every segment found, for all of its tokens
        progress: show a bar
    """
    retrieve, left = None if fork is None else fork.retrieve, tokens.size(1)
    with progress_bar("reading", progress, tokens.size(1)) as bar:
        for segment, overlap in decoder.segments(tokens):
            memorized = torch.full((tokens.size(0),), overlap, device=tokens.device)
            reading = decoder.read(segment, retrieve, first=overlap, memorized=memorized)
            if look is not None and fork is not None:
                look(reading.lookup, reading.pointer, fork.bank, segment.size(1))
            new = slice(overlap, None)
            left -= segment.size(1) - overlap
            if fork is not None and left > 0:
                fork.write(**reading.entries.of_tokens(new)._asdict(), token_ids=segment[:, new])
            bar.update(segment.size(1) - overlap)
            yield reading.scores


@torch.no_grad()
def token_scores(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    tokens: Tensor,
    fork: Optional[MemoryFork],
    progress: bool,
    special_tokens: bool,
) -> TokenScores:
    """The log-probability of every token of a text but the first.

    Args:
        tokens: 1 x T, see :func:`document_tokens`
        fork: the memory, None for none
        progress, special_tokens: see :meth:`LongMem.score`

    Raises:
        ValueError: there is one token alone
    """
    source, target = _source_and_target(tokens)
    segments = read_segments(decoder, source, fork, progress=progress)
    targets = target.split(decoder.window - decoder.overlap, dim=1)
    losses = [
        token_losses(logits, expected, tokenizer.dictionary.pad())
        for logits, expected in zip(segments, targets, strict=True)
    ]
    pieces = tokenizer.pieces(target[0].tolist(), special_tokens)
    return TokenScores(pieces, -torch.cat(losses, dim=1)[0].cpu())


@torch.no_grad()
def token_readings(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    tokens: Tensor,
    fork: MemoryFork,
    per_head: Optional[int],
    progress: bool,
    special_tokens: bool,
) -> List[TokenReading]:
    """The passages that were read to predict every token of a text but the first.

    Args:
        tokens: 1 x T, see :func:`document_tokens`
        per_head, progress, special_tokens: see :meth:`LongMem.retrieved`

    Raises:
        ValueError: there is one token alone
    """
    source, target = _source_and_target(tokens)
    passages: List[List[Passage]] = []
    of_segment: List[List[Passage]] = []  # those of the overlap with the one before included

    def look(*lookup):
        of_segment[:] = read_passages(*lookup, decoder.memory_attention, tokenizer, per_head)

    for scores in read_segments(decoder, source, fork, look, progress):
        passages += of_segment[-scores.size(1) :]
    pieces = tokenizer.pieces(target[0].tolist(), special_tokens)
    return [TokenReading(*token) for token in zip(pieces, passages, strict=True)]


@torch.no_grad()
def logits_of_ids(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    token_ids: Union[Tensor, Sequence[Sequence[int]]],
    make_fork: Callable[[int], Optional[MemoryFork]],
) -> Tensor:
    """The logits after each of B x T ids, B x T x V; see :meth:`LongMem.logits`.

    Args:
        make_fork: gives the memory of so many texts

    Raises:
        ValueError: they are not B x T ids
    """
    device, ids = next(decoder.parameters()).device, tokenizer.ids
    tokens = torch.as_tensor(token_ids, device=device)
    size = len(tokenizer.dictionary) if ids is None else ids.num_ids
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"token_ids of shape {tuple(tokens.shape)}, expected B x T")
    if tokens.is_floating_point() or tokens.min() < 0 or tokens.max() >= size:
        raise ValueError(f"token_ids must be whole numbers from 0 to {size - 1}")
    tokens, fork = tokens.long(), make_fork(tokens.size(0))
    if ids is None:
        return torch.cat(list(read_segments(decoder, tokens, fork)), dim=1)
    index = torch.from_numpy(ids.to_dictionary).long().to(device)
    return torch.cat(list(read_segments(decoder, index[tokens], fork)), dim=1)[..., index]


def _source_and_target(tokens: Tensor) -> Tuple[Tensor, Tensor]:
    if tokens.size(1) < 2:
        raise ValueError("the text is nothing but the beginning of a document")
    return tokens[:, :-1], tokens[:, 1:]
