"""Language modelling over contiguous document streams."""

import logging
import os
from dataclasses import dataclass, field
from typing import Dict, Optional

from fairseq import utils
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING, open_dict

from longmem_fairseq.allocator import keep_freed_memory
from longmem_fairseq.data import DocumentStreamDataset
from longmem_fairseq.models.backbone import COMPUTE_DTYPE_CHOICES
from longmem_fairseq.models.checkpoints import dictionary_hash
from longmem_fairseq.models.longmem import BACKBONE_DTYPE_CHOICES
from longmem_fairseq.models.memory_config import (
    MEMORY_DTYPE_CHOICES,
    MEMORY_SCOPE_CHOICES,
    MEMORY_STORAGE_CHOICES,
)
from longmem_fairseq.tasks.resume import (
    ResumableStreams,
    load_memory,
    remove_unnamed_memory,
    save_memory,
)

logger = logging.getLogger(__name__)

# Options of the model that the task knows too, because fairseq-eval-lm reads the task's options and
# takes the model's from the checkpoint. None leaves the checkpoint's value.
MODEL_OPTIONS = (
    "pretrained_model_path",
    "no_memory",
    "memory_size",
    "chunk_size",
    "k",
    "memory_scope",
    "memory_index",
    "memory_index_parameters",
    "memory_dtype",
    "memory_storage",
    "memory_dir",
    "compute_dtype",
    "backbone_dtype",
)
_OVERRIDE = " (default when evaluating: as the checkpoint was trained)"


@dataclass
class LongMemLanguageModelingConfig(FairseqDataclass):
    data: str = field(
        default=MISSING, metadata={"help": "folder made by preprocess/prepare_corpus.py"}
    )
    tokens_per_sample: int = field(
        default=1024, metadata={"help": "tokens of a segment, the model's local window"}
    )
    stream_span: int = field(
        default=0,
        metadata={
            "help": "in training, segments that a stream reads from a random place of a document "
            "before it jumps to another; 0: whole documents"
        },
    )
    pretrained_model_path: Optional[str] = field(
        default=None, metadata={"help": "checkpoint of the backbone" + _OVERRIDE}
    )
    no_memory: bool = field(default=False, metadata={"help": "evaluate without a memory bank"})
    memory_size: Optional[int] = field(
        default=None, metadata={"help": "tokens a memory bank holds" + _OVERRIDE}
    )
    chunk_size: Optional[int] = field(
        default=None, metadata={"help": "tokens per chunk" + _OVERRIDE}
    )
    k: Optional[int] = field(
        default=None, metadata={"help": "tokens retrieved per query and head" + _OVERRIDE}
    )
    memory_scope: Optional[MEMORY_SCOPE_CHOICES] = field(
        default=None, metadata={"help": "one bank per stream or per batch" + _OVERRIDE}
    )
    memory_index: Optional[str] = field(
        default=None, metadata={"help": "how the bank is searched" + _OVERRIDE}
    )
    memory_index_parameters: Optional[str] = field(
        default=None, metadata={"help": "of an approximate --memory-index" + _OVERRIDE}
    )
    memory_dtype: Optional[MEMORY_DTYPE_CHOICES] = field(
        default=None, metadata={"help": "type of the cached keys and values" + _OVERRIDE}
    )
    memory_storage: Optional[MEMORY_STORAGE_CHOICES] = field(
        default=None, metadata={"help": "where keys and values are cached" + _OVERRIDE}
    )
    memory_dir: Optional[str] = field(
        default=None, metadata={"help": "folder for --memory-storage disk" + _OVERRIDE}
    )
    compute_dtype: Optional[COMPUTE_DTYPE_CHOICES] = field(
        default=None, metadata={"help": "type of the matrix products" + _OVERRIDE}
    )
    backbone_dtype: Optional[BACKBONE_DTYPE_CHOICES] = field(
        default=None, metadata={"help": "how the frozen backbone is stored" + _OVERRIDE}
    )
    no_save_memory: bool = field(
        default=False,
        metadata={
            "help": "neither write the training streams' memory beside the checkpoints nor read it: "
            "takes no room, but a run resumed in the middle of an epoch goes on with an empty memory"
        },
    )
    seed: int = II("common.seed")
    batch_size: Optional[int] = II("dataset.batch_size")


