"""What fairseq 0.12 needs to read checkpoints safely with today's PyTorch.

``torch.load`` unpickles nothing but tensors and plain containers unless told otherwise, and we keep
it that way. Checkpoints of the released LongMem code also hold an ``argparse.Namespace``, a plain
bag of options. fairseq's loader is wrapped so that whatever goes wrong is one clear error.
"""

import argparse
import os
import pickle
import struct
from contextlib import contextmanager

import torch
from fairseq import checkpoint_utils

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


def _load_checkpoint_to_cpu(path, *args, **kwargs):
    """``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` with :func:`clear_errors`."""
    unknown = None
    with clear_errors(path):
        try:
            state = _original(path, *args, **kwargs)
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


if checkpoint_utils.load_checkpoint_to_cpu is not _load_checkpoint_to_cpu:
    _original = checkpoint_utils.load_checkpoint_to_cpu
    checkpoint_utils.load_checkpoint_to_cpu = _load_checkpoint_to_cpu
    torch.serialization.add_safe_globals([argparse.Namespace])
