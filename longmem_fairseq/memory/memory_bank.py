"""The memory bank: a ring of chunks that can be copied, appended to another, saved and loaded.

N banks, H heads, D head_dim, S slots, c chunk_size in tokens, n rows of one gather.
"""

import copy
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longmem_fairseq.memory.chunk_ring import ChunkRing
from longmem_fairseq.memory.memory_file import Version, write_memory_file
from longmem_fairseq.memory.shard_files import read_part, remove_other_parts
from longmem_fairseq.memory.token_log import UNKNOWN, Source


class MemoryBank(ChunkRing):
    """Keys and values of what every stream has read; :class:`ChunkRing` describes its arguments.

    A bank that is mapped (see :meth:`load`) is like any other, but that its buffers end with what is
    stored. They are never written: whatever writes lets it leave its file first.
    """

    def select(self, banks: Sequence[int]) -> "MemoryBank":
        """A new bank with a stream for each of *banks*, which starts as a copy of it.

        With the same options, but for scope ``stream``.
        """
        selected = type(self)(len(banks), self.num_heads, self.head_dim, **self.options)
        for stream, bank in enumerate(banks):
            selected.copy_stream(stream, self, bank)
        return selected

    def copy_stream(self, stream: int, other: "MemoryBank", bank: int) -> None:
        """Makes a stream of this bank, of scope ``stream``, a copy of a bank of another one.

        Args:
            other: of the same options
        """
        self._leave_file()
        stored = other.num_own_chunks[bank]
        buffers = {**self.store.buffers(), "chunk_keys": self.chunk_keys}
        for name, buffer in {**other.store.buffers(), "chunk_keys": other.chunk_keys}.items():
            buffers[name][stream, :, :stored] = buffer[bank, :, :stored]
        self.pending_keys[stream] = other.pending_keys[bank]
        self.pending_values[stream] = other.pending_values[bank]
        self.num_written[stream] = other.num_written[bank]
        self.num_pending[stream] = other.num_pending[bank]
        self.logs[stream] = copy.deepcopy(other.logs[bank])
        self.index.copy_bank(stream, other.index, bank)

    def extend(self, other: "MemoryBank") -> None:
        """Appends everything that *other* holds to this bank, oldest first.

        An incomplete chunk of this bank is completed by the first tokens of *other*, so that none is
        lost or padded; the chunks of *other* are then cut at other tokens than they were.

        Raises:
            ValueError: the banks differ in something that their keys depend on, are the same, or this
                one's index cannot make room; this bank is left as it was
        """
        if other is self:
            raise ValueError("a memory cannot be extended by itself")
        if other.num_shards > 1:
            raise ValueError("a memory cannot be extended by one that is split over processes")
        self._check_same(other.header(), ("num_streams", "num_heads", "head_dim", "scope"))
        check_fingerprint("a memory", other.fingerprint, self.fingerprint)
        held = [sum(tokens) for tokens in zip(other.num_tokens, other.num_pending, strict=True)]
        self._make_room(held)
        for bank, written in enumerate(other.num_written):
            if held[bank] == 0:
                continue
            log, stored = other.logs[bank], other.num_chunks[bank]
            first, oldest = self.held(bank).stop, other.held(bank).start
            for source in log.sources_from(oldest):
                moved = source._replace(first=source.first - oldest + first)
                self.logs[bank].sources.append(moved)
            size, shape = other.chunk_size, (self.num_heads, -1, self.head_dim)
            for start in range(written - stored, written, 4096):  # chunks, bounded in memory
                stop = min(start + 4096, written)
                rows = (
                    other._first_rows(bank) + torch.arange(start, stop) % other.num_slots
                )  # H x n
                keys, values = (t.view(shape) for t in other.store.gather(rows.flatten()))
                self._append(bank, keys, values, log.read(range(start * size, stop * size)))
            pending = slice(other.num_pending[bank])
            waiting = (other.pending_keys, other.pending_values)
            keys, values = (tensor[bank, :, pending] for tensor in waiting)
            self._append(bank, keys, values, log.read(range(written * size, other.held(bank).stop)))

    def _make_room(self, tokens: List[int]) -> None:
        super()._make_room(tokens)
        self._leave_file()

    def _leave_file(self) -> None:
        """Moves a mapped bank into buffers of its own, of full size.

        Raises:
            ValueError: there is no room for them; this bank is left as it was
        """
        if not self.in_place:
            return
        with torch.inference_mode(False):  # they are written later, too
            own = self.select(range(len(self.num_written)))
        self.store, self.chunk_keys, self.index = own.store, own.chunk_keys, own.index
        self.in_place = False

    def save(self, path: str, replaces: Optional[Version] = None) -> Version:
        """Writes the bank to a file, at once or not at all; see :func:`write_memory_file`.

        Then removes the files that shards have saved under the same *path*.

        Raises:
            OSError: the file cannot be written, or one of those not removed
        """
        version = write_memory_file(path, self.header(), self.state_dict(), replaces)
        remove_other_parts(path, 1)
        return version

    @classmethod
    def load(
        cls,
        path: str,
        fingerprint: str = "",
        memory_map: bool = False,
        part: Tuple[int, int] = (0, 1),
        **options,
    ) -> "MemoryBank":
        """The bank of a file, or of the files that the shards of one wrote.

        Args:
            fingerprint: of the backbone that will read it; "" for any
            memory_map: leave keys and values in the file, from which only what is searched or
                retrieved is read, until something is written to the bank: then it is read into
                buffers of its own. Their checksums are not compared. (A bank that other shards wrote
                is read at once.)
            part: which part of the bank to take, of how many
            options: further arguments of :class:`MemoryBank`, such as index or storage; those that
                the file has too, except k, must be the same

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is damaged, foreign, or of another backbone or other sizes
        """
        header, tensors = read_part(path, *part, verify=not memory_map)
        names = ("num_heads", "head_dim", "memory_size", "chunk_size", "scope", "dtype")
        for name in names:
            if options.get(name, header[name]) != header[name]:
                raise ValueError(
                    f"{path} holds a memory with {name.replace('_', ' ')} {header[name]}, not "
                    f"{options[name]}: give the options that it was saved with"
                )
        check_fingerprint(path, header["fingerprint"], fingerprint)
        sizes = {name: header[name] for name in ("num_streams", *names, "k", "fingerprint")}
        bank = cls(**{**sizes, **options}, tensors=tensors if memory_map else None)
        try:
            bank.load_state_dict(header, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return bank

    def state_dict(self) -> Dict[str, Tensor]:
        """Views of everything that is stored; with :meth:`header` all that it takes to go on."""
        stored = -(-max(self.num_chunks) // self.num_shards)  # the same in every shard
        state = {"chunk_keys": self.chunk_keys[:, :, :stored]}
        for name, buffer in self.store.buffers().items():
            state[name] = buffer[:, :, :stored]
        state["pending_keys"], state["pending_values"] = self.pending_keys, self.pending_values
        ids = [log.read(self.held(bank)) for bank, log in enumerate(self.logs)]
        state["token_ids"] = pad_sequence(ids, batch_first=True, padding_value=UNKNOWN)
        state.update({f"index.{name}": t for name, t in self.index.state_dict().items()})
        return state

    def header(self) -> Dict:
        """Sizes, fill and sources, for JSON."""
        names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "k", "scope")
        names += ("dtype", "fingerprint", "num_written", "num_pending", "sources")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, header: Dict, state: Dict[str, Tensor]) -> None:
        """Takes over :meth:`header` and :meth:`state_dict` of a bank of the same sizes.

        Raises:
            ValueError: of other sizes or another backbone; this bank is left as it was
        """
        names = ("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "scope")
        self._check_same(header, (*names, "dtype"))
        check_fingerprint("the memory", header["fingerprint"], self.fingerprint)
        if self.store.keys is not state["keys"]:
            self._leave_file()
        own = {"chunk_keys": self.chunk_keys, **self.store.buffers()}
        for name, buffer in own.items():
            if buffer is not state[name]:
                buffer[:, :, : state[name].size(2)] = state[name]
        self.pending_keys.copy_(state["pending_keys"])
        self.pending_values.copy_(state["pending_values"])
        self.num_written = list(header["num_written"])
        self.num_pending = list(header["num_pending"])
        for bank, log in enumerate(self.logs):
            log.sources = [Source(*source) for source in header["sources"][bank]]
            held = self.held(bank)
            log.write(held.start, state["token_ids"][bank, : len(held)])
        index = {n.removeprefix("index."): t for n, t in state.items() if n.startswith("index.")}
        self.index.load_state_dict(index, self.num_own_chunks)

    def _check_same(self, header: Dict, names: Sequence[str]) -> None:
        for name in names:
            if header[name] != getattr(self, name):
                raise ValueError(
                    f"a memory with {name.replace('_', ' ')} {header[name]} does not fit one with "
                    f"{getattr(self, name)}"
                )


def check_fingerprint(memory: str, found: str, expected: str) -> None:
    """Raises ValueError where *memory* is of the backbone *found*, not *expected*; "" is any."""
    if found and expected and found != expected:
        raise ValueError(
            f"{memory} holds keys of the backbone {_short(found)}, not of {_short(expected)}: encode "
            "the documents again with this backbone"
        )


def _short(fingerprint: str) -> str:
    """Sixteen digits of SHA-256, and what stands behind all 64."""
    return fingerprint[:16] + fingerprint[64:]
