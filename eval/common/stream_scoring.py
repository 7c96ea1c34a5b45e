"""Scores documents with a checkpoint, stream by stream, and keeps what every token got.

B streams, T tokens, V vocabulary.
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from eval.common.results import read_json_lines
from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.modules import row_blocks, token_losses
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig

MEMORIES = ("own", "empty", "other")
# of a question, in tokens but for the number of its document
QUESTION = dict.fromkeys(("document", "position", "tokens", "mention", "distance"), int)


@dataclass
class DocumentScores:
    """One document: for each of its tokens the negative log-likelihood (nats), and whether it alone was
    the model's first choice."""

    name: str
    words: int
    tokens: np.ndarray
    nll: np.ndarray
    right: np.ndarray


def load_model(
    path: str,
    data: str,
    tokens_per_sample: Optional[int] = None,
    device: str = "cpu",
    segment_overlap: Optional[int] = None,
    **options,
):
    """Model and task of a checkpoint, in evaluation mode.

    Args:
        path: checkpoint
        data: folder made by preprocess/prepare_corpus.py
        tokens_per_sample: tokens of a segment (default: as the checkpoint was trained)
        segment_overlap: tokens of it that the one before has too (default: as in training)
        options: fields of the task to set, such as memory_size or compute_dtype

    Raises:
        FileNotFoundError, ValueError: one of them is missing, damaged, or does not fit
    """
    install()
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    trained = OmegaConf.select(OmegaConf.create(state.get("cfg") or {}), "task") or {}
    if tokens_per_sample is None:
        tokens_per_sample = trained.get("tokens_per_sample")
    if tokens_per_sample is None:
        raise ValueError(f"{path} does not say its window: give --tokens-per-sample")
    if segment_overlap is None:
        segment_overlap = trained.get("segment_overlap", 0)
    cfg = LongMemLanguageModelingConfig(
        data=data, tokens_per_sample=tokens_per_sample, segment_overlap=segment_overlap, **options
    )
    task = LongMemLanguageModelingTask(cfg)
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
    try:
        return model.to(device).eval(), task
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device ({device}) cannot be used: {reason}") from None


def use_memory(model, memory: str) -> None:
    """Makes a model read its own memory, an empty one, or that of the next stream.

    The two controls show the memory's own share: what is left without it, and what any memory gives
    that is not of this document.

    Raises:
        ValueError: the model has no memory
    """
    if memory == "own":
        return
    own = getattr(model.decoder, "memory", None)
    if own is None:
        raise ValueError(f"--memory {memory} needs a model with a memory bank")
    if memory == "empty":
        own.retrieve = lambda queries: None
    else:
        own.retrieve = partial(_shifted, own, own.retrieve)


def _shifted(memory, read, queries):
    # Stream b asks the bank of stream b + 1, which is reading another document. The banks of streams
    # that have run out are still there, full of their last document.
    missing = memory.bank.layout.num_streams - queries.size(0)
    queries = F.pad(queries, (0, 0, 0, 0, 0, 0, 0, missing)).roll(1, dims=0)
    retrieved = read(queries)
    if retrieved is None:
        return None
    found = {
        name: tensor.roll(-1, dims=0)[: queries.size(0) - missing]
        for name, tensor in retrieved._asdict().items()
        if isinstance(tensor, Tensor)
    }
    return retrieved._replace(**found)


def write_with(model, writer) -> None:
    """Makes a model memorise what *writer*, such as an older checkpoint of it, would.

    Raises:
        ValueError: one of them has no memory
    """
    if model.decoder.memory is None or writer.decoder.memory is None:
        raise ValueError("--memory-writer needs two models with a memory bank")
    read = model.decoder.read

    def read_and_replace(src_tokens, *others, **options):
        return read(src_tokens, *others, **options)._replace(
            entries=writer.decoder.entries(src_tokens)
        )

    model.decoder.read = read_and_replace


