"""Options of LongMem, besides those of its memory."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum

from longmem_fairseq.models.decoder_config import DecoderConfig
from longmem_fairseq.models.memory_config import MemoryConfig
from longmem_fairseq.modules import ACTIVATIONS

SIDENET_INIT_CHOICES = ChoiceEnum(["released", "identity"])
SIDENET_ACTIVATION_CHOICES = ChoiceEnum(["released", "backbone", *ACTIVATIONS])
BACKBONE_DTYPE_CHOICES = ChoiceEnum(["compute", "int8"])


@dataclass
class LongMemConfig(MemoryConfig):
    """Options of the SideNet, and of its backbone's storage."""

    layer_reduction_factor: int = field(
        default=2, metadata={"help": "backbone layers per SideNet layer; must divide their number"}
    )
    no_sidenet: bool = field(
        default=False,
        metadata={
            "help": "no SideNet: the backbone with nothing but a --pointer, which is then all that "
            "--pointer trained trains"
        },
    )
    sidenet_init: SIDENET_INIT_CHOICES = field(
        default="released",
        metadata={
            "help": "released: SideNet layers start as copies of backbone layers, as in the paper; "
            "identity: their output matrices start at zero and the last residual is taken before "
            "the final LayerNorm, so that training starts from the backbone's own predictions"
        },
    )
    activation_fn: SIDENET_ACTIVATION_CHOICES = field(
        default="released",
        metadata={
            "help": "activation of the SideNet's MLP; backbone: that of the layers it starts from; "
            "released: gelu beside a backbone of the paper's shape (parallel, gelu_tanh, alibi), "
            "as in the release, and that of the backbone beside any other, converted ones among them"
        },
    )
    backbone_dtype: BACKBONE_DTYPE_CHOICES = field(
        default="compute",
        metadata={
            "help": "how the frozen backbone is stored; compute: in --compute-dtype; int8: the "
            "matrices of its blocks in a byte per number, with a scale per row, which takes half the "
            "room of bfloat16 and more time"
        },
    )
    dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of both branches of a SideNet block"}
    )


def sidenet_activation(choice: str, backbone: DecoderConfig) -> str:
    """Activation of the SideNet's MLP; see ``--activation-fn``."""
    names = ("block", "activation_fn", "positions")
    shape = tuple(str(getattr(backbone, name)) for name in names)
    if choice == "released" and shape == ("parallel", "gelu_tanh", "alibi"):
        return "gelu"
    return shape[1] if choice in ("released", "backbone") else choice
