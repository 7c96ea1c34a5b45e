"""The frozen backbone: a decoder-only transformer with ALiBi positions and parallel blocks.

B streams, T tokens, C embed_dim, H heads, D head_dim, L layers, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import List, NamedTuple, Optional, Tuple

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import (
    FairseqLanguageModel,
    register_model,
    register_model_architecture,
)
from torch import Tensor, nn

from longmem_fairseq.models.memory_decoder import MemoryDecoder, Reading, Retrieve
from longmem_fairseq.modules import ACTIVATIONS, CausalAlibiBias, DecoderBlock, LocalCache

ACTIVATION_CHOICES = ChoiceEnum(list(ACTIVATIONS))
COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
COMPUTE_DTYPE_CHOICES = ChoiceEnum(list(COMPUTE_DTYPES))


@dataclass
class LongMemBackboneConfig(FairseqDataclass):
    embed_dim: int = field(default=1024, metadata={"help": "size of the hidden states"})
    num_layers: int = field(default=24, metadata={"help": "number of blocks"})
    num_attention_heads: int = field(
        default=16, metadata={"help": "attention heads; must divide --embed-dim"}
    )
    activation_fn: ACTIVATION_CHOICES = field(
        default="gelu_tanh", metadata={"help": "activation of the MLP"}
    )
    layer_norm_eps: float = field(default=1e-6, metadata={"help": "epsilon of every LayerNorm"})
    dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of both branches of a block"}
    )
    smeared_key_layers: List[int] = field(
        default_factory=list,
        metadata={
            "help": "layers (from 0, as 2,3) whose k_proj takes half of its channels from the previous "
            "token: small models learn to copy many times sooner, and there; a cached key then says "
            "what came before it"
        },
    )
    compute_dtype: COMPUTE_DTYPE_CHOICES = field(
        default="float32",
        metadata={"help": "type of the matrix products (autocast); trained weights stay float32"},
    )


class BackboneOutput(NamedTuple):
    """What one pass over a segment gives.

    hidden_states: L + 1 tensors B x T x C (embedding output, then after each block); those that
        were not asked for are None
    normed: B x T x C, the last hidden state after the final LayerNorm
    keys, values: B x H x T x D of the memory layer, None without one
    """

    hidden_states: List[Optional[Tensor]]
    normed: Tensor
    keys: Optional[Tensor]
    values: Optional[Tensor]


class BackboneDecoder(MemoryDecoder):
    """Section 3.1 of arXiv 2306.07174; the released GPT-2* 407M is its default configuration.

    Args:
        cfg: see :class:`LongMemBackboneConfig`
        dictionary: its size is V
        window: tokens of a segment
        memory_layer: a layer that reads memory itself (MemTRM); None for a plain language model

    Raises:
        ValueError: the heads do not divide the width
    """

    def __init__(
        self,
        cfg: LongMemBackboneConfig,
        dictionary,
        window: int,
        memory_layer: Optional[int] = None,
        gate_lr_multiplier: float = 1.0,
    ):
        super().__init__(dictionary)
        if cfg.embed_dim % cfg.num_attention_heads != 0:
            raise ValueError(
                f"--embed-dim ({cfg.embed_dim}) must be a multiple of --num-attention-heads "
                f"({cfg.num_attention_heads})"
            )
        for layer in cfg.smeared_key_layers:
            if not 0 <= layer < cfg.num_layers:
                raise ValueError(
                    f"--smeared-key-layers ({layer}) must be between 0 and {cfg.num_layers - 1}"
                )
        self.compute_dtype = COMPUTE_DTYPES[str(cfg.compute_dtype)]
        self.window, self.num_attention_layers = window, cfg.num_layers
        self.padding_idx = dictionary.pad()
        self.embed_tokens = nn.Embedding(len(dictionary), cfg.embed_dim, self.padding_idx)
        self.attention_bias = CausalAlibiBias(cfg.num_attention_heads)
        self.layers = nn.ModuleList(
            DecoderBlock(
                cfg.embed_dim,
                cfg.num_attention_heads,
                activation=str(cfg.activation_fn),
                layer_norm_eps=cfg.layer_norm_eps,
                dropout=cfg.dropout,
                smeared_keys=layer in cfg.smeared_key_layers,
                has_memory=layer == memory_layer,
                gate_lr_multiplier=gate_lr_multiplier,
            )
            for layer in range(cfg.num_layers)
        )
        self.layer_norm = nn.LayerNorm(cfg.embed_dim, eps=cfg.layer_norm_eps)
        self.output_projection = nn.Linear(cfg.embed_dim, len(dictionary))
        self._init_parameters()

    def _init_parameters(self) -> None:
        # GPT-2's: 0.02, and smaller for the matrices that write to the residual stream
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("out_proj.weight", "fc2.weight"))
                depth = (2 * len(self.layers)) ** -0.5 if writes else 1.0
                nn.init.normal_(parameter, std=0.02 * depth)
            elif name.endswith(("fc1.bias", "fc2.bias")):
                nn.init.zeros_(parameter)
        # the first prediction is the frequency of every token: learning it by gradient takes a
        # hundred updates that undo the matching of queries and keys below
        counts = torch.tensor(self.dictionary.count, dtype=torch.float)
        self.output_projection.bias.data.copy_((counts / counts.sum()).clamp(min=1e-9).log())
        # with the above alone, which token it is drowns in what the layers add: a small model then
        # needs several times more tokens before it copies
        nn.init.normal_(self.embed_tokens.weight, std=0.25)
        for block in self.layers:
            if block.self_attn.smeared_keys:
                # queries and keys start in one space: a token looks for places whose predecessor
                # resembles it, the matching step of copying, and strongly enough to be heard over
                # the whole segment
                queries, keys = block.self_attn.q_proj.weight, block.self_attn.k_proj.weight
                nn.init.normal_(queries, std=2 * queries.size(1) ** -0.5)
                keys.data.copy_(queries.data)
        with torch.no_grad():
            self.embed_tokens.weight[self.padding_idx] = 0

    def encode(
        self,
        src_tokens: Tensor,
        memory_layer: Optional[int] = None,
        keep_every: int = 1,
        retrieve: Optional[Retrieve] = None,
        caches: Optional[List[LocalCache]] = None,
    ) -> BackboneOutput:
        """Runs the layers, without the output head.

        Args:
            src_tokens: B x T
            memory_layer: whose keys and values to return, 0-based
            keep_every: return the hidden states 0, n, 2n, ... only
            retrieve: what *memory_layer* reads; see :meth:`JointAttention.forward`
            caches: of the tokens before these, one for each layer
        """
        x = self._embed(src_tokens)  # B x T x C
        bias = self.bias(src_tokens, caches)
        hidden_states = [x]
        keys = values = None
        for layer, block in enumerate(self.layers):
            reads = layer == memory_layer
            cache = None if caches is None else caches[layer]
            output = block(x, bias, retrieve if reads else None, cache=cache)
            x = output.x
            if reads:
                keys, values = output.keys, output.values
            hidden_states.append(x if (layer + 1) % keep_every == 0 else None)
        return BackboneOutput(hidden_states, self.layer_norm(x), keys, values)

    def _embed(self, src_tokens: Tensor) -> Tensor:
        # a stored half-precision embedding is widened: the residual stream is always float32
        return self.embed_tokens(src_tokens).float()

    def bias(self, src_tokens: Tensor, caches: Optional[List[LocalCache]] = None) -> Tensor:
        """The attention bias of B x T tokens after the P in *caches*, H x T x (P + T)."""
        num_before = caches[0].num_tokens if caches else 0
        return self.attention_bias(
            src_tokens.size(1), self.compute_dtype, src_tokens.device, num_before
        )

    def layer_keys_values(self, src_tokens: Tensor, layer: int) -> Tuple[Tensor, Tensor]:
        """Keys and values of a layer, B x H x T x D, computing nothing that they do not need."""
        with torch.no_grad(), self.autocast(src_tokens.device):
            x, bias = self._embed(src_tokens), self.bias(src_tokens)
            for block in self.layers[:layer]:
                x = block(x, bias).x
            return self.layers[layer].keys_values(x)

    def read(self, src_tokens, retrieve=None, caches=None) -> Reading:
        with self.autocast(src_tokens.device):
            normed = self.encode(src_tokens, caches=caches).normed
            return Reading(self.output_layer(normed), None, None)

    def freeze(self) -> None:
        """No gradients, weights of matrix products stored in ``compute_dtype``, evaluation mode."""
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):  # LayerNorms stay float32
                module.to(self.compute_dtype)
        self.eval()

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of ``--compute-dtype``; nothing for float32."""
        return torch.autocast(
            device.type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32
        )

    def output_layer(self, features: Tensor, **unused) -> Tensor:
        return self.output_projection(features)


@register_model("longmem_backbone", dataclass=LongMemBackboneConfig)
class LongMemBackbone(FairseqLanguageModel):
    """The backbone as a language model of its own, to be pre-trained with ``fairseq-train``."""

    @classmethod
    def build_model(cls, cfg: LongMemBackboneConfig, task):
        return cls(BackboneDecoder(cfg, task.source_dictionary, task.cfg.tokens_per_sample))


def _architecture(name: str, embed_dim: int, num_layers: int, num_attention_heads: int):
    """Registers sizes under *name*, for backbone and MemTRM alike."""

    def set_sizes(args):
        args.embed_dim = getattr(args, "embed_dim", embed_dim)
        args.num_layers = getattr(args, "num_layers", num_layers)
        args.num_attention_heads = getattr(args, "num_attention_heads", num_attention_heads)

    register_model_architecture("longmem_backbone", f"longmem_backbone_{name}")(set_sizes)


_architecture("tiny", 128, 4, 4)  # 1 M parameters beside the embeddings, CPU minutes
_architecture("mini", 256, 6, 8)  # 5 M, CPU hours
_architecture("small", 768, 12, 12)  # 85 M, GPT-2 small
_architecture("medium", 1024, 24, 16)  # 302 M, the paper's GPT-2*
