"""Saving and loading a SideNet without the frozen backbone inside it."""

import torch
from torch import nn

from longmem_fairseq.models.checkpoints import fingerprint, hexadecimal


def leave_out_backbone(sidenet: nn.Module) -> None:
    """Makes the state dict of a :class:`SideNetDecoder` hold no backbone, only its fingerprint, which
    loading compares."""
    sidenet.register_state_dict_post_hook(_drop_backbone)
    sidenet.register_load_state_dict_pre_hook(_load_backbone)
    sidenet.register_load_state_dict_pre_hook(_check_fingerprint)
    sidenet.register_load_state_dict_pre_hook(_choose_parts)
    sidenet.register_load_state_dict_post_hook(_miss_no_backbone)


def _drop_backbone(module: nn.Module, state_dict, prefix: str, metadata) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + "backbone.")]:
        del state_dict[name]


def _load_backbone(module: nn.Module, state_dict, prefix: str, *unused) -> None:
    """Where *state_dict* is that of a backbone, without a SideNet: loads the backbone."""
    if prefix + "embed_tokens.weight" not in state_dict:
        return
    names = [name for name in state_dict if name.startswith(prefix)]
    weights = {name.removeprefix(prefix): state_dict.pop(name) for name in names}
    module.backbone.load_state_dict(weights, assign=True)
    module.backbone.tie_head()
    module.backbone.freeze(int8=module.int8_once_loaded)
    module.backbone_fingerprint.copy_(fingerprint(weights))
    module.take_search_keys()
    state_dict.update({prefix + name: t for name, t in module.state_dict().items()})


def _check_fingerprint(module: nn.Module, state_dict, prefix: str, *unused) -> None:
    """Refuses the SideNet of another backbone."""
    saved = state_dict.get(prefix + "backbone_fingerprint")
    if saved is not None and not torch.equal(saved.cpu(), module.backbone_fingerprint.cpu()):
        raise ValueError(
            f"this SideNet was trained with the backbone {hexadecimal(saved)[:16]}, not with "
            f"{hexadecimal(module.backbone_fingerprint)[:16]}: give its own backbone as "
            "--pretrained-model-path"
        )


def _choose_parts(module: nn.Module, state_dict, prefix: str, *unused) -> None:
    """Search keys and pointer: drops those that this model does not have, and refuses their lack."""
    for name, option, other in (
        ("search_keys", "--memory-search (hidden)", "attention"),
        ("pointer", "--pointer (trained)", "constant"),
    ):
        part = getattr(module, name)
        if part is None:
            # a checkpoint trained with memory may be evaluated without, or with another search
            for unneeded in [key for key in state_dict if key.startswith(f"{prefix}{name}.")]:
                del state_dict[unneeded]
        elif any(f"{prefix}{name}.{key}" not in state_dict for key in part.state_dict()):
            raise ValueError(
                f"{option} needs a checkpoint that was trained with it: choose {other}, or train it"
            )


def _miss_no_backbone(module: nn.Module, incompatible) -> None:
    """Lets a strict load find the backbone in place."""
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if "backbone" not in name.split(".")[:-1]]
