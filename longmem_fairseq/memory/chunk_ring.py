"""The ring of a memory bank: chunks in slots, of which the oldest is overwritten, and their search.

N banks, b rows of queries, T tokens, H heads of the store, H* searches per query (H, or 1), S slots,
c chunk_size in tokens, n chunks, R chunks retrieved per query, D head_dim, E search_dim.
"""

from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.chunk_store import STORAGES, ChunkStore, Placement
from longmem_fairseq.memory.faiss_index import make_index
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.memory.search import chosen_products
from longmem_fairseq.utils.argument_error import ArgumentError


class ChunkRing:
    """The chunks of N banks: number n, counted from a bank's last reset, is in slot n % S.

    It is told how many chunks a bank was given (``num_written``, evicted ones too); the last S of them
    are there.

    Args:
        layout: of the bank
        num_slots: S (default: the layout's)
        index, index_parameters: how chunks are searched, see :func:`make_index`
        storage, directory, device: where keys and values live, see :class:`Placement`; the search keys
            are beside them on disk, else where they are searched
        tensors: see :class:`MemoryBank`

    Raises:
        ArgumentError: the index does not fit, there is no such storage, or no room
    """

    def __init__(
        self,
        layout: BankLayout,
        num_slots: Optional[int] = None,
        *,
        index: str = "torch",
        index_parameters: str = "",
        storage: str = "device",
        directory: Optional[str] = None,
        device: Optional[torch.device] = None,
        tensors: Optional[Dict[str, Tensor]] = None,
    ):
        if storage not in STORAGES:
            raise ArgumentError("{storage} ({}) must be one of {}", storage, ", ".join(STORAGES))
        self.layout, self.num_slots = layout, num_slots or layout.num_slots
        self.placement = {
            "index": index,
            "index_parameters": index_parameters,
            "storage": storage,
            "directory": directory,
            "device": device,
        }
        self.in_place = tensors is not None  # in a file, whose buffers end with the stored chunks
        place = Placement(storage, torch.device(device or "cpu"), directory, tensors)
        slots = (layout.num_banks, layout.num_heads, self.num_slots)
        self.store = ChunkStore(slots, layout.chunk_size, layout.head_dim, layout.dtype, place)
        if index not in ("torch", "flat"):
            place = place._replace(device=None)  # faiss's own indices are on the CPU
        elif storage == "host" or place.device.type != "cpu":
            place = place._replace(storage="device")
        shape, dtype = layout.tensors(self.num_slots)["chunk_keys"]
        self.chunk_keys = place.buffer("chunk_keys", shape, dtype)
        self.chunk_keys = self.chunk_keys.to(place.device or "cpu")  # out of the file
        self.index = make_index(self.chunk_keys, self.num_slots, index, index_parameters)

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers when full; those of an approximate index are not counted."""
        return sum(buffer.nbytes for buffer in self._buffers().values())

    def _buffers(self) -> Dict[str, Tensor]:
        """N x H (or H*) x S x ..."""
        return {"chunk_keys": self.chunk_keys, **self.store.buffers()}

    def check_room(self, num_chunks: int) -> None:
        """Raises ArgumentError where so many chunks are too many for an index that cannot forget."""
        if not self.index.can_remove and num_chunks > self.num_slots:
            raise ArgumentError(
                "this {index} cannot forget chunks, and the bank of {:,} tokens is full: raise "
                "{memory_size}, or choose an index that can (torch, IVF...)",
                self.layout.memory_size,
            )

    def leave_file(self, num_written: Sequence[int]) -> None:
        """Before anything is written: moves mapped buffers into buffers of full size.

        Raises:
            ArgumentError: there is no room for them; the ring is left as it was
        """
        if not self.in_place:
            return
        with torch.inference_mode(False):  # they are written later, too
            own = ChunkRing(self.layout, self.num_slots, **self.placement)
        for bank, written in enumerate(num_written):
            own.copy_bank(bank, self, bank, written)
        self.store, self.chunk_keys, self.index = own.store, own.chunk_keys, own.index
        self.in_place = False

    def append(
        self, bank: int, num_written: int, keys: Tensor, values: Tensor, search_keys: Tensor
    ) -> None:
        """Appends chunks to a bank that was given *num_written*; each takes the oldest one's place.

        Args:
            keys, values: H x n x c x D
            search_keys: n x c x E, for search ``hidden``
        """
        after = num_written + keys.size(1)
        # of more chunks than slots, the first would be overwritten in the same call
        first = max(num_written, after - self.num_slots)
        new = slice(first - num_written, None)
        keys, values, search_keys = keys[:, new], values[:, new], search_keys[new]
        slots = torch.arange(first, after, device=self.chunk_keys.device) % self.num_slots
        searched = search_keys.unsqueeze(0) if self.layout.reads_successors else keys
        searched = searched.float().mean(dim=2)  # H* x n x D
        self.chunk_keys[bank][:, slots] = searched.to(self.chunk_keys.device)
        stored = (min(count, self.num_slots) for count in (num_written, after))
        self.index.write(bank, slots, *stored)
        rows = rows_of(slots.view(1, 1, 1, -1), [bank], self.store.keys.shape)
        self.store.write(rows.flatten(), keys.flatten(0, 1), values.flatten(0, 1))

    def search(
        self,
        queries: Tensor,
        banks: Sequence[int],
        num_written: Sequence[int],
        literal: Optional[Tensor] = None,
    ) -> Retrieved:
        """For every query the R chunks with the largest inner product, without their token ids.

        Args:
            queries: b x H* x T x D (or E), float32
            banks: the bank that each of the b rows searches
            num_written: chunks that every bank was given
            literal: slots that take the place of the last ones, see :func:`with_literal`
        """
        slots = self.best_slots(queries, banks, num_written)
        if literal is not None:
            slots = with_literal(slots, literal)
        scores = None
        if self.layout.reads_successors:
            scores = self.scores(queries, slots, banks).squeeze(1)
        rows = rows_of(slots, banks, self.store.keys.shape)
        return Retrieved(slots, rows, self.store, scores)

    def best_slots(
        self, queries: Tensor, banks: Sequence[int], num_written: Sequence[int]
    ) -> Tensor:
        """Slots of the best chunks, best first, b x H* x T x R; -1 where there were fewer."""
        shape = (*queries.shape[:3], self.layout.chunks_per_query)
        slots = torch.empty(shape, dtype=torch.long, device=queries.device)
        for bank in sorted(set(banks)):  # one search for all rows of the same bank
            rows = [row for row, searched in enumerate(banks) if searched == bank]
            together = torch.cat([queries[row] for row in rows], dim=1)  # H* x rows * T x D
            stored = min(num_written[bank], self.num_slots)
            best = self.index.search(bank, together, stored, shape[-1])
            for row, its_best in zip(rows, best.chunk(len(rows), dim=1), strict=True):
                slots[row] = its_best
        return slots

    def scores(self, queries: Tensor, slots: Tensor, banks: Sequence[int]) -> Tensor:
        """Inner products with the chunks in *slots*, b x H* x T x R; -inf where there is none."""
        rows = rows_of(slots, banks, self.chunk_keys.shape)
        return chosen_products(queries, self.chunk_keys, rows).masked_fill(slots < 0, -torch.inf)

    def read(self, bank: int, numbers: range) -> Tuple[Tensor, Tensor, Tensor]:
        """The tokens of some of the stored chunks, n * c = T.

        Returns:
            keys and values H x T x D; and the search keys that they share, T x E (0 but for ``hidden``)
        """
        slots = torch.arange(numbers.start, numbers.stop) % self.num_slots
        tokens = len(slots) * self.layout.chunk_size
        shape = (self.layout.num_heads, tokens, self.layout.head_dim)
        rows = rows_of(slots.view(1, 1, 1, -1), [bank], self.store.keys.shape)
        keys, values = (tensor.view(shape) for tensor in self.store.gather(rows.flatten()))
        if not self.layout.reads_successors:
            return keys, values, self.chunk_keys.new_empty(tokens, 0)
        search_keys = self.chunk_keys[bank, 0, slots.to(self.chunk_keys.device)]
        return keys, values, search_keys.repeat_interleave(self.layout.chunk_size, dim=0)

    def reset(self, bank: int) -> None:
        """Forgets the chunks of a bank."""
        self.index.reset(bank)

    def copy_bank(self, bank: int, other: "ChunkRing", other_bank: int, num_written: int) -> None:
        """Makes a bank like one, that was given *num_written* chunks, of a ring of the same options."""
        stored, buffers = min(num_written, self.num_slots), self._buffers()
        for name, buffer in other._buffers().items():
            buffers[name][bank, :, :stored] = buffer[other_bank, :, :stored]
        self.index.copy_bank(bank, other.index, other_bank)

    def state_dict(self, num_written: Sequence[int]) -> Dict[str, Tensor]:
        """Views of the buffers, as far as one of the banks fills them; and the index."""
        stored = min(max(num_written), self.num_slots)
        state = {name: buffer[:, :, :stored] for name, buffer in self._buffers().items()}
        state.update({f"index.{name}": t for name, t in self.index.state_dict().items()})
        return state

    def load_state_dict(self, state: Dict[str, Tensor], num_written: Sequence[int]) -> None:
        """Takes over :meth:`state_dict`, or keeps the buffers where they are those of *state*.

        Raises:
            ValueError: its index is damaged; or, an ArgumentError, there is no room
        """
        if self.store.keys is not state["keys"]:
            self.leave_file([])
        for name, buffer in self._buffers().items():
            if buffer is not state[name]:
                buffer[:, :, : state[name].size(2)] = state[name]
        index = {n.removeprefix("index."): t for n, t in state.items() if n.startswith("index.")}
        self.index.load_state_dict(index, [min(n, self.num_slots) for n in num_written])


def with_literal(slots: Tensor, literal: Tensor) -> Tensor:
    """The best slots of a search, the last of which give way to others, b x H* x T x R.

    Args:
        slots: b x H* x T x R, the best first
        literal: b x H* x T x n, -1 where there are fewer; those that are there already become -1, too
    """
    count = literal.size(-1)
    kept = slots[..., :-count]
    there = (literal.unsqueeze(-1) == kept.unsqueeze(-2)).any(dim=-1)
    same = literal.unsqueeze(-1) == literal.unsqueeze(-2)  # ... x n x n
    there |= same.tril(-1).any(dim=-1)  # as an earlier one
    return torch.cat([kept, literal.masked_fill(there, -1)], dim=-1)


def rows_of(slots: Tensor, banks: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Rows of a buffer N x H x S x ... seen as N * H * S rows; any row where the slot is -1.

    Args:
        slots: b x H* x T x R
        banks: of each of the b rows
        shape: N, H, S

    Returns:
        b x H x T x R
    """
    heads = torch.arange(shape[1], device=slots.device)
    # made on the device: a copy to it would wait for all that it has to do
    first = [(bank * shape[1] + heads) * shape[2] for bank in banks]
    first = torch.stack(first) if first else heads.new_empty(0, shape[1])  # b x H
    return slots.clamp(min=0) + first.view(*first.shape, 1, 1)
