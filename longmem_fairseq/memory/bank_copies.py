"""Banks made of banks: copies, two in one, and one without a document.

N banks, H heads, T tokens, D head_dim, E dimensions of a search key.
"""

from typing import Iterator, List, Sequence, Tuple

from longmem_fairseq.memory.bank_layout import CONTENTS, check_fingerprint
from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.pending_tokens import Tokens
from longmem_fairseq.memory.token_log import Source

CHUNKS_AT_ONCE = 4096


def select_banks(bank: MemoryBank, numbers: Sequence[int]) -> MemoryBank:
    """A new bank with a stream for each of *numbers*, which starts as a copy of that bank.

    With the same options, but for scope ``stream``.
    """
    sizes = {**bank.layout.header(), "num_streams": len(numbers), "scope": "stream"}
    selected = type(bank)(**sizes, **bank.placement)
    for stream, number in enumerate(numbers):
        copy_bank(selected, stream, bank, number)
    return selected


def copy_bank(bank: MemoryBank, stream: int, other: MemoryBank, number: int) -> None:
    """Makes a stream of *bank*, of scope ``stream``, like bank *number* of one of the same options."""
    bank.ring.leave_file(bank.num_written)
    bank.ring.copy_bank(stream, other.ring, number, other.num_written[number])
    bank.pending.copy_bank(stream, other.pending, number)
    bank.num_written[stream] = other.num_written[number]
    bank.logs[stream] = other.logs[number].copy()


def extend_bank(bank: MemoryBank, other: MemoryBank) -> None:
    """Appends everything that *other* holds to *bank*, oldest first.

    An incomplete chunk of *bank* is completed by the first tokens of *other*, so that none is lost or
    padded; the chunks of *other* are then cut at other tokens than they were. With search ``hidden``
    every token of a chunk of *other* has the chunk's search key: its own where chunks have one token.

    Raises:
        ValueError: the banks differ in something that their keys depend on, are the same, or *other* is
            split over processes; or, an ArgumentError, the index of *bank* cannot make room. *bank* is
            left as it was
    """
    if other is bank:
        raise ValueError("a memory cannot be extended by itself")
    bank.layout.check_same(other.layout.header(), ("num_streams", "scope", *CONTENTS))
    check_fingerprint("a memory", other.layout.fingerprint, bank.layout.fingerprint)
    bank.make_room([len(other.held(number)) for number in range(other.layout.num_banks)])
    for number in range(other.layout.num_banks):
        held = other.held(number)
        if len(held) > 0:
            _append_tokens(bank, other, number, held, other.logs[number].sources_from(held.start))


def forget_document(bank: MemoryBank, name: str) -> int:
    """Removes document *name* from every bank, as if it had never been written.

    The tokens of later documents move up, so chunks are cut at other tokens; oldest tokens that made
    room for the document do not come back.

    Returns:
        how many of its tokens were held

    Raises:
        ValueError: there are other documents, and the bank is split over processes
    """
    forgotten = 0
    rest = type(bank)(**bank.layout.header(), **bank.placement)
    for number, log in enumerate(bank.logs):
        rest.ring.copy_bank(number, bank.ring, number, num_written=0)  # an index stays trained
        rest.ring.reset(number)
        for source, tokens in log.parts(bank.held(number)):
            if source.name == name:
                forgotten += len(tokens)
            else:
                _append_tokens(rest, bank, number, tokens, [source])
    if forgotten == 0:
        return 0
    for row in range(bank.layout.num_streams):
        number = bank.layout.bank_of(row)
        sources = bank.logs[number].sources
        if sources and sources[-1].name == name:  # its next tokens continue nothing
            bank.pending.in_document[row] = False
            rest.logs[number].sources.append(Source(rest.held(number).stop, None, 0))
        elif sources and sources[-1].first == bank.held(number).stop:  # begun, without tokens yet
            rest.logs[number].sources.append(sources[-1]._replace(first=rest.held(number).stop))
    bank.ring, bank.logs, bank.num_written = rest.ring, rest.logs, rest.num_written
    bank.pending.take_over(rest.pending)
    return forgotten


def _append_tokens(
    bank: MemoryBank, other: MemoryBank, number: int, tokens: range, sources: List[Source]
) -> None:
    """Appends some tokens of a bank of *other* to that bank of *bank*, and where they came from."""
    moved = bank.held(number).stop - tokens.start
    for some in _read_tokens(other, number, tokens):
        bank.append(number, some)
    for source in sources:
        bank.logs[number].sources.append(source._replace(first=source.first + moved))


def _read_tokens(bank: MemoryBank, number: int, tokens: range) -> Iterator[Tokens]:
    """Some of the tokens that a bank holds, a part at a time."""
    size, log = bank.layout.chunk_size, bank.logs[number]
    whole = bank.num_written[number] * size  # tokens in chunks
    for part, chunks in _chunks_of(range(tokens.start, min(tokens.stop, whole)), size):
        inside = slice(part.start - chunks.start * size, part.stop - chunks.start * size)
        keys, values, search_keys = bank.ring.read(number, chunks)
        yield Tokens(keys[:, inside], values[:, inside], search_keys[inside], log.read(part))
    part = range(max(tokens.start, whole), max(tokens.stop, whole))
    inside = slice(part.start - whole, part.stop - whole)
    yield Tokens(*bank.pending.waiting(number, inside), log.read(part))


def _chunks_of(tokens: range, size: int) -> Iterator[Tuple[range, range]]:
    """Parts of some tokens, and the numbers of the chunks of *size* tokens that hold them."""
    stop = -(-tokens.stop // size)
    for start in range(tokens.start // size, stop, CHUNKS_AT_ONCE):
        chunks = range(start, min(start + CHUNKS_AT_ONCE, stop))
        first, last = chunks.start * size, chunks.stop * size
        yield range(max(tokens.start, first), min(tokens.stop, last)), chunks
