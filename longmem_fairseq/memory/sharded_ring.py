"""The ring of a bank that is larger than one process.

b rows of queries, T tokens, H heads of the store, H* searches per query (H, or 1), S slots of the whole
bank, N shards, R chunks retrieved per query, U different chunks that were retrieved.
"""

from typing import Dict, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.chunk_ring import ChunkRing, rows_of, with_literal
from longmem_fairseq.memory.chunk_store import ChunkStore, Placement
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.utils.argument_error import ArgumentError

# into one tensor: a list of them costs gloo several copies. Renamed in PyTorch 2.13
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ShardedRing:
    """A :class:`ChunkRing` of which every process of a group stores and searches an N-th.

    Chunk n is kept by process n % N alone; N divides S, so slot s of the whole ring is slot s // N of
    ``part`` in process s % N, and the oldest chunks go first as they would in one ring. Writing takes
    no communication. A query is searched in every part; the scores of the best chunks there go to all
    processes, which choose the same best ones; then every process sends those of the chosen chunks that
    it has, each once, however many queries chose it.

    Args:
        layout: of the whole bank
        group: the processes (default: all)
        options: of :class:`ChunkRing`

    Raises:
        ArgumentError: see :class:`ChunkRing`; or N does not divide S
    """

    def __init__(self, layout: BankLayout, group: Optional[dist.ProcessGroup] = None, **options):
        self.layout, self.group = layout, group
        self.shard, self.num_shards = dist.get_rank(group), dist.get_world_size(group)
        check_divisible(layout.memory_size, layout.chunk_size, self.num_shards)
        self.part = ChunkRing(layout, layout.num_slots // self.num_shards, **options)

    @property
    def num_bytes(self) -> int:
        """Of this process's part, see :attr:`ChunkRing.num_bytes`."""
        return self.part.num_bytes

    def _num_here(self, num_written: int) -> int:
        """How many of the first chunks are kept here."""
        return len(range(self.shard, num_written, self.num_shards))

    def check_room(self, num_chunks: int) -> None:
        """See :meth:`ChunkRing.check_room`; raises on every process or on none."""
        self.part.check_room(-(-num_chunks // self.num_shards))

    def leave_file(self, num_written: Sequence[int]) -> None:
        """See :meth:`ChunkRing.leave_file`."""
        self.part.leave_file([self._num_here(written) for written in num_written])

    def append(self, bank, num_written, keys, values, search_keys) -> None:
        """See :meth:`ChunkRing.append`."""
        here = slice((self.shard - num_written) % self.num_shards, None, self.num_shards)
        keys, values, search_keys = keys[:, here], values[:, here], search_keys[here]
        if keys.size(1) > 0:
            self.part.append(bank, self._num_here(num_written), keys, values, search_keys)

    def search(self, queries, banks, num_written, literal=None) -> Retrieved:
        """See :meth:`ChunkRing.search`; every process gets the best chunks of all."""
        given = [self._num_here(written) for written in num_written]
        if queries.numel() == 0:
            return self.part.search(queries, banks, given)
        slots = self.part.best_slots(queries, banks, given)
        scores = self.part.scores(queries, slots, banks)
        # named for torch.profiler, as in eval/benchmark_shards.py
        with record_function("memory.merge"):
            scores, slots = self.merge(scores, slots)
            if literal is not None:
                slots = with_literal(slots, literal)
                count = literal.size(-1)
                scores[..., -count:] = self.scores(queries, slots[..., -count:], banks)
        num_banks, heads, slots_here = self.part.store.keys.shape[:3]  # in a file fewer than S / N
        shape = (num_banks, heads, slots_here * self.num_shards)
        with record_function("memory.fetch"):
            rows, store = self.fetch(rows_of(slots, banks, shape))
        one_search = self.layout.reads_successors
        return Retrieved(slots, rows, store, scores.squeeze(1) if one_search else None)

    def scores(self, queries: Tensor, slots: Tensor, banks: Sequence[int]) -> Tensor:
        """See :meth:`ChunkRing.scores`, of slots of the whole ring."""
        here = (slots >= 0) & (slots % self.num_shards == self.shard)
        scores = self.part.scores(queries, torch.where(here, slots // self.num_shards, -1), banks)
        dist.all_reduce(scores, dist.ReduceOp.MAX, self.group)
        return scores

    def merge(self, scores: Tensor, slots: Tensor) -> Tuple[Tensor, Tensor]:
        """The best R of all processes' chunks, best first: scores, and slots of the whole ring.

        Args:
            scores, slots: of this part, b x H* x T x R
        """
        message = torch.stack([scores.view(torch.int32), slots.int()])
        scores, slots = self.all_gather(message).unbind(dim=1)  # N x b x H* x T x R
        shards = torch.arange(self.num_shards, device=slots.device).view(-1, 1, 1, 1, 1)
        slots = torch.where(slots < 0, -1, slots.long() * self.num_shards + shards)
        candidates = (scores.view(torch.float32), slots)
        scores, slots = (t.movedim(0, -2).flatten(-2) for t in candidates)  # b x H* x T x N * R
        best = scores.topk(self.layout.chunks_per_query, dim=-1)
        return best.values, slots.gather(-1, best.indices)

    def fetch(self, rows: Tensor) -> Tuple[Tensor, ChunkStore]:
        """Keys and values of *rows* of the whole ring's store, from wherever they are.

        Returns:
            the rows that they have in the store that holds them here
        """
        wanted, places = rows.unique(return_inverse=True)  # U
        owners = wanted % self.num_shards
        counts = owners.bincount(minlength=self.num_shards).tolist()
        sent_rows = wanted[owners == self.shard] // self.num_shards
        room = max(counts)  # all have to send equally much
        slots, tensors = (1, 1, self.num_shards * room), {}
        for name, buffer in self.part.store.buffers().items():
            sent = buffer.new_zeros(room, *buffer.shape[3:])
            stored = buffer.flatten(0, 2)
            torch.index_select(stored, 0, sent_rows.to(buffer.device), out=sent[: len(sent_rows)])
            sent = sent.flatten(1).view(torch.uint8).to(rows.device)  # not every type can be sent
            tensors[name] = self.all_gather(sent).view(buffer.dtype).view(*slots, *buffer.shape[3:])
        chunk = (self.layout.chunk_size, self.layout.head_dim)
        store = ChunkStore(slots, *chunk, self.layout.dtype, Placement(tensors=tensors))
        local = torch.empty_like(wanted)
        for shard, count in enumerate(counts):
            start = shard * room
            local[owners == shard] = torch.arange(start, start + count, device=rows.device)
        return local[places], store

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, N x ..."""
        gathered = tensor.new_empty(self.num_shards, *tensor.shape)
        all_gather_single(gathered.flatten(0, 1), tensor, group=self.group)
        return gathered

    def read(self, bank: int, numbers: range):
        """
        Raises:
            ValueError: the chunks are in several processes
        """
        raise ValueError(
            "a memory that is split over processes can neither forget a document nor be added to "
            "another: load it in one process"
        )

    def reset(self, bank: int) -> None:
        """See :meth:`ChunkRing.reset`."""
        self.part.reset(bank)

    def copy_bank(self, bank: int, other: "ShardedRing", other_bank: int, num_written: int) -> None:
        """See :meth:`ChunkRing.copy_bank`."""
        self.part.copy_bank(bank, other.part, other_bank, self._num_here(num_written))

    def state_dict(self, num_written: Sequence[int]) -> Dict[str, Tensor]:
        """See :meth:`ChunkRing.state_dict`; of the same shapes in every process."""
        most = [-(-written // self.num_shards) for written in num_written]  # in the fullest process
        return self.part.state_dict(most)

    def load_state_dict(self, state: Dict[str, Tensor], num_written: Sequence[int]) -> None:
        """See :meth:`ChunkRing.load_state_dict`."""
        self.part.load_state_dict(state, [self._num_here(written) for written in num_written])


def check_divisible(memory_size: int, chunk_size: int, num_shards: int) -> None:
    """Raises ArgumentError where the chunks cannot be shared out evenly."""
    if memory_size // chunk_size % num_shards != 0:
        text = "{memory_size} ({}) must be a multiple of {chunk_size} ({}) times {num_shards} ({})"
        raise ArgumentError(text, memory_size, chunk_size, num_shards)


def check_shards(num_shards: int, memory_size: int, chunk_size: int) -> None:
    """Raises ArgumentError for a bank that cannot be split over all processes."""
    if num_shards < 1:
        raise ArgumentError("{num_shards} ({}) must be at least 1", num_shards)
    if num_shards == 1:
        return
    check_divisible(memory_size, chunk_size, num_shards)
    if not dist.is_initialized():
        raise ArgumentError(
            "{num_shards} ({}) needs as many processes: torchrun --nproc-per-node {} with "
            "fairseq-eval-lm, or with torch.distributed.init_process_group in Python",
            num_shards,
            num_shards,
        )
    if dist.get_world_size() != num_shards:
        raise ArgumentError(
            "{num_shards} ({}) must be the number of processes ({distributed_world_size} {})",
            num_shards,
            dist.get_world_size(),
        )
