"""What fairseq 0.12 needs to read checkpoints safely with today's PyTorch.

``torch.load`` unpickles nothing but tensors and plain containers unless told otherwise, and we keep
it that way. Checkpoints of the released LongMem code also hold an ``argparse.Namespace``, a plain
bag of options. fairseq's loader is wrapped so that whatever goes wrong is one clear error.
"""

import argparse
import os
import pickle

import torch
from fairseq import checkpoint_utils


def _load_checkpoint_to_cpu(path, *args, **kwargs):
    """``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` with errors for people.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: not a checkpoint, a damaged one, or one that would execute code
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state = _original(path, *args, **kwargs)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise ValueError(
                f"{path}: refused, it would execute code when loaded (its pickle names objects other "
                "than tensors and plain containers)"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path} is not a fairseq checkpoint: it holds no model")
    return state


if checkpoint_utils.load_checkpoint_to_cpu is not _load_checkpoint_to_cpu:
    _original = checkpoint_utils.load_checkpoint_to_cpu
    checkpoint_utils.load_checkpoint_to_cpu = _load_checkpoint_to_cpu
    torch.serialization.add_safe_globals([argparse.Namespace])
