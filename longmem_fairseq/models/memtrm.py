"""MemTRM, the baseline: the memory layer inside the language model itself (arXiv 2203.08913).

Everything is trained, so what was cached long ago was written by an older model.
"""

from dataclasses import dataclass

from fairseq.models import FairseqLanguageModel, register_model
from omegaconf import open_dict
from torch import Tensor

from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.checkpoints import load_backbone
from longmem_fairseq.models.memory_config import MemoryConfig, build_memory, log_parameters


@dataclass
class MemTRMConfig(LongMemBackboneConfig, MemoryConfig):
    """Sizes of the language model and options of its memory.

    With ``--pretrained-model-path`` the model starts as that backbone and has its sizes.
    """


class MemTRMDecoder(BackboneDecoder):
    """A backbone whose layer m reads and writes the memory bank."""

    def __init__(self, cfg: MemTRMConfig, dictionary, tokens_per_sample: int):
        memory = build_memory(
            cfg, cfg.num_layers, cfg.embed_dim, cfg.num_attention_heads, tokens_per_sample
        )
        layer = cfg.retrieval_layer_index
        super().__init__(
            cfg,
            dictionary,
            memory_layer=layer if memory is not None else None,
            gate_lr_multiplier=cfg.gate_lr_multiplier,
        )
        self.memory, self.memory_layer = memory, layer

    def forward(self, src_tokens: Tensor, new_document: Tensor = None, **unused):
        """As :meth:`SideNetDecoder.forward`."""
        with self.autocast(src_tokens.device):
            if self.memory is None:
                return self.output_layer(self.encode(src_tokens).normed), {}
            self.memory.begin(
                src_tokens.size(0),
                new_document,
                self.training,
                self.compute_dtype,
                src_tokens.device,
            )
            encoded = self.encode(src_tokens, self.memory_layer, retrieve=self.memory.retrieve)
            logits = self.output_layer(encoded.normed)
        extra = self.memory.statistics(self.layers[self.memory_layer].self_attn.gate)
        self.memory.write(encoded.keys, encoded.values, src_tokens.ne(self.padding_idx))
        return logits, extra


@register_model("memtrm", dataclass=MemTRMConfig)
class MemTRM(FairseqLanguageModel):
    """A language model with memory in one of its own layers, trained as a whole."""

    @classmethod
    def build_model(cls, cfg: MemTRMConfig, task):
        weights = None
        if cfg.pretrained_model_path:
            backbone, _ = load_backbone(cfg.pretrained_model_path, task.source_dictionary)
            weights = backbone.state_dict()
            with open_dict(cfg):
                for name in LongMemBackboneConfig.__dataclass_fields__:
                    if name in backbone.cfg and name not in ("_name", "compute_dtype", "dropout"):
                        cfg[name] = backbone.cfg[name]
                # the checkpoint holds every weight: it must not ask for the backbone again
                cfg.pretrained_model_path = ""
        decoder = MemTRMDecoder(cfg, task.source_dictionary, task.cfg.tokens_per_sample)
        if weights is not None:
            decoder.load_state_dict(weights, strict=False)  # the gate is new
        model = cls(decoder)
        log_parameters(model)
        return model
