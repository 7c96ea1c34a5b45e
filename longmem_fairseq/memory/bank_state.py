"""Copying, merging, saving and loading memory banks: methods of :class:`MemoryBank`.

N banks, B streams, H heads, D head_dim, E dimensions of a search key, S slots, c chunk_size in tokens,
n tokens.
"""

import copy
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longmem_fairseq.memory.bank_layout import CONTENTS, PENDING, check_fingerprint
from longmem_fairseq.memory.memory_file import write_memory_file
from longmem_fairseq.memory.shard_files import read_part, remove_other_parts
from longmem_fairseq.memory.token_log import UNKNOWN, Source
from longmem_fairseq.utils.replaced_file import Version

FILL = ("num_written", "num_pending", "sources", "in_document")
CHUNKS_AT_ONCE = 4096


def copy_stream(self, stream: int, other, bank: int) -> None:
    """Makes a stream of this bank, of scope ``stream``, a copy of a bank of another one.

    Args:
        other: of the same options
    """
    self._leave_file()
    stored = other.num_own_chunks[bank]
    buffers = {**self.store.buffers(), "chunk_keys": self.chunk_keys}
    for name, buffer in {**other.store.buffers(), "chunk_keys": other.chunk_keys}.items():
        buffers[name][stream, :, :stored] = buffer[bank, :, :stored]
    for name in PENDING:
        getattr(self, name)[stream] = getattr(other, name)[bank]
    writer = bank if other.layout.scope == "stream" else other.layout.num_streams - 1
    self.last_search[stream] = other.last_search[writer]
    self.in_document[stream] = other.in_document[writer]
    self.num_written[stream] = other.num_written[bank]
    self.num_pending[stream] = other.num_pending[bank]
    self.logs[stream] = copy.deepcopy(other.logs[bank])
    self.index.copy_bank(stream, other.index, bank)


def extend(self, other) -> None:
    """Appends everything that *other* holds to this bank, oldest first.

    An incomplete chunk of this bank is completed by the first tokens of *other*, so that none is lost
    or padded; the chunks of *other* are then cut at other tokens than they were. With search
    ``hidden`` every token of a chunk of *other* has the chunk's search key, its own where chunks are
    single tokens.

    Raises:
        ValueError: the banks differ in something that their keys depend on, are the same, or this
            one's index cannot make room; this bank is left as it was
    """
    if other is self:
        raise ValueError("a memory cannot be extended by itself")
    if other.num_shards > 1:
        raise ValueError("a memory cannot be extended by one that is split over processes")
    self.layout.check_same(other.layout.header(), ("num_streams", "scope", *CONTENTS))
    check_fingerprint("a memory", other.layout.fingerprint, self.layout.fingerprint)
    self._make_room([len(other.held(bank)) for bank in range(other.layout.num_banks)])
    for bank in range(other.layout.num_banks):
        held = other.held(bank)
        if len(held) > 0:
            _append_tokens(self, other, bank, held, other.logs[bank].sources_from(held.start))


def _append_tokens(self, other, bank: int, tokens: range, sources: List[Source]) -> None:
    """Appends some of the tokens of the same bank of another memory, and where they came from."""
    moved = self.held(bank).stop - tokens.start
    for source in sources:
        self.logs[bank].sources.append(source._replace(first=source.first + moved))
    for keys, values, search, part in _read_tokens(other, bank, tokens):
        self._append(bank, keys, values, search, other.logs[bank].read(part))


