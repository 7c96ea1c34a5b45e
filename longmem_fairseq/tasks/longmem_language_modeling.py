"""Language modelling over contiguous document streams."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Dict, List, Optional

import torch
from fairseq import utils
from fairseq.data import Dictionary, NestedDictionaryDataset
from fairseq.models import (
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
)
from fairseq.tasks import register_task
from omegaconf import open_dict
from torch import Tensor

from longmem_fairseq.data import (
    DocumentStreamDataset,
    IndexedDocuments,
    documents_to_continue,
)
from longmem_fairseq.models.backbone import LongMemBackbone
from longmem_fairseq.models.checkpoints import dictionary_hash
from longmem_fairseq.models.longmem import LongMem
from longmem_fairseq.models.memory_decoder import unwrapped
from longmem_fairseq.tasks.config import (
    TASK,
    LongMemLanguageModelingConfig,
    given_options,
)
from longmem_fairseq.tasks.generation import GenerationTask
from longmem_fairseq.tasks.resume import (
    ResumableStreams,
    load_memory,
    remove_unnamed_memory,
    save_memory,
)
from longmem_fairseq.tasks.update_losses import UpdateLosses
from longmem_fairseq.tokenizers import CheckpointIds, load_dictionary
from longmem_fairseq.utils.cli import as_option

logger = logging.getLogger(__name__)

FITTED_TOKENS, FITTED_SEGMENTS = 8192, 16  # to which search keys are fitted


@register_task(TASK, dataclass=LongMemLanguageModelingConfig)
class LongMemLanguageModelingTask(GenerationTask):
    """Feeds B contiguous streams of documents; see :class:`DocumentStreamDataset`."""

    def __init__(self, cfg: LongMemLanguageModelingConfig):
        super().__init__(cfg)
        if cfg.tokens_per_sample < 1:
            raise ValueError(f"--tokens-per-sample ({cfg.tokens_per_sample}) must be at least 1")
        if not 0 <= cfg.segment_overlap < cfg.tokens_per_sample:
            raise ValueError(
                f"--segment-overlap ({cfg.segment_overlap}) must be at least 0 and less than "
                f"--tokens-per-sample ({cfg.tokens_per_sample})"
            )
        if cfg.stream_span < 0:
            raise ValueError(f"--stream-span ({cfg.stream_span}) must not be negative")
        path = os.path.join(utils.split_paths(cfg.data)[0], "dict.txt")
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such file; make the data folder with preprocess/prepare_corpus.py"
            )
        self.dictionary = load_dictionary(Path(path))
        ids = CheckpointIds.load(Path(path).parent, self.dictionary)
        self.document_start = self.dictionary.eos() if ids is None else ids.document_start
        self.goes_on = False  # a resumed run, in the middle of an epoch
        self.memory_size = 0  # tokens, of the model that is trained
        self.losses = UpdateLosses()
        logger.info(f"dictionary: {len(self.dictionary)} types")

    @classmethod
    def setup_task(cls, cfg: LongMemLanguageModelingConfig, **unused):
        """
        Raises:
            FileNotFoundError, ValueError: as the constructor
        """
        return cls(cfg)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **unused) -> None:
        """Loads the documents of a split.

        Raises:
            FileNotFoundError: there is no such split
            ValueError: it holds no documents, or is damaged
        """
        paths = utils.split_paths(self.cfg.data)
        path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        documents = IndexedDocuments(path, len(self.dictionary), combine=combine)
        logger.info(f"{split}: {len(documents):,} documents, {documents.sizes.sum():,} tokens")
        self.datasets[split] = documents

    def dataset(self, split: str):
        # fairseq's insists on a FairseqDataset, which batches for itself
        return self.datasets[split]

    def get_batch_iterator(
        self,
        dataset,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        skip_remainder_batch: bool = False,
        training: Optional[bool] = None,
        **unused,
    ):
        """Batches of streams, in order; the documents are shuffled anew each epoch for training.

        *dataset* is trained on if it is --train-subset, and read in a fixed order otherwise; *training*
        says so if it is given.
        Prompts, and the documents of which fairseq-generate is to continue the first --prefix-size
        tokens, are no streams: each is read on its own.

        The processes that share one memory (--memory-shards) all read everything.

        Raises:
            ValueError: neither --batch-size nor --max-tokens says how many streams there are; or
                --memory is given; or --memory-shards in training
        """
        sharded = (self.cfg.memory_shards or 1) > 1
        if training is None:
            training = dataset is self.datasets.get(self.train_subset)
        if sharded and training:
            raise ValueError(
                f"--memory-shards ({self.cfg.memory_shards}) is for evaluation and generation: in "
                "training every process has streams and banks of its own"
            )
        if sharded:
            num_shards, shard_id = 1, 0
        if self.prefix_size > 0:
            dataset = documents_to_continue(
                dataset, self.prefix_size, self.cfg.tokens_per_sample, self.dictionary.pad()
            )
        if isinstance(dataset, NestedDictionaryDataset):
            return super().get_batch_iterator(
                dataset, max_tokens, max_sentences, num_shards=num_shards, shard_id=shard_id
            )
        if self.cfg.memory is not None:
            raise ValueError(
                f"--memory ({self.cfg.memory}) is for fairseq-interactive, and for fairseq-generate "
                "with --prefix-size: leave it out"
            )
        segment = self.cfg.tokens_per_sample
        batch_size = max_sentences or (max_tokens or 0) // segment
        if batch_size < 1:
            raise ValueError(
                f"--batch-size is missing, and --max-tokens ({max_tokens}) is less than one segment of "
                f"--tokens-per-sample ({segment})"
            )
        if skip_remainder_batch:
            raise ValueError("--skip-remainder-batch would drop tokens: leave it out")
        streams = DocumentStreamDataset(
            dataset,
            pad=self.dictionary.pad(),
            bos=self.document_start,
            batch_size=batch_size,
            tokens_per_sample=segment,
            segment_overlap=self.cfg.segment_overlap,
            stream_span=self.cfg.stream_span if training else 0,
            num_shards=num_shards,
            seed=seed + epoch if training else None,
            memory_size=0 if self.cfg.no_save_memory else self.memory_size,
        )
        return ResumableStreams(
            dataset=streams,
            collate_fn=_single_item,
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            disable_shuffling=True,
            layout={
                "--tokens-per-sample": segment,
                "--segment-overlap": self.cfg.segment_overlap,
                "--stream-span": self.cfg.stream_span,
                "--seed": seed,
                "the number of training documents": len(dataset),
                "the number of training tokens": int(dataset.sizes.sum()),
            },
        )

    def eval_lm_dataloader(
        self,
        dataset,
        max_tokens: Optional[int] = 36000,
        batch_size: Optional[int] = None,
        max_positions: Optional[int] = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ):
        """What ``fairseq-eval-lm`` reads: every document whole, segment by segment.

        Raises:
            ValueError: --context-window, for which there is --segment-overlap
        """
        if context_window > 0:
            raise ValueError(
                f"--context-window ({context_window}) does not go with document streams: give "
                "--segment-overlap instead"
            )
        return self.get_batch_iterator(
            dataset,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size,
            training=False,
        ).next_epoch_itr(shuffle=False)

    @property
    def train_subset(self) -> str:
        """The split that is trained on."""
        name = self.cfg.train_subset
        if name.startswith("$"):  # a reference, outside of fairseq's commands
            return "train"
        return name

    def build_model(self, cfg, from_checkpoint: bool = False):
        """
        Raises:
            ValueError: an option does not apply to the model, or this plugin does not have it
        """
        model_class = ARCH_MODEL_REGISTRY.get(getattr(cfg, "_name", None))
        if not hasattr(model_class, "settle_config"):
            # the configuration is a stranger's, and some of fairseq's models hand theirs to eval()
            raise ValueError(
                f"architecture {getattr(cfg, '_name', 'unknown')}: this task is for longmem, memtrm "
                "and longmem_backbone"
            )
        if from_checkpoint and cfg._name.startswith("longmem_backbone"):
            given = given_options(self.cfg)
            if str(given.get("pointer", "none")) != "none":
                return self._backbone_with_memory(cfg, given)
        # a checkpoint may be older than an option of its model
        options = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(cfg._name))
        given = given_options(self.cfg)
        if given.get("memory_index", cfg.get("memory_index")) != cfg.get("memory_index"):
            given.setdefault("memory_index_parameters", "")  # the checkpoint's are of its own index
        if from_checkpoint and "no_memory" in given and "use_external_memory" in cfg:
            cfg.use_external_memory = False  # the released switch of its training
        for name, value in given.items():
            if name not in cfg and not hasattr(options, name):
                raise ValueError(
                    f"{as_option(name)} ({value}) does not apply to a {cfg._name} model: leave it out"
                )
            with open_dict(cfg):
                cfg[name] = value
        with open_dict(cfg):
            # here and not in the model's build_model, which fairseq gives a copy: this one is saved
            model_class.settle_config(cfg, from_checkpoint)
        model = super().build_model(cfg, from_checkpoint)
        model.decoder.overlap = self.cfg.segment_overlap
        memory = getattr(model.decoder, "memory", None)
        self.memory_size = 0 if memory is None else memory.options["memory_size"]
        search_keys = getattr(model.decoder, "search_keys", None)
        if not from_checkpoint and memory is not None and search_keys is not None:
            if not search_keys.is_fitted:
                model.decoder.fit_search_keys(self._fitting_segments())
        return model

    def _backbone_with_memory(self, cfg, given):
        """The model of a backbone's checkpoint, with --pointer constant."""
        LongMemBackbone.settle_config(cfg, True)
        model = LongMem.around_backbone(cfg, given, self)
        model.decoder.overlap = self.cfg.segment_overlap
        return model

    def _fitting_segments(self) -> List[Tensor]:
        """Segments from all over the training split, to which search keys are fitted; 1 x T each."""
        path = os.path.join(utils.split_paths(self.cfg.data)[0], self.train_subset)
        documents, segments = IndexedDocuments(path, len(self.dictionary)), []
        segment, step = self.cfg.tokens_per_sample, max(1, len(documents) // FITTED_SEGMENTS)
        while sum(map(len, segments)) < FITTED_TOKENS and len(segments) < len(documents):
            document = documents[len(segments) * step % len(documents)]
            start = torch.tensor([self.document_start])
            segments.append(torch.cat([start, document[: segment - 1]]))
        return [tokens.long().unsqueeze(0) for tokens in segments]

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        decoder = unwrapped(model).decoder
        memory = getattr(decoder, "memory", None)
        for segment in [] if ignore_grad else sample.get("earlier", []):
            decoder.memorise(**segment)
        criterion.num_updates = update_num
        # the trainer's dummy batch on a shard that has run out is nobody's document
        with memory.frozen() if ignore_grad and memory is not None else nullcontext():
            result = super().train_step(
                sample, model, criterion, optimizer, update_num, ignore_grad
            )
        self.losses.add(update_num, sample, getattr(criterion, "losses", None))
        return result

    def not_finite(self, rank: int) -> Optional[str]:
        """See :meth:`UpdateLosses.not_finite`; called where training ends because of NaN."""
        return self.losses.not_finite(rank)

    def begin_epoch(self, epoch: int, model) -> None:
        """Forgets the epoch before, even what an approximate index was trained on.

        A run that is resumed between two epochs knows nothing of the one before either.
        """
        memory = getattr(model.decoder, "memory", None)
        if memory is not None and not self.goes_on:
            memory.reset()
        self.goes_on = False

    # The next three are called on every rank, by fairseq_patches/checkpoints.py.

    def before_save(self, trainer, epoch_itr, folder: str) -> None:
        save_memory(trainer, epoch_itr, folder, wanted=not self.cfg.no_save_memory)

    def after_save(self, trainer, epoch_itr, folder: str) -> None:
        if trainer.is_data_parallel_master:
            remove_unnamed_memory(folder, epoch_itr.memory_files)

    def after_load(self, trainer, epoch_itr, folder: str) -> None:
        self.goes_on = epoch_itr.iterations_in_epoch > 0
        load_memory(trainer, epoch_itr, folder, wanted=not self.cfg.no_save_memory)
        if trainer.is_data_parallel_master:  # what a run left that was killed in a save
            remove_unnamed_memory(trainer.cfg.checkpoint.save_dir)

    def state_dict(self) -> Dict:
        """Saved in every checkpoint, so that one is not used with another dictionary."""
        return {**super().state_dict(), "dictionary_hash": dictionary_hash(self.dictionary)}

    def load_state_dict(self, state_dict: Dict) -> None:
        """
        Raises:
            ValueError: the checkpoint was trained with another dictionary
        """
        saved = state_dict.get("dictionary_hash")
        if saved not in (None, dictionary_hash(self.dictionary)):
            raise ValueError(
                f"the checkpoint was trained with another dictionary than {self.cfg.data}/dict.txt: "
                "prepare the data with the checkpoint's dictionary and tokenizer"
            )


def _single_item(items):
    (batch,) = items
    return batch
