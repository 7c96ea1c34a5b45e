"""The frozen backbone: a decoder-only transformer.

B streams, T tokens, C embed_dim, H heads, H' key/value heads, D head_dim, L layers, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Container, List, NamedTuple, Optional, Tuple

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.models import FairseqLanguageModel, register_model, register_model_architecture
from omegaconf import OmegaConf
from torch import Tensor, nn

from longmem_fairseq.models.decoder_config import DecoderConfig, block_shape, check_decoder
from longmem_fairseq.models.initialization import initialize
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.models.reading import Reading, Retrieve
from longmem_fairseq.modules import (
    NORMS,
    CausalBias,
    DecoderBlock,
    LocalCache,
    Prediction,
    pack,
    predict,
    quantize,
    store_by_inputs,
)
from longmem_fairseq.modules.rotary_scaling import parse_scaling

COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
COMPUTE_DTYPE_CHOICES = ChoiceEnum(list(COMPUTE_DTYPES))


@dataclass
class LongMemBackboneConfig(DecoderConfig):
    """Options of a backbone that is trained as a language model."""

    dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of both branches of a block"}
    )
    compute_dtype: COMPUTE_DTYPE_CHOICES = field(
        default="float32",
        metadata={"help": "type of the matrix products (autocast); trained weights stay float32"},
    )


class BackboneOutput(NamedTuple):
    """The result of one pass over a segment.

    hidden_states: L + 1 tensors B x T x C (embedding output, then after each block, all before the
        final norm); those that were not asked for are None
    keys, values: B x H' x T x D of the memory layer, None without one
    """

    hidden_states: List[Optional[Tensor]]
    keys: Optional[Tensor]
    values: Optional[Tensor]


class BackboneDecoder(MemoryDecoder):
    """Section 3.1 of arXiv 2306.07174; the released GPT-2* 407M is its default configuration.

    Args:
        cfg: see :class:`LongMemBackboneConfig`
        dictionary: its size is V
        window: tokens of a segment
        memory_layer: a layer that reads memory itself (MemTRM); None for a plain language model
        memory_options: further arguments of that layer's :class:`JointAttention`

    Raises:
        ValueError: see :func:`check_decoder`
    """

    def __init__(
        self,
        cfg: LongMemBackboneConfig,
        dictionary,
        window: int,
        memory_layer: Optional[int] = None,
        **memory_options,
    ):
        super().__init__(dictionary)
        check_decoder(cfg, window)
        self.cfg = cfg
        self.compute_dtype = COMPUTE_DTYPES[str(cfg.compute_dtype)]
        self.window, self.num_caches = window, cfg.num_layers
        self.padding_idx = dictionary.pad()
        self.embed_tokens = nn.Embedding(len(dictionary), cfg.embed_dim, self.padding_idx)
        self.embed_positions = None
        if str(cfg.positions) == "learned":
            self.embed_positions = nn.Embedding(cfg.max_positions, cfg.embed_dim)
        self.rotary_rule = parse_scaling(cfg.rotary_scaling)
        self.embed_norm = self.new_norm() if cfg.embed_norm else nn.Identity()
        alibi_heads = cfg.num_attention_heads if str(cfg.positions) == "alibi" else 0
        self.attention_bias = CausalBias(alibi_heads, cfg.alibi_scale)
        self.sliding_layers = frozenset(cfg.sliding_layers)  # omegaconf's lists are slow to search
        self.sliding_bias = CausalBias(alibi_heads, cfg.alibi_scale, cfg.sliding_window)
        self.layers = nn.ModuleList()
        for layer in range(cfg.num_layers):
            options = {"has_memory": True, **memory_options} if layer == memory_layer else {}
            self.layers.append(self.new_block(layer, dropout=cfg.dropout, **options))
        self.layer_norm = self.new_norm()
        self.output_projection = nn.Linear(
            cfg.embed_dim, len(dictionary), bias=not cfg.no_head_bias
        )
        if cfg.fitted_search_layer > 0:
            self.register_buffer("search_mean", torch.zeros(cfg.embed_dim))
        self.tie_head()
        if not self.embed_tokens.weight.is_meta:  # else they are loaded
            initialize(self)

    def tie_head(self) -> None:
        """Shares the embedding with the head where the configuration says so; also to be called after
        a state dict was loaded with ``assign``."""
        if self.cfg.tied_head:
            self.output_projection.weight = self.embed_tokens.weight

    def new_norm(self, eps: Optional[float] = None) -> nn.Module:
        """A norm over C of the kind that this decoder has."""
        eps = self.cfg.layer_norm_eps if eps is None else eps
        return NORMS[str(self.cfg.norm)](self.cfg.embed_dim, eps=eps)

    def new_block(self, layer: int, **options) -> DecoderBlock:
        """A block of the shape of *layer*; *options* are arguments of :class:`DecoderBlock`."""
        cfg = self.cfg
        shape = {**block_shape(cfg, layer), **options}
        return DecoderBlock(cfg.embed_dim, cfg.num_attention_heads, **shape)

    def encode(
        self,
        src_tokens: Tensor,
        memory_layer: Optional[int] = None,
        keep: Optional[Container[int]] = None,
        retrieve: Optional[Retrieve] = None,
        caches: Optional[List[LocalCache]] = None,
        last_layer: Optional[int] = None,
    ) -> BackboneOutput:
        """Runs the layers, without the final norm and the output head.

        Args:
            src_tokens: B x T
            memory_layer: whose keys and values to return, 0-based
            keep: which of the L + 1 hidden states to return besides the last one (default: all)
            retrieve: what *memory_layer* reads; see :meth:`JointAttention.forward`
            caches: of the tokens before these, one for each layer
            last_layer: stop after so many layers (default: all)
        """
        x = self._embed(src_tokens, caches)  # B x T x C
        biases = self.biases(src_tokens, caches)
        hidden_states = [x]
        keys = values = None
        for layer, block in enumerate(self.layers[:last_layer]):
            reads = layer == memory_layer
            cache = None if caches is None else caches[layer]
            output = block(x, biases[layer], retrieve if reads else None, cache=cache)
            x = output.x
            if reads:
                keys, values = output.keys, output.values
            hidden_states.append(x if keep is None or layer + 1 in keep else None)
        return BackboneOutput([*hidden_states[:-1], x], keys, values)

    def _embed(self, src_tokens: Tensor, caches: Optional[List[LocalCache]] = None) -> Tensor:
        # a stored half-precision embedding is widened: the residual stream is always float32
        x = self.embed_tokens(src_tokens).float() * self.cfg.embed_scale
        if self.embed_positions is not None:
            start = caches[0].num_tokens if caches else 0
            positions = torch.arange(start, start + src_tokens.size(1), device=x.device)
            x = x + self.embed_positions(positions).float()
        return self.embed_norm(x)

    def biases(
        self, src_tokens: Tensor, caches: Optional[List[LocalCache]] = None
    ) -> List[Optional[Tensor]]:
        """For each layer the bias of :func:`causal_attention`; of B x T tokens after P in *caches*."""
        num_before = caches[0].num_tokens if caches else 0
        sizes = (src_tokens.size(1), self.compute_dtype, src_tokens.device, num_before)
        bias, sliding = self.attention_bias(*sizes), None
        if self.sliding_layers:
            sliding = self.sliding_bias(*sizes)
        layers = range(len(self.layers))
        return [sliding if layer in self.sliding_layers else bias for layer in layers]

    @torch.no_grad()
    def hidden_state(self, src_tokens: Tensor, layer: int) -> Tensor:
        """Hidden state number *layer* of B x T tokens (0: the embedding), B x T x C."""
        with self.autocast(src_tokens.device):
            x = self._embed(src_tokens)
            for block, bias in zip(self.layers[:layer], self.biases(src_tokens), strict=False):
                x = block(x, bias).x
            return x

    def layer_keys_values(self, src_tokens: Tensor, layer: int) -> Tuple[Tensor, Tensor]:
        """Keys and values of a layer, B x H' x T x D, computing nothing that they do not need."""
        x = self.hidden_state(src_tokens, layer)
        with torch.no_grad(), self.autocast(src_tokens.device):
            return self.layers[layer].keys_values(x)

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
        with self.autocast(src_tokens.device):
            encoded = self.encode(src_tokens, keep=(), caches=caches)
            prediction = self.predict(self.layer_norm(encoded.hidden_states[-1][:, first:]), target)
        return Reading(prediction.logits, losses=prediction.losses)

    def predict(
        self, features: Tensor, target: Optional[Tensor] = None, ids: Optional[Tensor] = None
    ) -> Prediction:
        """See :func:`predict`, of hidden states B x T x C after the final norm."""
        weight = self.output_projection.weight
        trained = weight.requires_grad and torch.is_grad_enabled()
        sizes = {"padding_idx": self.padding_idx, "head_is_trained": trained}
        return predict(self.output_layer, weight.size(0), features, target, ids, **sizes)

    def freeze(self, int8: bool = False) -> None:
        """No gradients, weights of matrix products stored in ``compute_dtype``, evaluation mode.

        Args:
            int8: store those of the blocks in a byte each; head and embeddings stay as above
        """
        self.requires_grad_(False)
        if int8:
            quantize(self.layers, self.compute_dtype)
        pack(self, self.compute_dtype, keep_weight=("output_projection",))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(self.compute_dtype)
                if isinstance(module, nn.Linear) and self.compute_dtype == torch.float32:
                    store_by_inputs(module)
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                module.float()  # also where the checkpoint has others
        self.eval()

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of ``--compute-dtype``; nothing for float32."""
        return torch.autocast(
            device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32
        )

    def output_layer(self, features: Tensor, **unused) -> Tensor:
        """Logits B x T x V of hidden states B x T x C after the final norm."""
        if self.cfg.logit_scale != 1:
            features = features * self.cfg.logit_scale
        logits = self.output_projection(features)
        if self.cfg.logit_softcap > 0:
            logits = self.cfg.logit_softcap * torch.tanh(logits / self.cfg.logit_softcap)
        return logits


@register_model("longmem_backbone", dataclass=LongMemBackboneConfig)
class LongMemBackbone(FairseqLanguageModel):
    """The backbone as a language model of its own, to be pre-trained with ``fairseq-train``."""

    @staticmethod
    def settle_config(cfg: LongMemBackboneConfig, from_checkpoint: bool) -> None:
        """Options that are younger than the checkpoint have their defaults, which fairseq fills in
        for a model by its own name, but not for an architecture."""
        for name, value in OmegaConf.structured(LongMemBackboneConfig).items():
            if name not in cfg:
                cfg[name] = value

    @classmethod
    def build_model(cls, cfg: LongMemBackboneConfig, task):
        """See ``fairseq.models.BaseFairseqModel``."""
        return cls(BackboneDecoder(cfg, task.source_dictionary, task.cfg.tokens_per_sample))


def _architecture(name: str, embed_dim: int, num_layers: int, num_attention_heads: int):
    """Registers sizes under *name*, for the backbone: MemTRM takes its own from one."""

    def set_sizes(args):
        args.embed_dim = getattr(args, "embed_dim", embed_dim)
        args.num_layers = getattr(args, "num_layers", num_layers)
        args.num_attention_heads = getattr(args, "num_attention_heads", num_attention_heads)

    register_model_architecture("longmem_backbone", f"longmem_backbone_{name}")(set_sizes)


_architecture("tiny", 128, 4, 4)  # 1 M parameters beside the embeddings, CPU minutes
_architecture("mini", 256, 6, 8)  # 5 M, CPU hours
_architecture("small", 768, 12, 12)  # 85 M, GPT-2 small
_architecture("medium", 1024, 24, 16)  # 302 M, the paper's GPT-2*