def _read_tokens(self, bank: int, tokens: range) -> Iterator[Tuple[Tensor, Tensor, Tensor, range]]:
    """Keys and values H x n x D, and search keys n x E, of some tokens, which n are which."""
    size, heads = self.layout.chunk_size, self.layout.num_heads
    whole = self.num_written[bank] * size
    last = min(tokens.stop, whole)
    for start in range(tokens.start // size, -(-last // size), CHUNKS_AT_ONCE):
        stop = min(start + CHUNKS_AT_ONCE, -(-last // size))
        slots = torch.arange(start, stop) % self.num_slots
        rows = self._first_rows(bank) + slots  # H x chunks
        shape = (heads, len(slots) * size, self.layout.head_dim)
        keys, values = (t.view(shape) for t in self.store.gather(rows.flatten()))
        search = self.chunk_keys[bank, 0, slots.to(self.chunk_keys.device)]
        if self.layout.reads_successors:
            search = search.repeat_interleave(size, dim=0)
        else:
            search = search.new_empty(len(slots) * size, 0)
        part = range(max(tokens.start, start * size), min(last, stop * size))
        inside = slice(part.start - start * size, part.stop - start * size)
        yield keys[:, inside], values[:, inside], search[inside], part
    part = range(max(tokens.start, whole), max(tokens.stop, whole))
    inside = slice(part.start - whole, part.stop - whole)
    waiting = (getattr(self, name)[bank] for name in PENDING)
    keys, values, search = (tensor[..., inside, :] for tensor in waiting)
    yield keys, values, search, part


def forget(self, name: str) -> int:
    """Removes document *name* from every bank, as if it had never been written.

    The tokens of later documents move up, so chunks are cut at other tokens; oldest tokens that made
    room for the document do not come back.

    Returns:
        how many of its tokens were held

    Raises:
        ValueError: the bank is split over processes
    """
    if self.num_shards > 1:
        raise ValueError(
            "a memory that is split over processes cannot forget a document: load it in one"
        )
    forgotten = 0
    new = self.select(range(self.layout.num_banks))
    new.reset()
    for bank, log in enumerate(self.logs):
        for source, tokens in log.parts(self.held(bank)):
            if source.name == name:
                forgotten += len(tokens)
            else:
                _append_tokens(new, self, bank, tokens, [source])
    if forgotten == 0:
        return 0
    self._leave_file()
    for row in range(self.layout.num_streams):
        bank = self.bank_of(row)
        sources = self.logs[bank].sources
        if sources and sources[-1].name == name:  # what comes next is nobody's continuation
            self.in_document[row] = False
            new.logs[bank].sources.append(Source(new.held(bank).stop, None, 0))
    contents = ("store", "chunk_keys", "index", "num_written", "num_pending", "logs", *PENDING)
    for attribute in contents:
        setattr(self, attribute, getattr(new, attribute))
    return forgotten


def header(self) -> Dict:
    """Sizes, fill and sources, for JSON."""
    return {**self.layout.header(), **{name: getattr(self, name) for name in FILL}}


def state_dict(self) -> Dict[str, Tensor]:
    """Views of everything that is stored; with :meth:`header` all that it takes to go on."""
    stored = -(-max(self.num_chunks) // self.num_shards)  # the same in every shard
    state = {"chunk_keys": self.chunk_keys[:, :, :stored]}
    for name, buffer in self.store.buffers().items():
        state[name] = buffer[:, :, :stored]
    state.update({name: getattr(self, name) for name in (*PENDING, "last_search")})
    ids = [log.read(self.held(bank)) for bank, log in enumerate(self.logs)]
    state["token_ids"] = pad_sequence(ids, batch_first=True, padding_value=UNKNOWN)
    state.update({f"index.{name}": t for name, t in self.index.state_dict().items()})
    return state


def load_state_dict(self, header: Dict, state: Dict[str, Tensor]) -> None:
    """Takes over :meth:`header` and :meth:`state_dict` of a bank of the same sizes.

    Raises:
        ValueError: of other sizes or another backbone; this bank is left as it was
    """
    same = ("num_streams", *CONTENTS, "memory_size", "chunk_size", "scope", "dtype")
    self.layout.check_same(header, same)
    check_fingerprint("the memory", header["fingerprint"], self.layout.fingerprint)
    if self.store.keys is not state["keys"]:
        self._leave_file()
    own = {"chunk_keys": self.chunk_keys, **self.store.buffers()}
    for name, buffer in own.items():
        if buffer is not state[name]:
            buffer[:, :, : state[name].size(2)] = state[name]
    for name in (*PENDING, "last_search"):
        getattr(self, name).copy_(state[name])
    for name in ("num_written", "num_pending", "in_document"):
        setattr(self, name, list(header[name]))
    for bank, log in enumerate(self.logs):
        log.sources = [Source(*source) for source in header["sources"][bank]]
        held = self.held(bank)
        log.write(held.start, state["token_ids"][bank, : len(held)])
    index = {n.removeprefix("index."): t for n, t in state.items() if n.startswith("index.")}
    self.index.load_state_dict(index, self.num_own_chunks)


def save(self, path: str, replaces: Optional[Version] = None) -> Version:
    """Writes the bank to a file, at once or not at all; see :func:`write_memory_file`.

    Then removes the files that shards have saved under the same *path*.

    Raises:
        OSError: the file cannot be written, or one of those not removed
    """
    version = write_memory_file(path, self.header(), self.state_dict(), replaces)
    remove_other_parts(path, 1)
    return version


def load(
    cls,
    path: str,
    fingerprint: str = "",
    memory_map: bool = False,
    part: Tuple[int, int] = (0, 1),
    **options,
):
    """The bank of a file, or of the files that the shards of one wrote.

    Args:
        fingerprint: of the backbone that will read it; "" for any
        memory_map: leave keys and values in the file, from which only what is searched or retrieved is
            read, until something is written to the bank: then it is read into buffers of its own.
            Their checksums are not compared. (A bank that other shards wrote is read at once.)
        part: which part of the bank to take, of how many
        options: further arguments of :class:`MemoryBank`, such as index or storage; those that the
            file has too, except k, must be the same

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is damaged, foreign, or of another backbone or other sizes
    """
    header, tensors = read_part(path, *part, verify=not memory_map)
    same = (*CONTENTS, "memory_size", "chunk_size", "scope", "dtype")
    for name in same:
        if options.get(name, header[name]) != header[name]:
            raise ValueError(
                f"{path} holds a memory with {name.replace('_', ' ')} {header[name]}, not "
                f"{options[name]}: give the options that it was saved with"
            )
    check_fingerprint(path, header["fingerprint"], fingerprint)
    sizes = {name: header[name] for name in ("num_streams", *same, "k", "fingerprint")}
    bank = cls(**{**sizes, **options}, tensors=tensors if memory_map else None)
    try:
        bank.load_state_dict(header, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return bank
