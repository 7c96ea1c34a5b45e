"""Replacements for fairseq's functions that save and load checkpoints, and around its update.

``torch.load`` unpickles nothing but tensors and plain containers unless told otherwise, and we keep
it that way. fairseq's loader is wrapped so that any mishap is one clear error.

fairseq tells a task of a save on the first rank alone, and of a load without model and folder. Its
functions are wrapped so that a task that has ``before_save``, ``after_save`` and ``after_load``
hears of both in full, and one that has ``not_finite`` is asked where gradients became NaN.

An epoch that goes on with another --update-freq is read to its end.

A checkpoint is either whole or not there. fairseq copied ``checkpoint_last.pt`` in place, and wrote
up to three times into one file where a disk was full.
"""

import logging
import math
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import iterators
from fairseq.trainer import Trainer

from longmem_fairseq.models.checkpoints import checkpoint_in, find_backbone, note_backbone
from longmem_fairseq.models.exported import read_exported
from longmem_fairseq.utils.checkpoint_errors import clear_errors

logger = logging.getLogger(__name__)

_original_read = checkpoint_utils.load_checkpoint_to_cpu
_original_save = checkpoint_utils.save_checkpoint
_original_load = checkpoint_utils.load_checkpoint
_original_copy = checkpoint_utils.PathManager.copy
_original_write = checkpoint_utils.torch_persistent_save
_original_train_step = Trainer.train_step
_original_group = iterators.GroupedIterator.__init__

_UNFINISHED = ".tmp"


def load_checkpoint_to_cpu(path, *args, **kwargs):
    """``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` with :func:`clear_errors`.

    Also of exported models, which are no pickles, and of a folder that holds one checkpoint or more.
    """
    path = checkpoint_in(str(path))
    if str(path).endswith(".safetensors"):
        return read_exported(Path(path), *args)
    unknown = None
    with clear_errors(path):
        try:
            state = _original_read(path, *args, **kwargs)
        except KeyError as error:  # fairseq looks up the architecture that the checkpoint names
            unknown = error
    if unknown is not None:
        raise ValueError(
            f"{path} is not a checkpoint that can be read here ({unknown} is unknown or missing); one "
            "of the released LongMem goes through preprocess/convert_longmem_checkpoint.py first"
        ) from unknown
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path} is not a fairseq checkpoint: it holds no model")
    find_backbone(state, os.path.dirname(path))
    return state


def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
    """``fairseq.checkpoint_utils.save_checkpoint`` between ``before_save`` and ``after_save``."""
    hooks = hasattr(trainer.task, "before_save") and not cfg.no_save
    if hooks:
        trainer.task.before_save(trainer, epoch_itr, cfg.save_dir)
    saved = _original_save(cfg, trainer, epoch_itr, val_loss)
    if hooks:
        trainer.task.after_save(trainer, epoch_itr, cfg.save_dir)
    return saved


def load_checkpoint(cfg, trainer, **kwargs):
    """``fairseq.checkpoint_utils.load_checkpoint``, then ``after_load``."""
    if cfg.restore_file != "checkpoint_last.pt":
        if os.path.isdir(cfg.restore_file):
            cfg.restore_file = os.path.join(cfg.restore_file, "checkpoint_last.pt")
        if not os.path.isfile(cfg.restore_file):  # fairseq would begin anew
            raise FileNotFoundError(f"--restore-file ({cfg.restore_file}): no such checkpoint")
        folder = os.path.dirname(cfg.restore_file)
    elif cfg.continue_once and not os.path.exists(os.path.join(cfg.save_dir, cfg.restore_file)):
        folder = os.path.dirname(cfg.continue_once)
    else:
        folder = cfg.save_dir
    if trainer.data_parallel_world_size > 1:
        # else the first rank sends the others its configuration, which torch.load refuses to unpickle
        cfg.load_checkpoint_on_all_dp_ranks = True
    if trainer.is_data_parallel_master:
        for unfinished in Path(cfg.save_dir).glob("*.pt" + _UNFINISHED):  # of a run that was killed
            unfinished.unlink()
    extra_state, epoch_itr = _original_load(cfg, trainer, **kwargs)
    if hasattr(trainer.task, "after_load"):
        trainer.task.after_load(trainer, epoch_itr, folder)
    limits = trainer.cfg.optimization
    if trainer.get_num_updates() >= (limits.max_update or math.inf):
        logger.info(
            f"--max-update ({limits.max_update}) is reached: there is nothing left to train"
        )
        limits.max_epoch = -1  # fairseq would do one update more
    return extra_state, epoch_itr


@contextmanager
def _replaced(path):
    """Gives a name to write to, which becomes *path* at the end.

    Raises:
        OSError: it cannot be written; an older file is left as it was
    """
    unfinished = path + _UNFINISHED
    try:
        yield unfinished
        with open(unfinished, "rb") as written:
            os.fsync(written.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            os.remove(unfinished)
        # PyTorch's own error hides the system's
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"{path}: cannot be written ({reason})") from error


def torch_persistent_save(state, path, async_write=False):
    """``fairseq.checkpoint_utils.torch_persistent_save``, once, and whole or not at all."""
    if async_write or not checkpoint_utils.PathManager.supports_rename(path):
        return _original_write(state, path, async_write)
    note_backbone(state, os.path.dirname(path))
    with _replaced(path) as unfinished, open(unfinished, "wb") as file:
        torch.save(state, file)


def copy(source, target, overwrite=False):
    """``PathManager.copy``, whole or not at all."""
    if not checkpoint_utils.PathManager.supports_rename(target):
        return _original_copy(source, target, overwrite)
    with _replaced(target) as unfinished:
        return shutil.copyfile(source, unfinished)


def train_step(trainer, *args, **kwargs):
    """``Trainer.train_step``; where gradients are NaN the task says where the loss was."""
    try:
        return _original_train_step(trainer, *args, **kwargs)
    except FloatingPointError as error:
        where = getattr(trainer.task, "not_finite", lambda rank: None)(trainer.data_parallel_rank)
        if where is None and trainer.data_parallel_world_size == 1:
            raise
        where = where or f"{error}; the log of another rank may name the document"
        raise FloatingPointError(f"update {trainer.get_num_updates() + 1}: {where}") from error


def grouped_iterator(iterator, iterable, chunk_size, skip_remainder_batch=False):
    """``GroupedIterator``, which counts the updates that are left of an epoch, also for a run that goes
    on with another --update-freq: fairseq counted those of whole epochs, and left out the last batches.
    """
    _original_group(iterator, iterable, chunk_size, skip_remainder_batch)
    if not skip_remainder_batch:
        left = len(iterable) - getattr(iterable, "n", 0)
        iterator.total = iterator.n + -(-left // chunk_size)
