#!/usr/bin/env python3
"""Write documents of random tokens that repeat themselves, to teach a small backbone to copy first.

Example:
    python -m preprocess.make_recital --data data/books --dest data/books-recital
    fairseq-train data/books-recital:data/books ...

A model that reads its past has to find the place where the same thing stood before (induction). In
natural text a small model learns that late or never; in a recital half of the tokens can be known
in no other way, and a few hundred updates are enough. fairseq takes the first folder of a list for
the first epoch, the second for the second, and so on.

Documents are runs of 6 to 32 tokens, drawn by the square root of their frequency in the train
split; every second run is one of the last four again.
"""

import argparse
import json
from pathlib import Path
from typing import List

import numpy as np
import torch
from fairseq.data import Dictionary, indexed_dataset

from longmem_fairseq.tokenizers.checkpoint_ids import IDS_FILE
from longmem_fairseq.tokenizers.folder import copy_vocabulary
from longmem_fairseq.utils.cli import check_positive, counted, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.output_folder import is_up_to_date, replaced_folder

FORMAT = 2
TOKENS_PER_DOCUMENT = 8192


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder made by prepare_corpus.py")
    add("--dest", type=Path, required=True, help="folder to write, new or empty")
    add("--tokens", type=int, default=700_000, help="tokens to write")
    add("--mix", action="store_true", help="put the train split of --data beside the recital")
    add("--seed", type=int, default=1, help="same seed and options, same files")
    add("--overwrite", action="store_true", help="replace an earlier, different result in --dest")
    return parser


def recital(rng: np.random.Generator, probabilities: np.ndarray, num_tokens: int) -> np.ndarray:
    """One document of at least *num_tokens* tokens."""
    runs: List[np.ndarray] = []
    length = 0
    while length < num_tokens:
        runs.append(rng.choice(len(probabilities), size=rng.integers(6, 33), p=probabilities))
        recent = runs[-7::2]  # the last four that were new when they came
        runs.append(recent[rng.integers(len(recent))])
        length += len(runs[-2]) + len(runs[-1])
    return np.concatenate(runs)


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "tokens")
    if args.seed < 0:
        raise ValueError(f"--seed ({args.seed}) must be at least 0")
    path = args.data / "dict.txt"
    if not path.is_file():
        raise FileNotFoundError(f"--data ({args.data}) holds no dict.txt: run prepare_corpus.py")
    manifest = {
        "format": FORMAT,
        "dictionary": file_hash(path),
        "tokens": args.tokens,
        "seed": args.seed,
        "mix": args.mix,
    }
    if (args.data / IDS_FILE).is_file():  # which has the beginning of documents
        manifest["ids"] = file_hash(args.data / IDS_FILE)
    if is_up_to_date(args.dest, "recital.json", manifest, args.overwrite):
        print(f"{args.dest}: up to date")
        return
    dictionary = Dictionary.load(str(path))
    probabilities = np.sqrt(np.array(dictionary.count, dtype=np.float64))
    probabilities[: dictionary.nspecial] = 0
    probabilities /= probabilities.sum()
    rng = np.random.default_rng(args.seed)
    frequencies = np.zeros(len(dictionary), dtype=np.int64)
    with replaced_folder(args.dest) as folder:
        prefix = folder / ("train1" if args.mix else "train")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", vocab_size=len(dictionary))
        documents = -(-args.tokens // TOKENS_PER_DOCUMENT)
        for _ in range(documents):
            tokens = recital(rng, probabilities, args.tokens // documents)
            frequencies += np.bincount(tokens, minlength=len(dictionary))
            builder.add_item(torch.from_numpy(np.append(tokens, dictionary.eos())))
        builder.finalize(f"{prefix}.idx")
        for name in ("train.bin", "train.idx") if args.mix else ():
            (folder / name).symlink_to((args.data / name).resolve(strict=True))
        copy_vocabulary(args.data, folder)
        # the backbone's first prediction is these frequencies: see BackboneDecoder
        dictionary.count = frequencies.tolist()
        dictionary.save(str(folder / "dict.txt"))
        (folder / "recital.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{args.dest}: {counted(documents, 'document')}")


if __name__ == "__main__":
    run(main)
