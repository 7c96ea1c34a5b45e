"""Models as training leaves them: a folder with checkpoint, dictionary and tokenizer."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Tuple, Union

import torch
from fairseq import checkpoint_utils
from fairseq.models import FairseqLanguageModel
from omegaconf import OmegaConf

from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.models.checkpoints import CHECKPOINTS, BackboneNotFoundError, checkpoint_in
from longmem_fairseq.tasks.config import MODEL_OPTIONS, TASK, ModelOptions
from longmem_fairseq.tokenizers import Tokenizer, load_tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError

_OPTIONS = (*MODEL_OPTIONS, "tokens_per_sample", "segment_overlap")
# as a command line names them
_OPTION = re.compile("--({})(?![a-z-])".format("|".join(_OPTIONS).replace("_", "-")))


@contextmanager
def names_of_arguments() -> Iterator[None]:
    """Around :func:`load_pretrained` in Python: errors call options of the model by their arguments.

    Raises:
        FileNotFoundError, ValueError: as inside
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(_with_arguments(error)) from error
    except ValueError as error:
        raise ValueError(_with_arguments(error)) from error


def _with_arguments(error: Exception) -> str:
    return _OPTION.sub(lambda option: option[1].replace("-", "_"), str(error))


def load_pretrained(
    path: Path, device: Union[str, torch.device], overrides: Dict
) -> Tuple[FairseqLanguageModel, Tokenizer]:
    """Model, in evaluation mode, and tokenizer; see :meth:`LongMem.from_pretrained`.

    Raises:
        FileNotFoundError, ValueError: see :meth:`LongMem.from_pretrained`; options of the model are
            called as on a command line, see :func:`names_of_arguments`
    """
    install()
    checkpoint = _find_checkpoint(path)
    for name in overrides:
        if name not in _OPTIONS:
            raise ValueError(f"{name} is no option of a model: expected {', '.join(_OPTIONS)}")
    # options that the task had in training stand in the model's configuration, settled
    nothing = {name: getattr(ModelOptions(), name) for name in MODEL_OPTIONS}
    task = {**nothing, **overrides, "data": str(checkpoint.parent)}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), {"task": task})
    _give_memory(state, overrides)
    _check_task(checkpoint, state)
    try:
        (model,), _ = checkpoint_utils.load_model_ensemble([str(checkpoint)], state=state)
    except BackboneNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {checkpoint} needs its backbone: give --pretrained-model-path"
        ) from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # of a damaged configuration, or one of other sizes than the weights
        reason = str(error).split("\n")[0]
        raise ValueError(f"{checkpoint} does not fit its own options ({reason})") from error
    model.decoder.identify_memory()
    tokenizer = load_tokenizer(checkpoint.parent, model.decoder.dictionary, ids_suffice=True)
    return model.to(_as_device(device)).eval(), tokenizer


def _find_checkpoint(path: Path) -> Path:
    """The checkpoint in a folder that is complete.

    Raises:
        FileNotFoundError: naming what is missing
    """
    checkpoint = Path(checkpoint_in(str(path)))
    if checkpoint.is_dir():
        raise FileNotFoundError(f"{path} holds no model: expected {', '.join(CHECKPOINTS)}")
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{path}: no such model")
    if not (checkpoint.parent / "dict.txt").is_file():
        raise FileNotFoundError(
            f"{checkpoint.parent} has no dict.txt: copy dictionary and tokenizer of the model's corpus "
            "there (train_scripts/copy_vocabulary.sh)"
        )
    return checkpoint


def _give_memory(state: Dict, overrides: Dict) -> None:
    """A backbone that was converted has a memory, without training, unless no_memory says otherwise."""
    cfg = state.get("cfg")
    fitted = OmegaConf.select(cfg, "model.fitted_search_layer") if cfg else None
    if not fitted:
        return
    off = {"no_memory": True, "memory_size": 0, "pointer": "none"}
    if any(overrides.get(name) == value for name, value in off.items()):
        cfg.task.no_memory, cfg.task.memory_size, cfg.task.pointer = False, None, None
    elif cfg.task.pointer is None:
        cfg.task.pointer = "constant"


def _check_task(checkpoint: Path, state: Dict) -> None:
    """Raises ValueError where it is not ours: it would be set up with a stranger's configuration."""
    cfg = state.get("cfg")
    name = OmegaConf.select(cfg, "task._name") if cfg and state.get("args") is None else None
    if name != TASK:
        raise ValueError(f"{checkpoint} was trained with the task {name}, expected {TASK}")


def _as_device(device: Union[str, torch.device]) -> torch.device:
    try:
        usable = torch.empty(0, device=device).device
    except Exception as error:  # PyTorch has several for a device that is not there
        reason = str(error).split("\n")[0]
        raise ArgumentError("{device} ({}) cannot be used: {}", device, reason) from error
    if usable.type not in ("cpu", "cuda"):
        raise ArgumentError("{device} ({}) cannot be used: expected cpu, cuda, cuda:1, ...", device)
    return usable
