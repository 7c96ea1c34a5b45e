"""LongMem: a frozen backbone and a SideNet that reads the backbone's past from a memory bank.

B streams, T tokens, C embed_dim, H heads, L backbone layers, r layer reduction factor,
S = L / r SideNet layers, m retrieval layer index, V vocabulary.
"""

import logging
import os
from dataclasses import dataclass, field

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import FairseqLanguageModel, register_model
from torch import Tensor, nn

from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.checkpoints import checkpoint_in, hexadecimal, load_backbone
from longmem_fairseq.models.memory_config import (
    MemoryConfig,
    build_memory,
    log_parameters,
    memory_options,
)
from longmem_fairseq.models.memory_decoder import MemoryDecoder, Reading
from longmem_fairseq.modules import ACTIVATIONS

logger = logging.getLogger(__name__)

SIDENET_INIT_CHOICES = ChoiceEnum(["released", "identity"])
SIDENET_ACTIVATION_CHOICES = ChoiceEnum(["released", "backbone", *ACTIVATIONS])
BACKBONE_DTYPE_CHOICES = ChoiceEnum(["compute", "int8"])
SIDENET_EPS = 1e-5  # of the released SideNet's norms


@dataclass
class LongMemConfig(MemoryConfig):
    layer_reduction_factor: int = field(
        default=2, metadata={"help": "backbone layers per SideNet layer; must divide their number"}
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
            "released: gelu beside a backbone of the paper's shape (one parallel block, gelu_tanh), as "
            "in the release, and that of the backbone beside any other, converted ones among them"
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


class SideNetDecoder(MemoryDecoder):
    """The SideNet with the backbone inside (section 3.2 of arXiv 2306.07174).

    Its state dict holds the SideNet and the backbone's fingerprint, never the backbone.

    Args:
        cfg: see :class:`LongMemConfig`
        backbone: will be frozen and stored in ``cfg.compute_dtype``
        fingerprint: of the backbone, see :func:`load_backbone`

    Raises:
        ValueError: naming the option that does not fit
    """

    def __init__(self, cfg: LongMemConfig, backbone: BackboneDecoder, fingerprint: Tensor):
        super().__init__(backbone.dictionary)
        num_layers, reduction = len(backbone.layers), cfg.layer_reduction_factor
        if reduction < 1 or num_layers % reduction != 0:
            raise ValueError(
                f"--layer-reduction-factor ({reduction}) must divide the backbone's {num_layers} "
                "layers"
            )
        self.memory = build_memory(cfg, backbone.cfg, backbone.window, hexadecimal(fingerprint))
        self.retrieval_layer = cfg.retrieval_layer_index
        self.memory_layer = cfg.retrieval_layer_index // reduction
        if self.memory is not None and self.retrieval_layer % reduction != reduction - 1:
            logger.warning(
                f"--retrieval-layer-index {self.retrieval_layer}: the SideNet's queries start as those "
                f"of backbone layer {self.memory_layer * reduction + reduction - 1}, not as queries to "
                "the keys that are cached"
            )
        self.reduction = reduction
        self.identity = str(cfg.sidenet_init) == "identity"
        self.padding_idx, self.window = backbone.padding_idx, backbone.window
        self.num_attention_layers = num_layers + num_layers // reduction
        options = {"layer_norm_eps": SIDENET_EPS, "dropout": cfg.dropout}
        options["activation"] = _activation(str(cfg.activation_fn), backbone.cfg)
        self.layers = nn.ModuleList()
        for layer in range(num_layers // reduction):
            reads = self.memory is not None and layer == self.memory_layer
            reading = {"has_memory": True, **memory_options(cfg)} if reads else {}
            source = reduction * layer + reduction - 1
            self.layers.append(backbone.new_block(source, **options, **reading))
        self.layer_norm = backbone.new_norm(None if self.identity else SIDENET_EPS)
        self._init_from(backbone)
        self.register_buffer("backbone_fingerprint", fingerprint)
        backbone.freeze(int8=str(cfg.backbone_dtype) == "int8")
        self.backbone = backbone
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_pre_hook(_keep_backbone)

    def _init_from(self, backbone: BackboneDecoder) -> None:
        for i, layer in enumerate(self.layers):
            # strict=False: the memory layer has a gate, which no backbone layer has
            source = backbone.layers[self.reduction * i + self.reduction - 1]
            layer.load_state_dict(source.state_dict(), strict=False)
            if self.identity:
                layer.silence()
        self.layer_norm.load_state_dict(backbone.layer_norm.state_dict())

    def train(self, mode: bool = True):
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def gate(self) -> Tensor:
        """Weight of memory, H numbers in (0, 1)."""
        return self.layers[self.memory_layer].self_attn.gate

    def read(self, src_tokens, retrieve=None, caches=None, first=0) -> Reading:
        with self.backbone.autocast(src_tokens.device):
            biases = self.backbone.biases(src_tokens, caches)
            with torch.no_grad():
                encoded = self.backbone.encode(
                    src_tokens, self.retrieval_layer, self.reduction, caches=caches
                )
            states = encoded.hidden_states
            if not self.identity:
                # faithful: the list's last entry is after the final LayerNorm
                states = states[:-1] + [self.backbone.layer_norm(states[-1])]
            x = states[0]
            for i, layer in enumerate(self.layers):
                below = self.reduction * i
                residual = states[below + self.reduction] - states[below]
                reads = i == self.memory_layer
                cache = None if caches is None else caches[len(self.backbone.layers) + i]
                bias = biases[below + self.reduction - 1]
                x = layer(x, bias, retrieve if reads else None, residual, cache).x
            logits = self.backbone.output_layer(self.layer_norm(x[:, first:]))
        return Reading(logits, encoded.keys, encoded.values)

    def keys_values(self, src_tokens):
        return self.backbone.layer_keys_values(src_tokens, self.retrieval_layer)


def _activation(choice: str, backbone: LongMemBackboneConfig) -> str:
    """Of the SideNet's MLP; see ``--activation-fn``."""
    shape = (str(backbone.block), str(backbone.activation_fn))
    if choice == "released" and shape == ("parallel", "gelu_tanh"):
        return "gelu"
    return shape[1] if choice in ("released", "backbone") else choice


def _drop_backbone(module: SideNetDecoder, state_dict, prefix: str, metadata) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + "backbone.")]:
        del state_dict[name]


