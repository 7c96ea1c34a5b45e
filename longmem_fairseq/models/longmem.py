"""LongMem: a frozen backbone and a SideNet that reads the backbone's past from a memory bank.

B streams, T tokens, C embed_dim, H heads, L backbone layers, r layer reduction factor,
S = L / r SideNet layers, m retrieval layer index, V vocabulary.
"""

import logging
import os
from dataclasses import dataclass, field
from functools import partial
from typing import Dict, Optional, Sequence, Set

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import FairseqLanguageModel, register_model
from omegaconf import OmegaConf
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.models.backbone import (
    BackboneDecoder,
    BackboneOutput,
    LongMemBackboneConfig,
)
from longmem_fairseq.models.checkpoints import (
    checkpoint_in,
    hexadecimal,
    load_backbone,
    without_weights,
)
from longmem_fairseq.models.checkpoints import fingerprint as sha256_of
from longmem_fairseq.models.memory_config import (
    MemoryConfig,
    build_memory,
    build_pointer,
    log_parameters,
    memory_options,
    search_dim,
    search_layer,
)
from longmem_fairseq.models.memory_decoder import Entries, Lookup, MemoryDecoder, Reading
from longmem_fairseq.modules import ACTIVATIONS, SearchKeys
from longmem_fairseq.modules.pointer import MATCH_LENGTHS, contexts_of

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
        self.has_sidenet = not cfg.no_sidenet
        self.memory = build_memory(
            cfg, backbone.cfg, backbone.window, hexadecimal(fingerprint), self.has_sidenet
        )
        # nothing reads keys and values without a SideNet
        self.retrieval_layer = cfg.retrieval_layer_index if self.has_sidenet else 0
        self.search_layer, self.search_keys, self.pointer = None, None, None
        if self.memory is not None and self.memory.options["search"] == "hidden":
            self.search_layer = search_layer(cfg, backbone.cfg)
            self.search_keys = SearchKeys(backbone.cfg.embed_dim, search_dim(cfg, backbone.cfg))
            self._take_search_keys(backbone)
        if self.memory is not None:
            self.pointer = build_pointer(cfg, backbone.cfg.embed_dim)
        if cfg.no_sidenet and self.memory is not None and self.pointer is None:
            raise ValueError(
                "--no-sidenet needs --memory-search hidden and a --pointer: nothing reads memory"
            )
        self.memory_layer = cfg.retrieval_layer_index // reduction
        by_attention = self.memory is not None and self.search_layer is None
        if by_attention and self.retrieval_layer % reduction != reduction - 1:
            logger.warning(
                f"--retrieval-layer-index {self.retrieval_layer}: the SideNet's queries start as those "
                f"of backbone layer {self.memory_layer * reduction + reduction - 1}, not as queries to "
                "the keys that are cached"
            )
        self.reduction = reduction
        # without blocks of its own, the SideNet is the identity
        self.identity = str(cfg.sidenet_init) == "identity" or not self.has_sidenet
        self.padding_idx, self.window = backbone.padding_idx, backbone.window
        self.rotary_rule = backbone.rotary_rule
        num_blocks = num_layers // reduction if self.has_sidenet else 0
        self.num_attention_layers = num_layers + num_blocks
        options = {"layer_norm_eps": SIDENET_EPS, "dropout": cfg.dropout}
        options["activation"] = _activation(str(cfg.activation_fn), backbone.cfg)
        self.layers = nn.ModuleList()
        for layer in range(num_blocks):
            reads = self.memory is not None and layer == self.memory_layer
            reading = {"has_memory": True, **memory_options(cfg)} if reads else {}
            source = reduction * layer + reduction - 1
            self.layers.append(backbone.new_block(source, **options, **reading))
        self.layer_norm = None  # the backbone's own
        if self.has_sidenet:
            self.layer_norm = backbone.new_norm(None if self.identity else SIDENET_EPS)
            self._init_from(backbone)
        self.register_buffer("backbone_fingerprint", fingerprint)
        backbone.freeze(int8=str(cfg.backbone_dtype) == "int8")
        self.backbone, self.int8_once_loaded = backbone, False
        self.register_state_dict_post_hook(_drop_backbone)
        self.register_load_state_dict_pre_hook(_keep_backbone)
        self.register_load_state_dict_post_hook(_miss_no_backbone)
        self.register_load_state_dict_post_hook(lambda module, keys: module.identify_memory())
        self.identify_memory()

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
    def gate(self) -> Optional[Tensor]:
        if not self.has_sidenet:
            return None
        return self.layers[self.memory_layer].self_attn.gate

    def _take_search_keys(self, backbone: BackboneDecoder) -> None:
        """Those that were fitted when the backbone was converted, if they are of the same layer."""
        fitted = backbone.cfg.fitted_search_layer == self.search_layer
        if fitted and not backbone.search_mean.is_meta:
            self.search_keys.mean.copy_(backbone.search_mean)

    @torch.no_grad()
    def fit_search_keys(self, segments: Sequence[Tensor]) -> None:
        """Fits the search keys to the hidden states of some text, in segments of 1 x T tokens."""
        states = [self.backbone.hidden_state(tokens, self.search_layer) for tokens in segments]
        # without the first tokens, attention sinks many times as long as all others
        self.search_keys.fit(torch.cat([state[0, 1:].float() for state in states]))
        self.identify_memory()

    def identify_memory(self) -> None:
        """Memories of other search keys are as foreign as those of another backbone."""
        if self.search_keys is not None:
            parts = [hexadecimal(self.backbone_fingerprint)]
            if self.has_sidenet:
                parts.append(f"layer {self.retrieval_layer}")
            # not of the rotation, which is the same but for how a processor rounds
            found = hexadecimal(sha256_of({"mean": self.search_keys.mean}))
            parts.append(f"search {self.search_layer} {found[:16]}")
            self.memory.options["fingerprint"] = " ".join(parts)

    def read(
        self, src_tokens, retrieve=None, caches=None, first=0, before=None, target=None
    ) -> Reading:
        with self.backbone.autocast(src_tokens.device):
            # before these tokens are in the caches
            biases = self.backbone.biases(src_tokens, caches)
            with torch.no_grad():
                encoded = self.backbone.encode(
                    src_tokens, self.retrieval_layer, self._needed_states, caches=caches
                )
            states, entries = encoded.hidden_states, self._entries(encoded)
            lookup = None if retrieve is None else Lookup(retrieve)
            if self.search_layer is not None and retrieve is not None:
                contexts = contexts_of(src_tokens, before, MATCH_LENGTHS[-1])
                found = retrieve(entries.search_keys.unsqueeze(1), contexts=contexts)
                lookup = Lookup(partial(_already, found), found)
            x = self._run_sidenet(states, biases, lookup, caches)
            x = (self.layer_norm or self.backbone.layer_norm)(x[:, first:])
            retrieved, pointer = None, None
            if self.pointer is not None and lookup is not None and lookup.found is not None:
                retrieved = lookup.found.from_query(first)
            ids = None if retrieved is None else retrieved.token_ids.clamp(min=0)
            logits, losses, log_probs = self.backbone.predict(x, target, ids)
            if retrieved is not None:
                pointer = self.pointer(retrieved, x, log_probs)
                if losses is not None:
                    losses = pointer.losses(losses, target, self.padding_idx)
            elif self.pointer is not None and self.training:
                # a gradient of zero, not none: see JointAttention.forward
                zero = 0 * sum(p.sum() for p in self.pointer.parameters())
                logits, losses = (None if t is None else t + zero for t in (logits, losses))
        return Reading(logits, entries, pointer, lookup, losses)

    @property
    def _needed_states(self) -> Set[int]:
        """Numbers of the hidden states that are looked at."""
        num_layers = len(self.backbone.layers)
        residuals = range(0, num_layers + 1, self.reduction) if self.has_sidenet else (num_layers,)
        return {*residuals, self.search_layer}

    def _run_sidenet(self, states, biases, retrieve, caches) -> Tensor:
        """Output of the last block, B x T x C."""
        if not self.has_sidenet:
            return states[-1]
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
        return x

    def _entries(self, encoded: BackboneOutput) -> Optional[Entries]:
        if self.memory is None:
            return None
        keys, values = encoded.keys, encoded.values
        if not self.has_sidenet:
            keys, values = keys[:, :0], values[:, :0]
        if self.search_layer is None:
            return Entries(keys, values)
        return Entries(keys, values, self.search_keys(encoded.hidden_states[self.search_layer]))

    def entries(self, src_tokens) -> Entries:
        if self.search_layer is None:
            return Entries(*self.backbone.layer_keys_values(src_tokens, self.retrieval_layer))
        needed = max(self.retrieval_layer + 1 if self.has_sidenet else 0, self.search_layer)
        with torch.no_grad(), self.backbone.autocast(src_tokens.device):
            keep = {self.search_layer}
            return self._entries(
                self.backbone.encode(src_tokens, self.retrieval_layer, keep, last_layer=needed)
            )


