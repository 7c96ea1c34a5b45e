"""Going on in the middle of an epoch: where the streams were, and what they remembered.

A checkpoint says how many batches were read (fairseq), what their layout depends on, and which files
beside it hold the memory, one per rank. Those files are written before the checkpoint that names
them, under names never used before, and removed when no checkpoint in the folder names them any more.
So every checkpoint has its memory, at whatever moment a run was killed. Between two epochs there is
nothing to remember: all streams start anew.
"""

import logging
import os
import re
import shutil
import uuid
from contextlib import suppress
from typing import Dict, List, Optional, Set

import torch
from fairseq.data import iterators

from longmem_fairseq.compat import clear_errors

logger = logging.getLogger(__name__)

# with what a save that was cut short may have left
_MEMORY_FILE = re.compile(r"\.?memory_\d+_[0-9a-f]{8}_rank\d+\.safetensors.*")


class ResumableStreams(iterators.EpochBatchIterator):
    """Batches of streams whose saved state refuses to go on with other streams.

    Args:
        layout: option, or what else the batches depend on, and its value
    """

    def __init__(self, *args, layout: Dict[str, int], **kwargs):
        super().__init__(*args, **kwargs)
        self.layout = layout
        self.memory_files: Optional[List[str]] = None  # of the checkpoint, one per rank

    def state_dict(self) -> Dict:
        return {**super().state_dict(), "layout": self.layout, "memory_files": self.memory_files}

    def load_state_dict(self, state_dict: Dict) -> None:
        """
        Raises:
            ValueError: the batches of the epoch would not be those that the checkpoint counted; or it
                names a memory outside of its folder
        """
        if state_dict["iterations_in_epoch"] > 0:
            for name, saved in state_dict.get("layout", {}).items():
                if self.layout[name] != saved:
                    raise ValueError(
                        f"{name} ({self.layout[name]}) was {saved} when the checkpoint was saved, in "
                        f"the middle of an epoch: go back to {saved}, or start the epochs over with an "
                        "empty memory (--reset-dataloader)"
                    )
        super().load_state_dict(state_dict)
        self.memory_files = names_beside(state_dict.get("memory_files"))


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


def save_memory(trainer, epoch_itr: ResumableStreams, folder: str, wanted: bool = True) -> None:
    """Writes the memory of this rank; the next checkpoint will name the files of all ranks."""
    memory, epoch_itr.memory_files = _memory(trainer), None
    if memory is None or not wanted or epoch_itr.end_of_epoch():
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


def load_memory(trainer, epoch_itr: ResumableStreams, folder: str, wanted: bool = True) -> None:
    """Reads the memory of this rank if the streams go on in the middle of an epoch.

    Raises:
        FileNotFoundError: the file that the checkpoint names is not in its folder
    """
    memory = _memory(trainer)
    if memory is None or epoch_itr.iterations_in_epoch == 0:
        return
    if not wanted or epoch_itr.memory_files is None:
        reason = "the checkpoint names no memory file" if wanted else "--no-save-memory"
        logger.warning(f"{reason}: the streams go on in their documents with an empty memory")
        return
    path = os.path.join(folder, epoch_itr.memory_files[trainer.data_parallel_rank])
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path}: no such file, but the checkpoint's memory: copy it there, or go on with an empty "
            "memory (--no-save-memory)"
        )
    memory.load(path, device=next(trainer.get_model().parameters()).device)


def remove_unnamed_memory(folder: str, keep: Optional[List[str]]) -> None:
    """Removes the memory files that no checkpoint in *folder* names, except those to *keep*."""
    files = {name for name in os.listdir(folder) if _MEMORY_FILE.fullmatch(name)}
    files -= set(keep or [])
    if files:
        files -= _named_memory(folder)
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
        with suppress(OSError, ValueError), clear_errors(path):  # no checkpoint names nothing
            # mapped: the tensors themselves are not read
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            extra_state = state.get("extra_state", {})
            named.update(extra_state.get("train_iterator", {}).get("memory_files") or [])
    return named


def _memory(trainer):
    return getattr(trainer.get_model().decoder, "memory", None)
