"""A memory bank that is larger than one process."""

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Iterator, Optional, Set

import torch
import torch.distributed as dist

from longmem_fairseq.memory.memory_bank import MemoryBank
from longmem_fairseq.memory.memory_file import staged_memory_file
from longmem_fairseq.memory.shard_files import identity, part_path, read_memory, remove_other_parts
from longmem_fairseq.memory.sharded_ring import ShardedRing, all_gather_single
from longmem_fairseq.utils.replaced_file import Version, put_in_place


class ShardedBank(MemoryBank):
    """A bank whose chunks are in a :class:`ShardedRing`; all processes save and load it together.

    All processes read the same tokens, and make the same calls in the same order. Each has the token
    ids and sources, and the tokens that wait for their chunk, in full.

    Args:
        arguments, options: of the whole bank, see :class:`MemoryBank`
        group: the processes (default: all)

    Raises:
        ArgumentError: see :class:`MemoryBank`, or their number does not divide that of the slots
    """

    def __init__(self, *arguments, group: Optional[dist.ProcessGroup] = None, **options):
        super().__init__(*arguments, ring=partial(ShardedRing, group=group), **options)
        self.placement["group"] = group

    def save(self, path: str, replaces: Optional[Version] = None) -> Version:
        """Writes this part to a file of its own, see :mod:`shard_files`.

        No file takes its place before all are written; after that, the files of other numbers of shards
        under the same *path* are removed. Versions are not compared.

        Raises:
            OSError: the file of some process cannot be written, or an older one not removed
        """
        shard, num_shards = self.ring.shard, self.ring.num_shards
        file = part_path(path, shard, num_shards)
        header = {**self.header(), "shard": shard, "num_shards": num_shards}
        with ExitStack() as stack:
            with self._together(path):
                part = stack.enter_context(staged_memory_file(file, header, self.state_dict()))
            with self._together(path):
                version = put_in_place(part, file)
        with self._together(path):  # who reads the memory next finds none of the others
            if shard == 0:
                remove_other_parts(path, num_shards)
        return version

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
        if -1 in _states(error, 0, self.ring.group, self.device):
            raise error or OSError(f"{path}: another process could not save its part")

    @classmethod
    def load(
        cls,
        path: str,
        fingerprint: str = "",
        memory_map: bool = False,
        group: Optional[dist.ProcessGroup] = None,
        device: Optional[torch.device] = None,
        **options,
    ) -> "ShardedBank":
        """The bank of the files that as many shards, or others, or a single process have saved.

        See :meth:`MemoryBank.load`; an error on one process is one on all of them.
        """
        error, state = None, 0
        part = dist.get_rank(group), dist.get_world_size(group)
        try:
            options.update(group=group, device=device)
            header, tensors = read_memory(path, not memory_map, *part)
            bank = cls.restored(path, header, tensors, fingerprint, memory_map, **options)
            in_full = [bank.pending.last_search, *(log.ids for log in bank.logs)]
            state = identity(bank.header(), in_full)
        except (OSError, ValueError) as caught:
            error = caught
        states = _states(error, state, group, device)
        if error is not None:
            raise error
        if -1 in states:
            raise ValueError(f"{path}: another process could not read its part")
        if len(states) > 1:
            raise ValueError(f"{path}: its files were not saved together")
        return bank


def _states(
    error: Optional[Exception],
    state: int,
    group: Optional[dist.ProcessGroup],
    device: Optional[torch.device],
) -> Set[int]:
    """The *state* of every process, -1 for one that has an error: no other may wait for it."""
    own = torch.tensor([state if error is None else -1], device=device)
    states = own.new_empty(dist.get_world_size(group))
    all_gather_single(states, own, group=group)
    return set(states.tolist())