@register_task("longmem_language_modeling", dataclass=LongMemLanguageModelingConfig)
class LongMemLanguageModelingTask(FairseqTask):
    """Feeds B contiguous streams of documents; see :class:`DocumentStreamDataset`."""

    def __init__(self, cfg: LongMemLanguageModelingConfig):
        super().__init__(cfg)
        keep_freed_memory()
        if cfg.tokens_per_sample < 1:
            raise ValueError(f"--tokens-per-sample ({cfg.tokens_per_sample}) must be at least 1")
        if cfg.stream_span < 0:
            raise ValueError(f"--stream-span ({cfg.stream_span}) must not be negative")
        path = os.path.join(utils.split_paths(cfg.data)[0], "dict.txt")
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path}: no such file; make the data folder with preprocess/prepare_corpus.py"
            )
        self.dictionary = Dictionary.load(path)
        self.goes_on = False  # a resumed run, in the middle of an epoch
        logger.info(f"dictionary: {len(self.dictionary)} types")

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
            ValueError: it holds no documents
        """
        paths = utils.split_paths(self.cfg.data)
        path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        no_documents = f"{path}.idx holds no documents: prepare the corpus again"
        if os.path.isfile(f"{path}.bin") and os.path.getsize(f"{path}.bin") == 0:
            raise ValueError(no_documents)  # fairseq cannot map an empty file
        documents = data_utils.load_indexed_dataset(path, self.dictionary, combine=combine)
        if documents is None:
            raise FileNotFoundError(
                f"{path}.idx: no such file; make the data folder with preprocess/prepare_corpus.py"
            )
        if len(documents) == 0 or documents.sizes.sum() == 0:
            raise ValueError(no_documents)
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
        **unused,
    ):
        """Batches of streams, in order; the documents are shuffled anew each epoch for training.

        *dataset* is trained on if it is the split ``train``, and read in a fixed order otherwise.

        Raises:
            ValueError: neither --batch-size nor --max-tokens says how many streams there are
        """
        segment = self.cfg.tokens_per_sample
        batch_size = max_sentences or (max_tokens or 0) // segment
        if batch_size < 1:
            raise ValueError(
                f"--batch-size is missing, and --max-tokens ({max_tokens}) is less than one segment of "
                f"--tokens-per-sample ({segment})"
            )
        if skip_remainder_batch:
            raise ValueError("--skip-remainder-batch would drop tokens: leave it out")
        training = dataset is self.datasets.get("train")
        streams = DocumentStreamDataset(
            dataset,
            pad=self.dictionary.pad(),
            bos=self.dictionary.eos(),
            batch_size=batch_size,
            tokens_per_sample=segment,
            stream_span=self.cfg.stream_span if training else 0,
            num_shards=num_shards,
            seed=seed + epoch if training else None,
        )
        return ResumableStreams(
            dataset=streams,
            collate_fn=_single_item,
            batch_sampler=[[i] for i in range(len(streams))],
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            disable_shuffling=True,
            layout={
                "--batch-size": batch_size,
                "--distributed-world-size": num_shards,
                "--tokens-per-sample": segment,
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
            ValueError: --context-window, which would feed tokens twice
        """
        if context_window > 0:
            raise ValueError(
                f"--context-window ({context_window}) does not go with document streams, whose context "
                "is the memory: leave it out"
            )
        return self.get_batch_iterator(
            dataset,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size,
        ).next_epoch_itr(shuffle=False)

    def build_model(self, cfg, from_checkpoint: bool = False):
        for name in MODEL_OPTIONS:
            value = getattr(self.cfg, name)
            if value is None or value is False:
                continue
            if name not in cfg:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} ({value}) does not apply to a {cfg._name} model")
            with open_dict(cfg):
                cfg[name] = value
        model_class = ARCH_MODEL_REGISTRY.get(cfg._name)
        if hasattr(model_class, "settle_config"):
            # here and not in the model's build_model, which fairseq gives a copy: this one is saved
            with open_dict(cfg):
                model_class.settle_config(cfg, from_checkpoint)
        return super().build_model(cfg, from_checkpoint)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        if not ignore_grad:
            return super().train_step(sample, model, criterion, optimizer, update_num)
        # the trainer's dummy batch on a shard that has run out: nobody's document
        memory = getattr(_unwrapped(model).decoder, "memory", None)
        if memory is None:
            return super().train_step(sample, model, criterion, optimizer, update_num, True)
        with memory.frozen():
            return super().train_step(sample, model, criterion, optimizer, update_num, True)

    def begin_epoch(self, epoch: int, model) -> None:
        """Forgets the epoch before, even what an approximate index was trained on.

        A run that is resumed between two epochs knows nothing of the one before either.
        """
        memory = getattr(model.decoder, "memory", None)
        if memory is not None and not self.goes_on:
            memory.reset()
        self.goes_on = False

    # The next three are called on every rank, by the wrappers in compat.py.

    def before_save(self, trainer, epoch_itr, folder: str) -> None:
        save_memory(trainer, epoch_itr, folder, wanted=not self.cfg.no_save_memory)

    def after_save(self, trainer, epoch_itr, folder: str) -> None:
        if trainer.is_data_parallel_master:
            remove_unnamed_memory(folder, keep=epoch_itr.memory_files)

    def after_load(self, trainer, epoch_itr, folder: str) -> None:
        self.goes_on = epoch_itr.iterations_in_epoch > 0
        load_memory(trainer, epoch_itr, folder, wanted=not self.cfg.no_save_memory)

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


def _unwrapped(model):
    # fairseq's distributed wrappers keep the model in .module
    while not hasattr(model, "decoder"):
        model = model.module
    return model
