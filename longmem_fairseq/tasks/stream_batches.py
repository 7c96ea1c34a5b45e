"""The batches of document streams that fairseq's commands read."""

from typing import List, Optional

import torch
from fairseq.data import Dictionary
from torch import Tensor

from longmem_fairseq.data import DocumentStreamDataset, IndexedDocuments
from longmem_fairseq.tasks.config import LongMemLanguageModelingConfig
from longmem_fairseq.tasks.resume import ResumableStreams

SAMPLE_TOKENS, SAMPLE_SEGMENTS = 8192, 16  # to which search keys are fitted


def check_streams(cfg: LongMemLanguageModelingConfig, skip_remainder_batch: bool) -> None:
    """Raises ValueError for an option that does not go with streams."""
    if cfg.memory is not None:
        raise ValueError(
            f"--memory ({cfg.memory}) is for fairseq-interactive, and for fairseq-generate with "
            "--prefix-size: leave it out"
        )
    if skip_remainder_batch:
        raise ValueError("--skip-remainder-batch would drop tokens: leave it out")


def number_of_streams(
    cfg: LongMemLanguageModelingConfig, max_tokens: Optional[int], max_sentences: Optional[int]
) -> int:
    """The streams of a batch: --batch-size, or as many segments as --max-tokens holds.

    Raises:
        ValueError: neither gives one
    """
    batch_size = max_sentences or (max_tokens or 0) // cfg.tokens_per_sample
    if batch_size < 1:
        raise ValueError(
            f"--batch-size is missing, and --max-tokens ({max_tokens}) is less than one segment of "
            f"--tokens-per-sample ({cfg.tokens_per_sample})"
        )
    return batch_size


def stream_batches(
    cfg: LongMemLanguageModelingConfig,
    documents: IndexedDocuments,
    dictionary: Dictionary,
    document_start: int,
    batch_size: int,
    training: bool,
    seed: int,
    epoch: int,
    num_shards: int,
    memory_size: int,
    **loading,
) -> ResumableStreams:
    """Batches of *batch_size* streams, in order.

    Args:
        document_start: the dictionary's index that stands before a document
        training: shuffle the documents anew each epoch, and cut them into pieces (--stream-span)
        memory_size: tokens that a stream remembers, which it reads again where it goes on elsewhere
        loading: further arguments of :class:`ResumableStreams`
    """
    streams = DocumentStreamDataset(
        documents,
        pad=dictionary.pad(),
        bos=document_start,
        batch_size=batch_size,
        tokens_per_sample=cfg.tokens_per_sample,
        segment_overlap=cfg.segment_overlap,
        stream_span=cfg.stream_span if training else 0,
        num_shards=num_shards,
        seed=seed + epoch if training else None,
        memory_size=0 if cfg.no_save_memory else memory_size,
    )
    return ResumableStreams(
        dataset=streams,
        collate_fn=_single_item,
        seed=seed,
        epoch=epoch,
        num_shards=num_shards,
        disable_shuffling=True,
        layout={
            "--tokens-per-sample": cfg.tokens_per_sample,
            "--segment-overlap": cfg.segment_overlap,
            "--stream-span": cfg.stream_span,
            "--seed": seed,
            "the number of training documents": len(documents),
            "the number of training tokens": int(documents.sizes.sum()),
        },
        **loading,
    )


def _single_item(items):
    (batch,) = items
    return batch


def sample_of(documents: IndexedDocuments, document_start: int, segment_size: int) -> List[Tensor]:
    """Segments from all over the documents, to which search keys are fitted; 1 x T each."""
    segments: List[Tensor] = []
    step = max(1, len(documents) // SAMPLE_SEGMENTS)
    while sum(map(len, segments)) < SAMPLE_TOKENS and len(segments) < len(documents):
        document = documents[len(segments) * step % len(documents)]
        start = torch.tensor([document_start])
        segments.append(torch.cat([start, document[: segment_size - 1]]))
    return [tokens.long().unsqueeze(0) for tokens in segments]
