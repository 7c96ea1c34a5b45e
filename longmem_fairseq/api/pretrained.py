"""Models as training leaves them: a folder with checkpoint, dictionary and tokenizer."""

import re
from pathlib import Path
from typing import Dict, Tuple, Union

import torch
from fairseq import checkpoint_utils
from fairseq.models import FairseqLanguageModel
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.models.checkpoints import CHECKPOINTS, checkpoint_in, identify_memory
from longmem_fairseq.tasks.config import MODEL_OPTIONS, TASK, ModelOptions
from longmem_fairseq.tokenizers import Tokenizer, load_tokenizer

# what building a model raises whose configuration is damaged, or of other sizes than its weights
_MISFITS = (
    OmegaConfBaseException,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
)
_OPTIONS = (*MODEL_OPTIONS, "tokens_per_sample", "segment_overlap")
# as a command line names them
_OPTION = re.compile("--({})(?![a-z-])".format("|".join(_OPTIONS).replace("_", "-")))


def load_pretrained(
    path: Path, device: Union[str, torch.device], overrides: Dict
) -> Tuple[FairseqLanguageModel, Tokenizer]:
    """Model, in evaluation mode, and tokenizer; see :meth:`LongMem.from_pretrained`.

    Errors name options as Python does.
    """
    try:
        return load_with_options(path, device, overrides)
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        message = _OPTION.sub(lambda option: option[1].replace("-", "_"), str(error))
        raise kind(message) from error


def load_with_options(
    path: Path, device: Union[str, torch.device], overrides: Dict
) -> Tuple[FairseqLanguageModel, Tokenizer]:
    """The same, for commands: errors name options as a command line does."""
    install()
    checkpoint = _find_checkpoint(path)
    for name in overrides:
        if name not in _OPTIONS:
            raise ValueError(f"{name} is no option of a model: expected {', '.join(_OPTIONS)}")
    # what the task was given in training stands in the model's configuration, settled
    nothing = {name: getattr(ModelOptions(), name) for name in MODEL_OPTIONS}
    task = {**nothing, **overrides, "data": str(checkpoint.parent)}
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), {"task": task})
    _give_memory(state, overrides)
    _check_task(checkpoint, state)
    try:
        (model,), _ = checkpoint_utils.load_model_ensemble([str(checkpoint)], state=state)
    except FileNotFoundError as error:
        if "--pretrained-model-path" not in str(error):
            raise
        raise FileNotFoundError(
            f"{error}; {checkpoint} needs its backbone: give --pretrained-model-path"
        ) from error
    except _MISFITS as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{checkpoint} does not fit its own options ({reason})") from error
    identify_memory(model)
    tokenizer = load_tokenizer(checkpoint.parent, model.decoder.dictionary, ids_suffice=True)
    return model.to(_as_device(device)).eval(), tokenizer


def _find_checkpoint(path: Path) -> Path:
    """A checkpoint whose folder is complete.

    Raises:
        FileNotFoundError: naming what is missing
    """
    found = Path(checkpoint_in(str(path)))
    if found.is_dir():
        raise FileNotFoundError(f"{path} holds no model: expected {', '.join(CHECKPOINTS)}")
    if not found.is_file():
        raise FileNotFoundError(f"{path}: no such model")
    if not (found.parent / "dict.txt").is_file():
        raise FileNotFoundError(
            f"{found.parent} has no dict.txt: copy dictionary and tokenizer of the model's corpus "
            "there (train_scripts/copy_vocabulary.sh)"
        )
    return found


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
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split(chr(10))[0]
        raise ValueError(f"device ({device}) cannot be used: {reason}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device ({device}) cannot be used: expected cpu, cuda, cuda:1, ...")
    return found