def _keep_backbone(module: SideNetDecoder, state_dict, prefix: str, *unused) -> None:
    """Refuses the SideNet of another backbone; lets a strict load find the backbone in place."""
    saved = state_dict.get(prefix + "backbone_fingerprint")
    if saved is not None and not torch.equal(saved.cpu(), module.backbone_fingerprint.cpu()):
        raise ValueError(
            f"this SideNet was trained with the backbone {hexadecimal(saved)[:16]}, not with "
            f"{hexadecimal(module.backbone_fingerprint)[:16]}: give its own backbone as "
            "--pretrained-model-path"
        )
    for name, tensor in module.backbone.state_dict().items():
        state_dict[prefix + "backbone." + name] = tensor


@register_model("longmem", dataclass=LongMemConfig)
class LongMem(FairseqLanguageModel):
    """Backbone, SideNet and memory; only the SideNet is trained and saved."""

    @staticmethod
    def settle_config(cfg: LongMemConfig, from_checkpoint: bool) -> None:
        """What is saved with a checkpoint: a path that holds from any working directory."""
        path = checkpoint_in(cfg.pretrained_model_path)
        if os.path.isfile(path):  # else the error is to name it as it was given
            cfg.pretrained_model_path = os.path.abspath(path)

    @classmethod
    def build_model(cls, cfg: LongMemConfig, task):
        backbone, fingerprint = load_backbone(
            cfg.pretrained_model_path,
            task.source_dictionary,
            task.cfg.tokens_per_sample,
            compute_dtype=str(cfg.compute_dtype),
        )
        model = cls(SideNetDecoder(cfg, backbone, fingerprint))
        log_parameters(model)
        return model
