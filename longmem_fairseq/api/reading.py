"""Reading texts segment by segment, as evaluation does.

B texts, T tokens, t tokens of a segment, H heads, D head_dim, V vocabulary.
"""

from typing import Callable, Iterator, Optional

from torch import Tensor
from tqdm import tqdm

from longmem_fairseq.memory import MemoryBank, MemoryFork
from longmem_fairseq.models.memory_decoder import Lookup, MemoryDecoder
from longmem_fairseq.modules import Pointer

# is shown what was found, the pointer, the bank in which it was found, and how many tokens were read
Look = Callable[[Lookup, Optional[Pointer], MemoryBank, int], None]


def progress_bar(what: str, wanted: bool, total: Optional[int] = None) -> tqdm:
    """A bar that counts tokens, on a terminal."""
    return tqdm(
        desc=what, total=total, unit="tok", unit_scale=True, disable=None if wanted else True
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
        look: is shown what every segment found, for all of its tokens
        progress: show a bar
    """
    retrieve, left = None if fork is None else fork.retrieve, tokens.size(1)
    with progress_bar("reading", progress, tokens.size(1)) as bar:
        for segment, overlap in decoder.segments(tokens):
            reading = decoder.read(segment, retrieve, first=overlap)
            if look is not None and fork is not None:
                look(reading.lookup, reading.pointer, fork.bank, segment.size(1))
            new = slice(overlap, None)
            left -= segment.size(1) - overlap
            if fork is not None and left > 0:
                fork.write(**reading.entries.of_tokens(new)._asdict(), token_ids=segment[:, new])
            bar.update(segment.size(1) - overlap)
            yield reading.scores