class Documents:
    """Some documents of a split, to be read side by side."""

    def __init__(self, split, numbers: Sequence[int]):
        self.split, self.numbers = split, numbers
        self.sizes = np.asarray(split.sizes)[list(numbers)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        return self.split[self.numbers[index]]


def group_documents(sizes: Sequence[int], batch_size: int) -> List[List[int]]:
    """Numbers of the documents that are read side by side: of similar length, the shortest first.

    Which documents are in a batch changes the last bits of what each of them gets. So a group is read
    as a whole or not at all, also by a run that was killed.
    """
    order = np.argsort(np.asarray(sizes), kind="stable")
    return [group.tolist() for group in np.array_split(order, -(-len(order) // batch_size))]


def score_documents(
    model, task, split: str, batch_size: int, progress: bool = True
) -> Iterator[Tuple[int, DocumentScores]]:
    """Reads every document of a split whole, up to *batch_size* side by side.

    Yields the number of a document and its scores.
    """
    documents, descriptions = load_documents(task, split)
    total = int(documents.sizes.sum())
    with tqdm(total=total, unit="tok", unit_scale=True, disable=not progress) as bar:
        for group in group_documents(documents.sizes, batch_size):
            yield from score_group(model, task, Documents(documents, group), descriptions, bar)


def load_documents(task, split: str):
    """The documents of a split, and what is known of them besides: name, words, ...

    Raises:
        FileNotFoundError: there is no such split
        ValueError: it is damaged, or its descriptions are not those of its documents
    """
    task.load_dataset(split)
    documents = task.dataset(split)
    path = os.path.join(task.cfg.data, f"{split}.documents.jsonl")
    descriptions = read_json_lines(path, {"name": str, "words": int})
    for line, described in enumerate(descriptions, start=1):
        if not 0 <= described["words"] <= 2**40:
            raise ValueError(f"{path}, line {line}: {described['words']} words")
    if len(descriptions) != len(documents):
        raise ValueError(
            f"{path} has {len(descriptions)} lines for {len(documents)} documents: prepare the corpus "
            "again"
        )
    if 0 in documents.sizes:
        raise ValueError(
            f"{os.path.join(task.cfg.data, split)}.idx: document {list(documents.sizes).index(0)} has "
            "no tokens, not even its end: prepare the corpus again"
        )
    return documents, descriptions


def by_document(questions: List[Dict], sizes: Sequence[int], path: str) -> List[List[Dict]]:
    """The questions of every document.

    Args:
        sizes: tokens of every document
        path: file of the questions, a line each

    Raises:
        ValueError: a question is about no document, or its answer is not inside
    """
    asked: List[List[Dict]] = [[] for _ in sizes]
    for line, question in enumerate(questions, start=1):
        number, start, tokens = (question[name] for name in ("document", "position", "tokens"))
        if not 0 <= number < len(sizes):
            raise ValueError(f"{path}, line {line}: document {number} is none of {len(sizes)}")
        if start < 0 or tokens < 1 or start + tokens > sizes[number]:
            raise ValueError(
                f"{path}, line {line}: an answer of {tokens} tokens at {start} is not inside document "
                f"{number}, which has {sizes[number]}"
            )
        asked[number].append(question)
    return asked


@torch.no_grad()
def score_group(
    model, task, documents: Documents, descriptions: List[Dict], bar: tqdm
) -> Iterator[Tuple[int, DocumentScores]]:
    """Reads documents side by side, each whole, with an empty memory at first.

    Yields the number of a document in its split and its scores when it is done.
    """
    if model.decoder.memory is not None:
        model.decoder.memory.reset()
    batches = task.eval_lm_dataloader(documents, batch_size=len(documents), num_workers=0)
    device = next(model.parameters()).device
    pad = task.target_dictionary.pad()
    open_documents: Dict[int, DocumentScores] = {}
    for batch in batches:
        target = batch["target"].to(device)
        net_input = {name: tensor.to(device) for name, tensor in batch["net_input"].items()}
        predicted = model.decoder.scores(model(**net_input))
        nll, right = (
            scored.view_as(target).cpu().numpy() for scored in _score(predicted, target, pad)
        )
        target = target.cpu().numpy()
        for row, (number, start) in enumerate(zip(batch["id"], batch["position"], strict=True)):
            number, start = int(number), int(start)
            if number < 0:
                continue
            if number not in open_documents:
                size = int(documents.sizes[number])
                described = descriptions[documents.numbers[number]]
                open_documents[number] = DocumentScores(
                    described["name"],
                    described["words"],
                    np.empty(size, dtype=np.int32),
                    np.empty(size, dtype=np.float32),
                    np.empty(size, dtype=bool),
                )
            scores = open_documents[number]
            (columns,) = (target[row] != pad).nonzero()
            places = start + columns
            scores.tokens[places] = target[row, columns]
            scores.nll[places] = nll[row, columns]
            scores.right[places] = right[row, columns]
            bar.update(len(columns))
            if places[-1] + 1 == len(scores.tokens):
                yield documents.numbers[number], open_documents.pop(number)


def _score(logits: Tensor, target: Tensor, pad: int) -> Tuple[Tensor, Tensor]:
    """Negative log-likelihood of every target, and whether no other token was as likely; B * T."""
    losses, first_choices = [], []
    for block, expected in row_blocks(logits, target):
        losses.append(token_losses(block, expected, pad))
        likelihood = block.gather(-1, expected.unsqueeze(-1))
        others = block.scatter(-1, expected.unsqueeze(-1), float("-inf"))
        first_choices.append(others.amax(dim=-1) < likelihood.squeeze(-1))
    return torch.cat(losses), torch.cat(first_choices)


def mean_loss(nll: float, count: int) -> Optional[float]:
    """nll / count; None where that is no number: of no tokens, or NaN."""
    return nll / count if count and math.isfinite(nll) else None


def perplexity(nll: float, count: int) -> Optional[float]:
    """exp(nll / count); None where that is no number, or beyond any."""
    loss = mean_loss(nll, count)
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None
