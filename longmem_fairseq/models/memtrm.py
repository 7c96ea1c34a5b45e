"""MemTRM, the baseline: the memory layer inside the language model itself (arXiv 2203.08913).

Everything is trained, so an older model wrote the older cached keys and values.
"""

from dataclasses import dataclass, fields
from typing import Optional

from fairseq.models import FairseqLanguageModel, register_model

from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.building import build_memory, log_parameters
from longmem_fairseq.models.checkpoints import (
    fingerprint,
    hexadecimal,
    load_backbone,
    read_backbone,
)
from longmem_fairseq.models.decoder_config import DecoderConfig
from longmem_fairseq.models.memory_config import MemoryConfig, memory_options
from longmem_fairseq.models.reading import Entries, Lookup, Reading
from longmem_fairseq.modules import JointAttention


@dataclass
class MemTRMConfig(LongMemBackboneConfig, MemoryConfig):
    """Sizes of the language model and options of its memory.

    With ``--pretrained-model-path`` the model starts as that backbone and has its sizes.
    """


class MemTRMDecoder(BackboneDecoder):
    """A backbone whose layer m reads and writes the memory bank."""

    def __init__(self, cfg: MemTRMConfig, dictionary, window: int):
        if str(cfg.memory_search) != "attention" or str(cfg.pointer) != "none":
            raise ValueError(
                "--memory-search hidden and --pointer need a frozen backbone: choose --arch longmem"
            )
        memory = build_memory(cfg, cfg, window)
        layer = cfg.retrieval_layer_index
        super().__init__(
            cfg,
            dictionary,
            window,
            memory_layer=layer if memory is not None else None,
            **memory_options(cfg),
        )
        self.memory, self.memory_layer = memory, layer

    @property
    def memory_attention(self) -> Optional[JointAttention]:
        """See :meth:`MemoryDecoder.memory_attention`."""
        return self.layers[self.memory_layer].self_attn

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
        lookup = None if retrieve is None else Lookup(retrieve)
        with self.autocast(src_tokens.device):
            encoded = self.encode(
                src_tokens, self.memory_layer, keep=(), retrieve=lookup, caches=caches
            )
            prediction = self.predict(self.layer_norm(encoded.hidden_states[-1][:, first:]), target)
        entries = Entries(encoded.keys, encoded.values)
        return Reading(prediction.logits, entries, lookup=lookup, losses=prediction.losses)

    def identify_memory(self) -> None:
        """A MemTRM is its own backbone: once it is not trained any more, its memories are its own."""
        if self.memory is not None and not self.memory.options["fingerprint"]:
            self.memory.options["fingerprint"] = hexadecimal(fingerprint(self.state_dict()))

    def entries(self, src_tokens) -> Entries:
        """See :meth:`MemoryDecoder.entries`."""
        return Entries(*self.layer_keys_values(src_tokens, self.memory_layer))


@register_model("memtrm", dataclass=MemTRMConfig)
class MemTRM(FairseqLanguageModel):
    """A language model with memory in one of its own layers, trained as a whole."""

    @staticmethod
    def settle_config(cfg: MemTRMConfig, from_checkpoint: bool) -> None:
        """Gives the configuration, which checkpoints hold, the sizes of the backbone it starts as."""
        if from_checkpoint:
            cfg.pretrained_model_path = ""  # the checkpoint holds every weight
        elif cfg.pretrained_model_path:
            backbone = read_backbone(cfg.pretrained_model_path)["cfg"]["model"]
            for size in fields(DecoderConfig):
                if size.name != "_name":
                    cfg[size.name] = backbone[size.name]

    @classmethod
    def build_model(cls, cfg: MemTRMConfig, task):
        """See ``fairseq.models.BaseFairseqModel``.

        Raises:
            FileNotFoundError, ValueError: see :func:`load_backbone` and :func:`build_memory`
        """
        decoder = MemTRMDecoder(cfg, task.source_dictionary, task.cfg.tokens_per_sample)
        if cfg.pretrained_model_path:
            backbone, _ = load_backbone(
                cfg.pretrained_model_path, task.source_dictionary, task.cfg.tokens_per_sample
            )
            decoder.load_state_dict(backbone.state_dict(), strict=False)  # the gate is new
        model = cls(decoder)
        log_parameters(model)
        return model