def _already(found: Optional[Retrieved], queries: Tensor) -> Optional[Retrieved]:
    """What an attention layer retrieves, whatever its queries, after another search."""
    return found


def _activation(choice: str, backbone: LongMemBackboneConfig) -> str:
    """Of the SideNet's MLP; see ``--activation-fn``."""
    names = ("block", "activation_fn", "positions")
    shape = tuple(str(getattr(backbone, name)) for name in names)
    if choice == "released" and shape == ("parallel", "gelu_tanh", "alibi"):
        return "gelu"
    return shape[1] if choice in ("released", "backbone") else choice


def _drop_backbone(module: SideNetDecoder, state_dict, prefix: str, metadata) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + "backbone.")]:
        del state_dict[name]


def _keep_backbone(module: SideNetDecoder, state_dict, prefix: str, *unused) -> None:
    """Refuses the SideNet of another backbone.

    Of a backbone's own checkpoint, without a SideNet, it is the backbone that is loaded.
    """
    if prefix + "embed_tokens.weight" in state_dict:
        own = [name for name in state_dict if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): state_dict.pop(name) for name in own}
        module.backbone.load_state_dict(weights, assign=True)
        module.backbone.tie_head()
        module.backbone.freeze(int8=module.int8_once_loaded)
        module.backbone_fingerprint.copy_(sha256_of(weights))
        module._take_search_keys(module.backbone)
        state_dict.update({prefix + name: t for name, t in module.state_dict().items()})
    saved = state_dict.get(prefix + "backbone_fingerprint")
    if saved is not None and not torch.equal(saved.cpu(), module.backbone_fingerprint.cpu()):
        raise ValueError(
            f"this SideNet was trained with the backbone {hexadecimal(saved)[:16]}, not with "
            f"{hexadecimal(module.backbone_fingerprint)[:16]}: give its own backbone as "
            "--pretrained-model-path"
        )
    for name, option, other in (
        ("search_keys", "--memory-search (hidden)", "attention"),
        ("pointer", "--pointer (trained)", "constant"),
    ):
        part = getattr(module, name)
        if part is None:
            # a checkpoint trained with memory may be evaluated without, or with another search
            for unused in [key for key in state_dict if key.startswith(f"{prefix}{name}.")]:
                del state_dict[unused]
        elif any(f"{prefix}{name}.{key}" not in state_dict for key in part.state_dict()):
            raise ValueError(
                f"{option} needs a checkpoint that was trained with it: choose {other}, or train it"
            )


