"""Models as training leaves them: a folder with checkpoint, dictionary and tokenizer."""

from pathlib import Path
from typing import Dict, Tuple, Union

import torch
from fairseq import checkpoint_utils
from fairseq.models import FairseqLanguageModel
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.models.checkpoints import identify_memory
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
CHECKPOINTS = (
    "checkpoint_best.pt",
    "checkpoint_last.pt",
    "checkpoint.pt",
    "model.safetensors",
)


def load_pretrained(
    path: Path, device: Union[str, torch.device], overrides: Dict
) -> Tuple[FairseqLanguageModel, Tokenizer]:
    """Model, in evaluation mode, and tokenizer; see :meth:`LongMem.from_pretrained`."""
    install()
    checkpoint = _find_checkpoint(path)
    known = (*MODEL_OPTIONS, "tokens_per_sample")
    for name in overrides:
        if name not in known:
            raise ValueError(f"{name} is no option of a model: expected {', '.join(known)}")
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
            f"{error}; {checkpoint} needs its backbone: give pretrained_model_path=CHECKPOINT"
        ) from error
    except _MISFITS as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{checkpoint} does not fit its own options ({reason})") from error
    identify_memory(model)
    tokenizer = load_tokenizer(checkpoint.parent, ids_suffice=True)
    return model.to(_as_device(device)).eval(), tokenizer


def _find_checkpoint(path: Path) -> Path:
    """A checkpoint whose folder is complete.

    Raises:
        FileNotFoundError: naming what is missing
    """
    found = path
    if path.is_dir():
        found = next((path / name for name in CHECKPOINTS if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{path} holds no model: expected {', '.join(CHECKPOINTS)}")
    elif not path.is_file():
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
    if fitted and not overrides.get("no_memory") and overrides.get("memory_size") != 0:
        if cfg.task.pointer is None:
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
