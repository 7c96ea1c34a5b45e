"""Folders as training leaves them: checkpoint, dictionary and tokenizer of tiny models.

The fixture ``models`` of conftest.py makes them. Their weights are large and random, so that what they
say depends on everything that they have read.
"""

import random
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fairseq_cli import train

from tests.helpers.corpora import prepare, write_splits

WINDOW = 16
WORDS = (
    "Ann Bob Caf\u00e9 Dora \u4e2d\u6587 Emil owl, tree. river \u2014 the a was and saw\n of "
    "\U0001f600 house.\n"
).split(" ")
TRAIN = (
    "--task longmem_language_modeling --criterion longmem_cross_entropy --batch-size 2 --cpu "
    f"--num-workers 0 --tokens-per-sample {WINDOW} --optimizer sgd --lr 1e-6 --max-update 1 "
    "--log-format none --disable-validation --no-save-memory"
)
BACKBONE = "--arch longmem_backbone --embed-dim 32 --num-layers 2 --num-attention-heads 2"
MEMORY = "--memory-size 128 --chunk-size 2 --k 8 --retrieval-layer-index 1"
# name: options, and the seed of what is added to the weights
MODELS = {
    "backbone": (BACKBONE, 1),
    "other_backbone": (BACKBONE, 2),
    "longmem": (f"--arch longmem {MEMORY} --pretrained-model-path {{backbone}}", None),
    "other_longmem": (f"--arch longmem {MEMORY} --pretrained-model-path {{other_backbone}}", None),
    "memtrm": (f"--arch memtrm {MEMORY} --pretrained-model-path {{backbone}}", 3),
    "other_memtrm": (f"--arch memtrm {MEMORY} --pretrained-model-path {{backbone}}", 4),
}


def story(words: int, seed: int = 0) -> str:
    """A text of that many words, with line breaks and characters of several bytes."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


DOCUMENTS = {"a": story(30, seed=1), "b": story(23, seed=2)}  # to memorize
TEXT = story(50, seed=3)  # to read then


def memory_state(lm):
    """Header and tensors of the memory that a model reads."""
    bank = lm.memory.single_bank(lm.device)
    return bank.header(), {name: tensor.clone() for name, tensor in bank.state_dict().items()}


def assert_same_memory(lm, before):
    """The memory is what :func:`memory_state` gave."""
    header, tensors = memory_state(lm)
    assert header == before[0]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before[1].items())


def make(folder: Path, root: Path) -> dict:
    """In *folder* a folder for each of MODELS, by name."""
    data, made = folder / "data", {}
    text = story(4000)
    prepare(write_splits(folder / "text", {"a": text}, {"a": text[:400]}, {"a": text[:400]}), data)
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fairseq's iterator asks for pinned memory everywhere
        for name, (options, seed) in MODELS.items():
            made[name] = folder / name / "checkpoint_last.pt"
            arguments = f"{data} --user-dir {root / 'longmem_fairseq'} {TRAIN} "
            arguments += f"--save-dir {folder / name} {options.format(**made)}"
            monkeypatch.setattr(sys, "argv", ["fairseq-train", *arguments.split()])
            train.cli_main()
            if seed is not None:
                _shake(made[name], seed)
            for file in ("dict.txt", "sentencepiece.model"):
                shutil.copy(data / file, folder / name)
    return {name: checkpoint.parent for name, checkpoint in made.items()}


def _shake(checkpoint: Path, seed: int) -> None:
    state, generator = torch.load(checkpoint), torch.Generator().manual_seed(seed)
    for tensor in state["model"].values():
        if tensor.dim() == 2:
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    torch.save(state, checkpoint)


def ids(lm, text):
    """1 x (1 + T)"""
    start = [lm.dictionary.eos()]
    return torch.tensor([start + lm.tokenizer.indices(text).tolist()])
