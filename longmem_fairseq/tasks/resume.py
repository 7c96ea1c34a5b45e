"""Going on in the middle of an epoch: the places of the streams, and their memory.

A checkpoint names the number of batches that were read (fairseq), the options of their layout, and
the files beside it that hold the memory, one per rank. Those files are written before the checkpoint
that names them, under names never used before, and removed when no checkpoint in the folder names them
any more.
So every checkpoint has its memory, at whatever moment a run was killed. Between two epochs there is
nothing to remember: all streams start anew.

A run may go on with other numbers of ranks and streams: the rest of the epoch is laid out again
(:meth:`DocumentStreamDataset.lay_out`), and a stream that goes on in a document takes its memory along,
from whichever rank's file holds it.
"""

import logging
import os
import re
import shutil
import uuid
from contextlib import suppress
from typing import Dict, List, Optional, Set, Tuple

import torch
from fairseq.data import iterators

from longmem_fairseq.utils.checkpoint_errors import clear_errors

logger = logging.getLogger(__name__)

# and the leftovers of a save that was cut short
_MEMORY_FILE = re.compile(r"\.?memory_\d+_[0-9a-f]{8}_rank\d+\.safetensors.*")


class ResumableStreams(iterators.EpochBatchIterator):
    """Batches of streams whose saved state goes on with other streams, but not of other documents.

    Args:
        dataset: a :class:`DocumentStreamDataset`
        layout: the values, by option, on which the pieces that streams read depend
    """

    def __init__(self, dataset, *, layout: Dict[str, int], **options):
        super().__init__(dataset=dataset, batch_sampler=_one_by_one(dataset), **options)
        self.layout = layout
        self.earlier: List[Tuple[int, int]] = []  # see DocumentStreamDataset.lay_out
        self.memory_files: Optional[List[str]] = None  # of the checkpoint, one per rank
        # former[rank][row]: the (rank, row) that previously read this row's document, or None
        self.former: Optional[List[List[Optional[Tuple[int, int]]]]] = None

    @property
    def streams(self) -> Dict[str, int]:
        """The number of streams, by option."""
        return {
            "--batch-size": self.dataset.batch_size,
            "--distributed-world-size": self.dataset.num_shards,
        }

    def state_dict(self) -> Dict:
        """Position, layout of the streams, and memory files, for a checkpoint."""
        return {
            **super().state_dict(),
            "layout": {**self.layout, **self.streams},
            "earlier_streams": self.earlier,
            "memory_files": self.memory_files,
        }

    def load_state_dict(self, state_dict: Dict) -> None:
        """Goes on where a checkpoint was saved.

        Raises:
            ValueError: the streams of the epoch would not read what those of the checkpoint would have;
                or it names a memory outside of its folder
        """
        steps, layout = state_dict["iterations_in_epoch"], state_dict.get("layout", {})
        if steps > 0:
            for name, value in self.layout.items():
                saved = layout.get(name, value)
                if value != saved:
                    raise ValueError(
                        f"{name} ({value}) was {saved} when the checkpoint was saved, in "
                        f"the middle of an epoch: go back to {saved}, or start the epochs over with an "
                        "empty memory (--reset-dataloader)"
                    )
            saved_streams = {name: layout.get(name, own) for name, own in self.streams.items()}
            self._continue_epoch(
                steps, state_dict.get("earlier_streams", []), *saved_streams.values()
            )
        super().load_state_dict(state_dict)
        self.memory_files = names_beside(state_dict.get("memory_files"))

    def _continue_epoch(
        self, steps: int, earlier: List[Tuple[int, int]], batch_size: int, ranks: int
    ) -> None:
        """After so many steps of *batch_size* streams on each of *ranks*."""
        dataset, before = self.dataset, batch_size * ranks
        self.earlier, continued = list(earlier), range(before)
        if before != dataset.num_streams:
            self.earlier.append((before, steps))
        dataset.lay_out(self.earlier)
        self._frozen_batches = _one_by_one(dataset)
        if before != dataset.num_streams:
            continued = dataset.continued
            going_on = sum(stream is not None for stream in continued)
            logger.info(
                f"what is left of the epoch is read by {dataset.num_streams} streams instead of "
                f"{before}: {going_on} go on in their documents with their memory"
            )
        if (batch_size, ranks) != (dataset.batch_size, dataset.num_shards):
            # stream s is row s // W of rank s % W
            places = [None if s is None else (s % ranks, s // ranks) for s in continued]
            self.former = [places[rank :: dataset.num_shards] for rank in range(dataset.num_shards)]


def names_beside(names: Optional[List[str]]) -> Optional[List[str]]:
    """*names* that a checkpoint gives to its memory files, which are beside it and nowhere else.

    Raises:
        ValueError: one is no such name
    """
    for name in names or []:
        if os.path.basename(str(name)) != name or not _MEMORY_FILE.fullmatch(name):
            raise ValueError(
                f"the checkpoint names {name!r} as its memory, expected a file beside it, such as "
                "memory_100_0123abcd_rank0.safetensors"
            )
    return names


def save_memory(trainer, epoch_itr: ResumableStreams, folder: str, enabled: bool = True) -> None:
    """Writes the memory of this rank; the next checkpoint will name the files of all ranks."""
    memory, epoch_itr.memory_files = _memory(trainer), None
    if memory is None or not enabled or epoch_itr.end_of_epoch():
        return
    os.makedirs(folder, exist_ok=True)
    updates, rank = trainer.get_num_updates(), trainer.data_parallel_rank
    name = f"memory_{updates}_{uuid.uuid4().hex[:8]}_rank{rank}.safetensors"
    memory.save(os.path.join(folder, name))
    epoch_itr.memory_files = [name]
    if trainer.data_parallel_world_size > 1:
        # also makes the first rank, which writes the checkpoint, wait for the others' memory
        epoch_itr.memory_files = [""] * trainer.data_parallel_world_size
        group = trainer.data_parallel_process_group
        torch.distributed.all_gather_object(epoch_itr.memory_files, name, group=group)


def load_memory(trainer, epoch_itr: ResumableStreams, folder: str, enabled: bool = True) -> None:
    """Reads the memory of this rank's streams if they go on in the middle of an epoch.

    Raises:
        FileNotFoundError: a file that the checkpoint names is not in its folder
        ValueError: the streams of a rank share their memory, and they are not the same any more
    """
    memory, rank = _memory(trainer), trainer.data_parallel_rank
    if memory is None or epoch_itr.iterations_in_epoch == 0:
        return
    if not enabled or epoch_itr.memory_files is None:
        reason = "the checkpoint names no memory file" if enabled else "--no-save-memory"
        logger.warning(f"{reason}: the streams go on in their documents with an empty memory")
        return
    paths = [os.path.join(folder, name) for name in epoch_itr.memory_files]
    device = next(trainer.get_model().parameters()).device
    if epoch_itr.former is None:
        memory.load(_existing(paths[rank]), device=device)
        return
    if memory.options["scope"] == "batch":
        raise ValueError(
            "--memory-scope batch: the streams of a rank share a memory, which cannot be divided among "
            f"others: go back to --distributed-world-size {len(paths)} and the --batch-size of before, "
            "or go on with an empty memory (--no-save-memory)"
        )
    former = epoch_itr.former[rank]
    rows = [None if place is None else (_existing(paths[place[0]]), place[1]) for place in former]
    memory.load_rows(rows, device=device)


def _existing(path: str) -> str:
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path}: no such file, but the checkpoint's memory: copy it there, or go on with an empty "
            "memory (--no-save-memory)"
        )
    return path


def _one_by_one(dataset) -> Tuple[List[int], ...]:
    # every item is a batch
    return tuple([index] for index in range(len(dataset)))


def remove_unnamed_memory(folder: str, keep: Optional[List[str]] = None) -> None:
    """Removes the memory files that no checkpoint in *folder* names, except those to *keep*."""
    files = {name for name in os.listdir(folder) if _MEMORY_FILE.fullmatch(name)}
    files -= set(keep or [])
    if not files:
        return
    try:
        files -= _named_memory(folder)
    except (OSError, ValueError) as error:  # it may name any of them
        logger.warning(f"no memory file is removed, because a checkpoint cannot be read: {error}")
        return
    for name in files:
        path = os.path.join(folder, name)
        if os.path.isdir(path):  # of a save that was cut short
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                os.remove(path)


def _named_memory(folder: str) -> Set[str]:
    named = set()
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not name.endswith(".pt"):
            continue
        with suppress(FileNotFoundError), clear_errors(path):
            # mapped: the tensors themselves are not read
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            extra_state = state.get("extra_state", {})
            named.update(extra_state.get("train_iterator", {}).get("memory_files") or [])
    return named


def _memory(trainer):
    return getattr(trainer.get_model().decoder, "memory", None)
