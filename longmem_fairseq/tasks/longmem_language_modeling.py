"""Language modeling over contiguous document streams."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Dict, Optional

from fairseq import utils
from fairseq.data import Dictionary, NestedDictionaryDataset
from fairseq.tasks import FairseqTask, register_task

from longmem_fairseq.data import IndexedDocuments, documents_to_continue, lines_to_continue
from longmem_fairseq.models.backbone import LongMemBackbone
from longmem_fairseq.models.checkpoints import dictionary_hash
from longmem_fairseq.models.longmem import LongMemModel
from longmem_fairseq.models.memory_decoder import unwrapped
from longmem_fairseq.tasks.config import TASK, LongMemLanguageModelingConfig, given_options
from longmem_fairseq.tasks.continuation import continue_prompts, load_memory_of_models
from longmem_fairseq.tasks.model_settings import check_architecture, settle_model, wants_memory
from longmem_fairseq.tasks.resume import load_memory, remove_unnamed_memory, save_memory
from longmem_fairseq.tasks.stream_batches import (
    check_streams,
    number_of_streams,
    sample_of,
    stream_batches,
)
from longmem_fairseq.tasks.update_losses import UpdateLosses
from longmem_fairseq.tokenizers import CheckpointIds, load_dictionary

logger = logging.getLogger(__name__)


@register_task(TASK, dataclass=LongMemLanguageModelingConfig)
class LongMemLanguageModelingTask(FairseqTask):
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
        """The task of a configuration.

        Raises:
            FileNotFoundError, ValueError: as the constructor
        """
        return cls(cfg)

    @property
    def source_dictionary(self) -> Dictionary:
        """The dictionary, which fairseq asks for by this name."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The same."""
        return self.dictionary

    @property
    def prefix_size(self) -> int:
        """How many tokens of each document fairseq-generate continues; 0 in all other commands."""
        size = self.cfg.prefix_size
        return size if isinstance(size, int) else 0  # a reference, outside of fairseq's commands

    def build_dataset_for_inference(self, src_tokens, src_lengths, **unused):
        """Prompts for fairseq-interactive."""
        return lines_to_continue(src_tokens, self.dictionary.eos(), self.dictionary.pad())

    def build_generator(self, models, args, *more, **options):
        """fairseq's generator of models that start with --memory; see :func:`load_memory_of_models`."""
        load_memory_of_models(models, self.cfg.memory)
        return super().build_generator(models, args, *more, **options)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """Continues prompts; see :func:`continue_prompts`."""
        start = self.document_start
        return continue_prompts(generator, models, sample, prefix_tokens, constraints, start)

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
        """The documents of a split. fairseq's insists on a FairseqDataset, which batches for itself."""
        return self.datasets[split]

    def get_batch_iterator(
        self,
        dataset,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        epoch: int = 1,
        training: Optional[bool] = None,
        **loading,
    ):
        """Batches of streams, in order; the documents are shuffled anew each epoch for training.

        *dataset* is trained on if it is --train-subset, and read in a fixed order otherwise; *training*
        says so if it is given. Prompts, and the documents of which fairseq-generate is to continue the
        first --prefix-size tokens, are no streams: each is read on its own.

        Raises:
            ValueError: neither --batch-size nor --max-tokens says how many streams there are; or
                --memory is given; or --memory-shards in training
        """
        if training is None:
            training = dataset is self.datasets.get(self.train_subset)
        if (self.cfg.memory_shards or 1) > 1:
            if training:
                raise ValueError(
                    f"--memory-shards ({self.cfg.memory_shards}) is for evaluation and generation: in "
                    "training every process has streams and banks of its own"
                )
            num_shards, shard_id = 1, 0  # the processes that share one memory all read everything
        if self.prefix_size > 0:
            sizes = self.prefix_size, self.cfg.tokens_per_sample
            dataset = documents_to_continue(dataset, *sizes, self.dictionary.pad())
        if isinstance(dataset, NestedDictionaryDataset):
            return super().get_batch_iterator(
                dataset, max_tokens, max_sentences, num_shards=num_shards, shard_id=shard_id
            )
        check_streams(self.cfg, loading.get("skip_remainder_batch", False))
        batch_size = number_of_streams(self.cfg, max_tokens, max_sentences)
        return stream_batches(
            *(self.cfg, dataset, self.dictionary, self.document_start, batch_size, training),
            *(seed, epoch, num_shards, self.memory_size),
            shard_id=shard_id,
            num_workers=loading.get("num_workers", 0),
            buffer_size=loading.get("data_buffer_size", 0),
        )

    def eval_lm_dataloader(
        self,
        dataset,
        max_tokens: Optional[int] = 36000,
        batch_size: Optional[int] = None,
        max_positions: Optional[int] = None,
        context_window: int = 0,
        **loading,
    ):
        """The batches of ``fairseq-eval-lm``: every document whole, segment by segment.

        Args:
            max_positions: fairseq's; a stream has no limit
            loading: num_shards, num_workers, ...; see :meth:`get_batch_iterator`

        Raises:
            ValueError: --context-window, for which there is --segment-overlap
        """
        if context_window > 0:
            raise ValueError(
                f"--context-window ({context_window}) does not go with document streams: give "
                "--segment-overlap instead"
            )
        loading = {"num_workers": 1, "data_buffer_size": 10, **loading}
        batches = self.get_batch_iterator(
            dataset, max_tokens, max_sentences=batch_size, training=False, **loading
        )
        return batches.next_epoch_itr(shuffle=False)

    @property
    def train_subset(self) -> str:
        """The split that is trained on."""
        name = self.cfg.train_subset
        if name.startswith("$"):  # a reference, outside of fairseq's commands
            return "train"
        return name

    def build_model(self, cfg, from_checkpoint: bool = False):
        """The model of a configuration, which becomes that of a checkpoint saved later.

        A backbone's own checkpoint with --pointer constant is a model with a memory.

        Raises:
            ValueError: an option does not apply to the model, or this plugin does not have it
        """
        check_architecture(cfg)
        given = given_options(self.cfg)
        if wants_memory(cfg, given, from_checkpoint):
            LongMemBackbone.settle_config(cfg, True)
            model = LongMemModel.around_backbone(cfg, given, self)
            model.decoder.overlap = self.cfg.segment_overlap
            return model
        settle_model(cfg, given, from_checkpoint)
        model = super().build_model(cfg, from_checkpoint)
        model.decoder.overlap = self.cfg.segment_overlap
        memory = getattr(model.decoder, "memory", None)
        self.memory_size = 0 if memory is None else memory.options["memory_size"]
        search_keys = getattr(model.decoder, "search_keys", None)
        if not from_checkpoint and memory is not None and search_keys is not None:
            if not search_keys.is_fitted:
                path = os.path.join(utils.split_paths(self.cfg.data)[0], self.train_subset)
                documents = IndexedDocuments(path, len(self.dictionary))
                segments = sample_of(documents, self.document_start, self.cfg.tokens_per_sample)
                model.decoder.fit_search_keys(segments)
        return model

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """``FairseqTask.train_step``, before which streams that go on elsewhere read again what they
        remembered there."""
        decoder = unwrapped(model).decoder
        memory = getattr(decoder, "memory", None)
        for segment in [] if ignore_grad else sample.get("earlier", []):
            decoder.memorize_streams(**segment)
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
        """Writes the memory of this rank; see :func:`save_memory`."""
        save_memory(trainer, epoch_itr, folder, enabled=not self.cfg.no_save_memory)

    def after_save(self, trainer, epoch_itr, folder: str) -> None:
        """Removes the memory of checkpoints that are gone."""
        if trainer.is_data_parallel_master:
            remove_unnamed_memory(folder, epoch_itr.memory_files)

    def after_load(self, trainer, epoch_itr, folder: str) -> None:
        """Reads the memory of this rank; see :func:`load_memory`."""
        self.goes_on = epoch_itr.iterations_in_epoch > 0
        load_memory(trainer, epoch_itr, folder, enabled=not self.cfg.no_save_memory)
        if trainer.is_data_parallel_master:  # a run that was killed in a save left files
            remove_unnamed_memory(trainer.cfg.checkpoint.save_dir)

    def state_dict(self) -> Dict:
        """Saved in every checkpoint, so that one is not used with another dictionary."""
        return {**super().state_dict(), "dictionary_hash": dictionary_hash(self.dictionary)}

    def load_state_dict(self, state_dict: Dict) -> None:
        """Checks the dictionary of a checkpoint.

        Raises:
            ValueError: the checkpoint was trained with another dictionary
        """
        saved = state_dict.get("dictionary_hash")
        if saved not in (None, dictionary_hash(self.dictionary)):
            raise ValueError(
                f"the checkpoint was trained with another dictionary than {self.cfg.data}/dict.txt: "
                "prepare the data with the checkpoint's dictionary and tokenizer"
            )