def _miss_no_backbone(module: SideNetDecoder, incompatible) -> None:
    """Lets a strict load find the backbone in place."""
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if "backbone" not in name.split(".")[:-1]]


@register_model("longmem", dataclass=LongMemConfig)
class LongMemModel(FairseqLanguageModel):
    """Backbone, SideNet and memory; only the SideNet is trained and saved."""

    @staticmethod
    def settle_config(cfg: LongMemConfig, from_checkpoint: bool) -> None:
        """What is saved with a checkpoint: a path that holds from any working directory."""
        path = checkpoint_in(cfg.pretrained_model_path)
        if os.path.isfile(path):  # else the error is to name it as it was given
            cfg.pretrained_model_path = os.path.abspath(path)

    @classmethod
    def around_backbone(cls, backbone_cfg: LongMemBackboneConfig, options: Dict, task):
        """A backbone with a memory but without a SideNet, into which the backbone's own checkpoint is
        loaded.

        Args:
            options: fields of :class:`LongMemConfig`

        Raises:
            ValueError: the checkpoint has no search keys, or an option does not fit
        """
        fitted = backbone_cfg.fitted_search_layer
        if fitted < 1:
            raise ValueError(
                "this backbone has no search keys, without which --pointer finds nothing: convert it "
                "again, or train with --no-sidenet --pointer trained"
            )
        if options.get("search_layer", fitted) not in (-1, fitted):
            raise ValueError(
                f"--search-layer ({options['search_layer']}) must be {fitted}, or -1: the search keys "
                "of this backbone are of that layer"
            )
        if str(options.get("pointer")) == "trained":
            raise ValueError(
                "--pointer (trained) has not been trained with this backbone: choose constant, or "
                "train it with --arch longmem --no-sidenet"
            )
        cfg = LongMemConfig(
            no_sidenet=True,
            memory_search="hidden",
            pointer="constant",
            chunk_size=1,
        )
        cfg = OmegaConf.merge(OmegaConf.structured(cfg), options)
        cfg.retrieval_layer_index = 0  # a default that any backbone has
        backbone_cfg.compute_dtype = cfg.compute_dtype
        with without_weights():
            backbone = BackboneDecoder(
                backbone_cfg, task.source_dictionary, task.cfg.tokens_per_sample
            )
        int8, cfg.backbone_dtype = str(cfg.backbone_dtype) == "int8", "compute"
        decoder = SideNetDecoder(cfg, backbone, torch.zeros(32, dtype=torch.uint8))
        decoder.int8_once_loaded = int8
        return cls(decoder)

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
