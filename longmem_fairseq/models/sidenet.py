"""The SideNet: reads the hidden states of a frozen backbone, and the backbone's past from memory.

B streams, T tokens, C embed_dim, H heads, L backbone layers, r layer reduction factor,
S = L / r SideNet layers, m retrieval layer index, V vocabulary.
"""

import logging
from functools import partial
from typing import Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.models.backbone import BackboneDecoder, BackboneOutput
from longmem_fairseq.models.building import build_memory, build_pointer
from longmem_fairseq.models.checkpoints import fingerprint as sha256_of
from longmem_fairseq.models.checkpoints import hexadecimal
from longmem_fairseq.models.frozen_backbone import leave_out_backbone
from longmem_fairseq.models.longmem_config import LongMemConfig, sidenet_activation
from longmem_fairseq.models.memory_config import memory_options, search_dim, search_layer
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.models.reading import Entries, Lookup, Reading
from longmem_fairseq.modules import (
    JointAttention,
    Pointer,
    Prediction,
    SearchKeys,
)
from longmem_fairseq.modules.places import (
    Places,
    contexts_of,
    places_of,
)

logger = logging.getLogger(__name__)

SIDENET_EPS = 1e-5  # of the released SideNet's norms


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
        self.has_sidenet, self.reduction = not cfg.no_sidenet, reduction
        # without blocks of its own, the SideNet is the identity
        self.identity = str(cfg.sidenet_init) == "identity" or not self.has_sidenet
        self.padding_idx, self.window = backbone.padding_idx, backbone.window
        self.rotary_rule = backbone.rotary_rule
        # nothing reads keys and values without a SideNet
        self.retrieval_layer = cfg.retrieval_layer_index if self.has_sidenet else 0
        self.memory_layer = cfg.retrieval_layer_index // reduction
        self._build_memory(cfg, backbone, fingerprint)
        self.layers = self._new_blocks(cfg, backbone)
        self.num_caches = num_layers + len(self.layers) + int(self.pointer is not None)
        self.layer_norm = None  # the backbone's own
        if self.has_sidenet:
            self.layer_norm = backbone.new_norm(None if self.identity else SIDENET_EPS)
            self._init_from(backbone)
        self.register_buffer("backbone_fingerprint", fingerprint)
        backbone.freeze(int8=str(cfg.backbone_dtype) == "int8")
        self.backbone, self.int8_once_loaded = backbone, False
        self.take_search_keys()
        leave_out_backbone(self)
        self.register_load_state_dict_post_hook(lambda module, keys: module.identify_memory())
        self.identify_memory()

    def _build_memory(
        self, cfg: LongMemConfig, backbone: BackboneDecoder, fingerprint: Tensor
    ) -> None:
        """Memory, search keys and pointer, as far as the options ask for them."""
        embed_dim = backbone.cfg.embed_dim
        self.memory = build_memory(
            cfg, backbone.cfg, backbone.window, hexadecimal(fingerprint), self.has_sidenet
        )
        self.search_layer, self.search_keys, self.pointer = None, None, None
        if self.memory is None:
            return
        if self.memory.options["search"] == "hidden":
            self.search_layer = search_layer(cfg, backbone.cfg)
            self.search_keys = SearchKeys(embed_dim, search_dim(cfg, backbone.cfg))
        self.pointer = build_pointer(cfg, embed_dim)
        if cfg.no_sidenet and self.pointer is None:
            raise ValueError(
                "--no-sidenet needs --memory-search hidden and a --pointer: nothing reads memory"
            )
        copied = self.memory_layer * self.reduction + self.reduction - 1
        if self.search_layer is None and self.retrieval_layer != copied:
            logger.warning(
                f"--retrieval-layer-index {self.retrieval_layer}: the SideNet's queries start as those "
                f"of backbone layer {copied}, not as queries to the keys that are cached"
            )

    def _new_blocks(self, cfg: LongMemConfig, backbone: BackboneDecoder) -> nn.ModuleList:
        """The SideNet's blocks, of the shape of the backbone's layers that they start from."""
        options = {"layer_norm_eps": SIDENET_EPS, "dropout": cfg.dropout}
        options["activation"] = sidenet_activation(str(cfg.activation_fn), backbone.cfg)
        blocks = nn.ModuleList()
        for layer in range(len(backbone.layers) // self.reduction if self.has_sidenet else 0):
            reads = self.memory is not None and layer == self.memory_layer
            reading = {"has_memory": True, **memory_options(cfg)} if reads else {}
            source = self.reduction * layer + self.reduction - 1
            blocks.append(backbone.new_block(source, **options, **reading))
        return blocks

    def _init_from(self, backbone: BackboneDecoder) -> None:
        for i, layer in enumerate(self.layers):
            # strict=False: the memory layer has a gate, which no backbone layer has
            source = backbone.layers[self.reduction * i + self.reduction - 1]
            layer.load_state_dict(source.state_dict(), strict=False)
            if self.identity:
                layer.silence()
        self.layer_norm.load_state_dict(backbone.layer_norm.state_dict())

    def train(self, mode: bool = True):
        """See ``torch.nn.Module``; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def memory_attention(self) -> Optional[JointAttention]:
        """See :meth:`MemoryDecoder.memory_attention`."""
        return self.layers[self.memory_layer].self_attn if self.has_sidenet else None

    def take_search_keys(self) -> None:
        """Takes the search keys that were fitted when the backbone was converted, if they are of the
        same layer and the backbone is loaded."""
        fitted = self.backbone.cfg.fitted_search_layer == self.search_layer
        if fitted and not self.backbone.search_mean.is_meta:
            self.search_keys.mean.copy_(self.backbone.search_mean)

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
        self,
        src_tokens,
        retrieve=None,
        caches=None,
        first=0,
        before=None,
        target=None,
        memorized=None,
    ) -> Reading:
        """See :meth:`MemoryDecoder.read`."""
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
                contexts = contexts_of(src_tokens, before)
                found = retrieve(entries.search_keys.unsqueeze(1), contexts=contexts)
                lookup = Lookup(partial(_already, found), found)
            x = self._run_sidenet(states, biases, lookup, caches)
            x = (self.layer_norm or self.backbone.layer_norm)(x[:, first:])
            places = None
            if self.pointer is not None:
                search_keys, tokens = entries.search_keys, src_tokens
                if caches is not None:
                    search_keys = caches[-1].extend_search_keys(search_keys)
                    tokens = torch.cat([before, src_tokens], dim=1)
                if lookup is not None and lookup.found is not None:
                    places = places_of(lookup.found, search_keys, tokens, x.size(1), memorized)
            prediction, pointer = self._predict(x, places, target)
        return Reading(prediction.logits, entries, pointer, lookup, prediction.losses)

    def _predict(
        self, x: Tensor, places: Optional[Places], target: Optional[Tensor]
    ) -> Tuple[Prediction, Optional[Pointer]]:
        """The backbone's prediction, and a pointer, which is mixed into losses but not into logits.

        Args:
            x: B x T x C, after the final norm
            places: of the T tokens; None without a pointer, or with nothing in memory
        """
        if places is None:
            return self._with_zero_gradient(self.backbone.predict(x, target)), None
        prediction = self.backbone.predict(x, target, ids=places.ids)
        pointer = self.pointer(places, x, prediction.log_probs)
        if target is None:
            return prediction, pointer
        losses = pointer.losses(prediction.losses, target, self.padding_idx)
        return prediction._replace(losses=losses), pointer

    def _with_zero_gradient(self, prediction: Prediction) -> Prediction:
        """For a pointer to nothing: a gradient of zero, not none; see
        :meth:`JointAttention.forward`."""
        if self.pointer is None or not self.training:
            return prediction
        zero = 0 * sum(p.sum() for p in self.pointer.parameters())
        made = {name: t for name, t in prediction._asdict().items() if t is not None}
        return prediction._replace(**{name: t + zero for name, t in made.items()})

    @property
    def _needed_states(self) -> Set[int]:
        """Numbers of the hidden states that SideNet and search read."""
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
        """See :meth:`MemoryDecoder.entries`."""
        if self.search_layer is None:
            return Entries(*self.backbone.layer_keys_values(src_tokens, self.retrieval_layer))
        needed = max(self.retrieval_layer + 1 if self.has_sidenet else 0, self.search_layer)
        with torch.no_grad(), self.backbone.autocast(src_tokens.device):
            keep = {self.search_layer}
            return self._entries(
                self.backbone.encode(src_tokens, self.retrieval_layer, keep, last_layer=needed)
            )


def _already(found: Optional[Retrieved], queries: Tensor) -> Optional[Retrieved]:
    """The retrieval of an attention layer after another search: *found*, whatever its queries."""
    return found
