"""A converted model's folder: checkpoint.pt and dict.txt, as ``fairseq-train`` would have left them."""

from pathlib import Path
from typing import Dict, Mapping, Optional

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from longmem_fairseq.models.checkpoints import PLACE, dictionary_hash
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig


def check_fits(
    source: Path,
    weights: Dict[str, Tensor],
    module: nn.Module,
    names: Optional[Mapping[str, str]] = None,
) -> None:
    """Checks that *weights* are all that *module* needs, and nothing else.

    Args:
        names: by our name of a tensor, the one to be used in messages

    Raises:
        ValueError: naming the first tensor that is missing, unknown, or of another shape
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted(shapes.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else "no such tensor"
        expected = shapes.get(name, "no such tensor")
        if found != expected:
            raise ValueError(
                f"{source} does not fit its own options: {names[name] if names else name} is {found}, "
                f"expected {expected}"
            )


def save_model(
    folder: Path,
    cfg,
    weights: Dict[str, Tensor],
    tokens_per_sample: int,
    dictionary: str,
    backbone_place: Optional[str] = None,
) -> None:
    """Writes dictionary and checkpoint, without optimizer state.

    Args:
        cfg: configuration of the model
        weights: state dict of its decoder
        dictionary: the text of dict.txt
        backbone_place: of a SideNet: its backbone's checkpoint, seen from *folder*
    """
    folder.mkdir(exist_ok=True)
    (folder / "dict.txt").write_text(dictionary, encoding="utf-8")
    task = LongMemLanguageModelingConfig(
        _name="longmem_language_modeling", data="", tokens_per_sample=tokens_per_sample
    )
    whole = OmegaConf.structured(FairseqConfig)
    whole.model, whole.task = OmegaConf.structured(cfg), OmegaConf.structured(task)
    history = {"optimizer_name": "", "criterion_name": "", "lr_scheduler_state": {}}
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(whole, resolve=True, enum_to_str=True),
        "model": {f"decoder.{name}": tensor for name, tensor in weights.items()},
        "optimizer_history": [{**history, "num_updates": 0}],
        "extra_state": {"train_iterator": None},
        "task_state": {
            "dictionary_hash": dictionary_hash(Dictionary.load(str(folder / "dict.txt"))),
            PLACE: backbone_place,
        },
    }
    torch.save(state, folder / "checkpoint.pt")
