"""Scores every token of documents with a checkpoint, stream by stream.

B streams, T tokens, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from eval.common.documents import Documents
from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.modules import row_blocks, token_losses
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig


@dataclass
class DocumentScores:
    """One document: for each of its tokens the negative log-likelihood (nats), the same without the
    model's pointer, if it has one, and whether the token alone was the model's first choice."""

    name: str
    words: int
    tokens: np.ndarray
    nll: np.ndarray
    nll_without_pointer: np.ndarray
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
        output = model(**net_input)
        nll, right = (
            scored.view_as(target).cpu().numpy()
            for scored in _score(model.decoder.scores(output), target, pad)
        )
        without = nll
        if output[1].get("pointer") is not None:
            without = token_losses(output[0], target, pad).cpu().numpy()
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
                    np.empty(size, dtype=np.float32),
                    np.empty(size, dtype=bool),
                )
            scores = open_documents[number]
            (columns,) = (target[row] != pad).nonzero()
            places = start + columns
            scores.tokens[places] = target[row, columns]
            scores.nll[places] = nll[row, columns]
            scores.nll_without_pointer[places] = without[row, columns]
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
