"""What fairseq 0.12 needs to read checkpoints safely with today's PyTorch, and to resume exactly.

``torch.load`` unpickles nothing but tensors and plain containers unless told otherwise, and we keep
it that way. Checkpoints of the released LongMem code also hold an ``argparse.Namespace``, a plain
bag of options. fairseq's loader is wrapped so that whatever goes wrong is one clear error.

fairseq tells a task of a save on the first rank alone, and of a load without model and folder. Its
functions are wrapped so that a task that has ``before_save``, ``after_save`` and ``after_load``
hears of both in full.

fairseq leaves its process group to the end of the interpreter, where gloo's threads may still need
it: now and then a rank that had done all its work died by SIGABRT.
"""

import argparse
import os
import pickle
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from longmem_fairseq.exported import read_exported

_original_read = checkpoint_utils.load_checkpoint_to_cpu
_original_save = checkpoint_utils.save_checkpoint
_original_load = checkpoint_utils.load_checkpoint
_original_copy = checkpoint_utils.PathManager.copy
_original_main = distributed_utils.distributed_main

# what torch.load raises for a damaged file, depending on where the damage is
_DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


@contextmanager
def clear_errors(path):
    """Around the loading of a checkpoint: errors for people.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: not a checkpoint, a damaged one, or one that would execute code
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        _check_size(path)
        yield
    except _DAMAGE as error:
        if "unsupported global" in str(error).lower():  # PyTorch has two spellings
            raise ValueError(
                f"{path}: refused, it would execute code when loaded (its pickle names objects other "
                "than tensors and plain containers)"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error
    except OSError as error:
        if error.filename is not None:  # not allowed to read it, and the like
            raise
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error


def _check_size(path) -> None:
    """Raises ValueError for a file that unpacks to more than it is: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > os.path.getsize(path):
                raise ValueError("compressed")


def _load_checkpoint_to_cpu(path, *args, **kwargs):
    """``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` with :func:`clear_errors`.

    Also of exported models, which are no pickles.
    """
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
    return state


def _save_checkpoint(cfg, trainer, epoch_itr, val_loss):
    """``fairseq.checkpoint_utils.save_checkpoint`` between ``before_save`` and ``after_save``."""
    hooks = hasattr(trainer.task, "before_save") and not cfg.no_save
    if hooks:
        trainer.task.before_save(trainer, epoch_itr, cfg.save_dir)
    saved = _original_save(cfg, trainer, epoch_itr, val_loss)
    if hooks:
        trainer.task.after_save(trainer, epoch_itr, cfg.save_dir)
    return saved


def _load_checkpoint(cfg, trainer, **kwargs):
    """``fairseq.checkpoint_utils.load_checkpoint``, then ``after_load``."""
    if cfg.restore_file != "checkpoint_last.pt":
        folder = os.path.dirname(cfg.restore_file)
    elif cfg.continue_once and not os.path.exists(os.path.join(cfg.save_dir, cfg.restore_file)):
        folder = os.path.dirname(cfg.continue_once)
    else:
        folder = cfg.save_dir
    if trainer.data_parallel_world_size > 1:
        # else the first rank sends the others its configuration, which torch.load refuses to unpickle
        cfg.load_checkpoint_on_all_dp_ranks = True
    extra_state, epoch_itr = _original_load(cfg, trainer, **kwargs)
    if hasattr(trainer.task, "after_load"):
        trainer.task.after_load(trainer, epoch_itr, folder)
    return extra_state, epoch_itr


def _copy(source, target, overwrite=False):
    """``PathManager.copy`` that never leaves half a checkpoint_last.pt to a run that was killed."""
    if not checkpoint_utils.PathManager.supports_rename(target):
        return _original_copy(source, target, overwrite)
    copied = _original_copy(source, target + ".tmp", overwrite=True)
    checkpoint_utils.PathManager.rename(target + ".tmp", target)
    return copied


def _distributed_main(*args):
    """``fairseq.distributed.utils.distributed_main``, which leaves the process group after success."""
    _original_main(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


checkpoint_utils.load_checkpoint_to_cpu = _load_checkpoint_to_cpu
checkpoint_utils.save_checkpoint = _save_checkpoint
checkpoint_utils.load_checkpoint = _load_checkpoint
checkpoint_utils.PathManager.copy = staticmethod(_copy)
distributed_utils.distributed_main = _distributed_main
torch.serialization.add_safe_globals([argparse.Namespace])
