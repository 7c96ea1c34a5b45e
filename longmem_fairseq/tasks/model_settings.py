"""The configuration of a model, with the task's options in it."""

from typing import Any, Dict

from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from omegaconf import DictConfig, open_dict

from longmem_fairseq.utils.cli import as_option


def settle_model(cfg: DictConfig, given: Dict[str, Any], from_checkpoint: bool) -> None:
    """Puts the options that the task was given into a model's configuration, and settles it.

    Args:
        cfg: of a model; this very object is saved, while fairseq gives a copy to ``build_model``
        given: options of the model by name; see :func:`given_options`
        from_checkpoint: *cfg* is a checkpoint's, which may be older than an option of its model

    Raises:
        ValueError: an option does not apply to the model
    """
    options = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(cfg._name))
    given = dict(given)
    if given.get("memory_index", cfg.get("memory_index")) != cfg.get("memory_index"):
        given.setdefault("memory_index_parameters", "")  # the checkpoint's are of its own index
    if from_checkpoint and "no_memory" in given and "use_external_memory" in cfg:
        cfg.use_external_memory = False  # the released switch of its training
    for name, value in given.items():
        if name not in cfg and not hasattr(options, name):
            raise ValueError(
                f"{as_option(name)} ({value}) does not apply to a {cfg._name} model: leave it out"
            )
        with open_dict(cfg):
            cfg[name] = value
    with open_dict(cfg):
        ARCH_MODEL_REGISTRY[cfg._name].settle_config(cfg, from_checkpoint)


def check_architecture(cfg: Any) -> None:
    """Checks that a model's configuration is one of this package.

    A stranger's may be of a model of fairseq's, some of which hand theirs to ``eval``.

    Raises:
        ValueError: it is another's
    """
    name = getattr(cfg, "_name", None)
    if not hasattr(ARCH_MODEL_REGISTRY.get(name), "settle_config"):
        raise ValueError(
            f"architecture {name or 'unknown'}: this task is for longmem, memtrm and longmem_backbone"
        )


def wants_memory(cfg: DictConfig, given: Dict[str, Any], from_checkpoint: bool) -> bool:
    """True where a backbone's own checkpoint is to read a memory, through a pointer."""
    is_backbone = from_checkpoint and cfg._name.startswith("longmem_backbone")
    return is_backbone and str(given.get("pointer", "none")) != "none"
