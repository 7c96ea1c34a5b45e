"""The model ``longmem``: a frozen backbone, and a SideNet that reads its past from memory."""

import os
from typing import Dict

import torch
from fairseq.models import FairseqLanguageModel, register_model
from omegaconf import OmegaConf

from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.building import log_parameters
from longmem_fairseq.models.checkpoints import checkpoint_in, load_backbone, without_weights
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.sidenet import SideNetDecoder


@register_model("longmem", dataclass=LongMemConfig)
class LongMemModel(FairseqLanguageModel):
    """Backbone, SideNet and memory; only the SideNet is trained and saved."""

    @staticmethod
    def settle_config(cfg: LongMemConfig, from_checkpoint: bool) -> None:
        """Makes the backbone's path, which checkpoints hold, valid in any working directory."""
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
            k=128,
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
        """See ``fairseq.models.BaseFairseqModel``.

        Raises:
            FileNotFoundError, ValueError: see :func:`load_backbone` and :class:`SideNetDecoder`
        """
        backbone, fingerprint = load_backbone(
            cfg.pretrained_model_path,
            task.source_dictionary,
            task.cfg.tokens_per_sample,
            compute_dtype=str(cfg.compute_dtype),
        )
        model = cls(SideNetDecoder(cfg, backbone, fingerprint))
        log_parameters(model)
        return model
