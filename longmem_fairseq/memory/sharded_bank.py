"""A memory bank that is larger than one process.

B streams, T tokens, H heads, D head_dim, S slots of the whole bank, N shards, R chunks retrieved per
query, c chunk_size in tokens, Q = B * H * T queries, U different chunks that were retrieved.
"""

from contextlib import ExitStack, contextmanager
from typing import Dict, Iterator, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from longmem_fairseq.memory.chunk_store import ChunkStore, Placement
from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.memory_file import staged_memory_file
from longmem_fairseq.memory.retrieved import Retrieved
from longmem_fairseq.memory.shard_files import identity, part_path, remove_other_parts
from longmem_fairseq.utils.replaced_file import put_in_place

# into one tensor: a list of them costs gloo several copies. Renamed in PyTorch 2.13
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ShardedBank(MemoryBank):
    """One bank of which every process of a group stores and searches an N-th.

    All processes read the same tokens, and make the same calls in the same order. Chunk n since the
    last reset is kept by process n % N alone; N divides S, so that slot s of the whole bank is slot
    s // N of process s % N, and the oldest chunks go first as they would in one bank. Writing takes no
    communication. A query is searched in every part; the scores of what was found there go to all
    processes, which choose the same best ones; then every process sends those of the chosen chunks
    that it has, each once, however many queries chose it.

    What is not split: token ids and sources, which every process has in full.

    Args:
        group: the processes (default: all)
        arguments, options: of the whole bank, see :class:`MemoryBank`

    Raises:
        ValueError: see :class:`MemoryBank`, or N does not divide S
    """

    def __init__(self, *arguments, group: Optional[dist.ProcessGroup] = None, **options):
        self.group = group
        self.shard, self.num_shards = dist.get_rank(group), dist.get_world_size(group)
        super().__init__(*arguments, **options)
        check_divisible(self.memory_size, self.chunk_size, self.num_shards)
        self.placement["group"] = group

    @torch.no_grad()
    def retrieve(
        self, queries: Tensor, banks: Optional[Sequence[int]] = None
    ) -> Optional[Retrieved]:
        """See :meth:`MemoryBank.retrieve`; every process gets what all of them found together."""
        found = super().retrieve(queries, banks)  # None on every process or on none
        if found is None or found.chunks.numel() == 0:
            return found
        if banks is None:
            banks = [self.bank_of(row) for row in range(queries.size(0))]
        scores = self._scores(queries, found.chunks, banks)
        first = (found.rows - found.chunks.clamp(min=0))[..., :1] * self.num_shards
        with record_function(
            "memory.merge"
        ):  # shown by torch.profiler, as in eval/benchmark_shards.py
            scores, chunks = self._merge(scores, found.chunks)
        with record_function("memory.fetch"):
            rows, store = self._fetch(chunks.clamp(min=0) + first)
        if found.scores is None:
            return Retrieved(chunks, rows, store)
        return Retrieved(chunks, rows, store, scores[:, 0], self._token_ids(chunks[:, 0], banks))

    def _merge(self, scores: Tensor, chunks: Tensor) -> Tuple[Tensor, Tensor]:
        """The best R of what all processes found, best first: scores, and slots of the whole bank.

        Args:
            scores, chunks: of this part, B x H* x T x R
        """
        message = torch.stack([scores.view(torch.int32), chunks.int()])
        scores, chunks = self._gather(message).unbind(dim=1)  # N x B x H* x T x R
        shards = torch.arange(self.num_shards, device=chunks.device).view(-1, 1, 1, 1, 1)
        chunks = torch.where(chunks < 0, -1, chunks.long() * self.num_shards + shards)
        candidates = (scores.view(torch.float32), chunks)
        scores, chunks = (t.movedim(0, -2).flatten(-2) for t in candidates)  # B x H x T x N * R
        best = scores.topk(self.k // self.chunk_size, dim=-1)
        return best.values, chunks.gather(-1, best.indices)

    def _fetch(self, rows: Tensor) -> Tuple[Tensor, ChunkStore]:
        """Keys and values of *rows* of the whole bank, from wherever they are.

        Returns:
            the rows that they have in the store that holds them here
        """
        wanted, places = rows.unique(return_inverse=True)  # U
        owners = wanted % self.num_shards
        counts = owners.bincount(minlength=self.num_shards).tolist()
        own = wanted[owners == self.shard] // self.num_shards
        room = max(counts)  # all have to send equally much
        slots, tensors = (1, 1, self.num_shards * room), {}
        for name, buffer in self.store.buffers().items():
            sent = buffer.new_zeros(room, *buffer.shape[3:])
            stored = buffer.flatten(0, 2)
            torch.index_select(stored, 0, own.to(buffer.device), out=sent[: len(own)])
            sent = sent.flatten(1).view(torch.uint8).to(rows.device)  # not every type can be sent
            tensors[name] = self._gather(sent).view(buffer.dtype).view(*slots, *buffer.shape[3:])
        store = ChunkStore(
            slots, self.chunk_size, self.head_dim, self.dtype, Placement(tensors=tensors)
        )
        local = torch.empty_like(wanted)
        for shard, count in enumerate(counts):
            start = shard * room
            local[owners == shard] = torch.arange(start, start + count, device=rows.device)
        return local[places], store

    def _gather(self, tensor: Tensor) -> Tensor:
        """What every process has, N x ..."""
        gathered = tensor.new_empty(self.num_shards, *tensor.shape)
        all_gather_single(gathered.flatten(0, 1), tensor, group=self.group)
        return gathered

    def save(self, path: str) -> None:
        """Writes this part to a file of its own, see :mod:`shard_files`.

        No file takes its place before all are written, and what other numbers of shards have saved
        under the same *path* is removed after that.

        Raises:
            OSError: the file of some process cannot be written, or an older one not removed
        """
        file = part_path(path, self.shard, self.num_shards)
        staged = staged_memory_file(file, self.header(), self.state_dict())
        with ExitStack() as stack:
            with self._together(path):
                part = stack.enter_context(staged)
            with self._together(path):
                put_in_place(part, file)
        with self._together(path):  # who reads the memory next finds none of the others
            if self.shard == 0:
                remove_other_parts(path, self.num_shards)

    @contextmanager
    def _together(self, path: str) -> Iterator[None]:
        """A step of saving that ends when all processes have done it.

        Raises:
            OSError: one of them could not
        """
        error = None
        try:
            yield
        except OSError as caught:
            error = caught
        if -1 in _agree(error, 0, self.group, self.device):
            raise error or OSError(f"{path}: another process could not save its part")

    @classmethod
    def load(
        cls,
        path: str,
        *arguments,
        group: Optional[dist.ProcessGroup] = None,
        device: Optional[torch.device] = None,
        **options,
    ) -> "ShardedBank":
        """The bank of the files that as many shards, or others, or a single process have saved.

        See :meth:`MemoryBank.load`; an error on one process is one on all of them.
        """
        error, own = None, 0
        part = dist.get_rank(group), dist.get_world_size(group)
        try:
            options.update(group=group, device=device, part=part)
            bank = super().load(path, *arguments, **options)
            own = identity(super(cls, bank).header(), [log.ids for log in bank.logs])
        except (OSError, ValueError) as caught:
            error = caught
        found = _agree(error, own, group, device)
        if error is not None:
            raise error
        if -1 in found:
            raise ValueError(f"{path}: another process could not read its part")
        if len(found) > 1:
            raise ValueError(f"{path}: its files were not saved together")
        return bank

    def header(self) -> Dict:
        return {**super().header(), "shard": self.shard, "num_shards": self.num_shards}


def _agree(
    error: Optional[Exception],
    state: int,
    group: Optional[dist.ProcessGroup],
    device: Optional[torch.device],
) -> set:
    """The *state* of every process, -1 for one that has an error: nobody may wait for one that died."""
    own = torch.tensor([state if error is None else -1], device=device)
    states = own.new_empty(dist.get_world_size(group))
    all_gather_single(states, own, group=group)
    return set(states.tolist())


def check_divisible(memory_size: int, chunk_size: int, num_shards: int) -> None:
    """Raises ValueError where the chunks cannot be shared out evenly."""
    if memory_size // chunk_size % num_shards != 0:
        raise ValueError(
            f"--memory-size ({memory_size}) must be a multiple of --chunk-size ({chunk_size}) times "
            f"--memory-shards ({num_shards})"
        )


def check_shards(num_shards: int, memory_size: int, chunk_size: int) -> None:
    """Raises ValueError naming the option, for a bank that cannot be split over all processes."""
    if num_shards < 1:
        raise ValueError(f"--memory-shards ({num_shards}) must be at least 1")
    if num_shards == 1:
        return
    check_divisible(memory_size, chunk_size, num_shards)
    if not dist.is_initialized():
        raise ValueError(
            f"--memory-shards ({num_shards}) needs as many processes: torchrun --nproc-per-node "
            f"{num_shards} with fairseq-eval-lm, or with torch.distributed.init_process_group in Python"
        )
    if dist.get_world_size() != num_shards:
        raise ValueError(
            f"--memory-shards ({num_shards}) must be the number of processes "
            f"(--distributed-world-size {dist.get_world_size()})"
        )
