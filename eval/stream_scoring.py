"""Scores documents with a checkpoint, stream by stream, and keeps what every token got.

B streams, T tokens, V vocabulary.
"""

import json
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils
from torch import Tensor
from tqdm import tqdm

from longmem_fairseq.modules import token_losses
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig

MEMORIES = ("own", "empty", "other")


@dataclass
class DocumentScores:
    """One document: for each of its tokens the negative log-likelihood (nats), and whether it alone was
    the model's first choice."""

    name: str
    words: int
    tokens: np.ndarray
    nll: np.ndarray
    right: np.ndarray


def load_model(path: str, data: str, tokens_per_sample: int, **options):
    """Model and task of a checkpoint, in evaluation mode.

    Args:
        path: checkpoint
        data: folder made by preprocess/prepare_corpus.py
        options: fields of the task to set, such as memory_size or compute_dtype
    """
    cfg = LongMemLanguageModelingConfig(data=data, tokens_per_sample=tokens_per_sample, **options)
    task = LongMemLanguageModelingTask(cfg)
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], task=task)
    return model.eval(), task


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
    missing = memory.bank.num_streams - queries.size(0)
    queries = F.pad(queries, (0, 0, 0, 0, 0, 0, 0, missing)).roll(1, dims=0)
    retrieved = read(queries)
    if retrieved is None:
        return None
    chunks, rows = (found.roll(-1, dims=0)[: queries.size(0) - missing] for found in retrieved[:2])
    return retrieved._replace(chunks=chunks, rows=rows)


@torch.no_grad()
def score_documents(
    model, task, split: str, batch_size: int, progress: bool = True
) -> Iterator[Tuple[int, DocumentScores]]:
    """Reads every document of a split whole, in *batch_size* streams (or as many as documents).

    Yields the number of a document and its scores when it is done.
    """
    task.load_dataset(split)
    documents = task.dataset(split)
    descriptions = read_json_lines(os.path.join(task.cfg.data, f"{split}.documents.jsonl"))
    # a stream without a document would be padding, and its empty memory no other document's
    batch_size = min(batch_size, len(documents))
    batches = task.eval_lm_dataloader(documents, batch_size=batch_size, num_workers=0)
    device = next(model.parameters()).device
    pad = task.target_dictionary.pad()
    open_documents: Dict[int, DocumentScores] = {}
    bar = tqdm(total=int(documents.sizes.sum()), unit="tok", unit_scale=True, disable=not progress)
    for batch in batches:
        target = batch["target"].to(device)
        net_input = {name: tensor.to(device) for name, tensor in batch["net_input"].items()}
        logits, _ = model(**net_input)
        nll, right = (
            scored.view_as(target).cpu().numpy() for scored in _score(logits, target, pad)
        )
        target = target.cpu().numpy()
        for row, (number, start) in enumerate(zip(batch["id"], batch["position"], strict=True)):
            number, start = int(number), int(start)
            if number < 0:
                continue
            if start == 0:
                size = int(documents.sizes[number])
                described = descriptions[number]
                open_documents[number] = DocumentScores(
                    described["name"],
                    described["words"],
                    np.empty(size, dtype=np.int32),
                    np.empty(size, dtype=np.float32),
                    np.empty(size, dtype=bool),
                )
            scores = open_documents[number]
            length = int((target[row] != pad).sum())
            stop = start + length
            scores.tokens[start:stop] = target[row, :length]
            scores.nll[start:stop] = nll[row, :length]
            scores.right[start:stop] = right[row, :length]
            bar.update(length)
            if stop == len(scores.tokens):
                yield number, open_documents.pop(number)
    bar.close()


def _score(logits: Tensor, target: Tensor, pad: int) -> Tuple[Tensor, Tensor]:
    """Negative log-likelihood of every target, and whether no other token was as likely; B * T."""
    losses, first_choices = [], []
    # blocks of rows for the same reason as in token_losses
    blocks = zip(logits.flatten(0, 1).split(64), target.flatten().split(64), strict=True)
    for block, expected in blocks:
        block = block.float()
        losses.append(token_losses(block, expected, pad))
        likelihood = block.gather(-1, expected.unsqueeze(-1))
        others = block.scatter(-1, expected.unsqueeze(-1), float("-inf"))
        first_choices.append(others.amax(dim=-1) < likelihood.squeeze(-1))
    return torch.cat(losses), torch.cat(first_choices)


def read_json_lines(path: str) -> List[Dict]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


def perplexity(nll: float, count: int) -> Optional[float]:
    """exp(nll / count), None for no tokens."""
    return float(np.exp(nll / count)) if count else None
