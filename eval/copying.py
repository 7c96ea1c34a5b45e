#!/usr/bin/env python3
"""How well a backbone copies inside its window: whether memory can help is decided there.

Example:
    python eval/copying.py data/books --path runs/backbone/checkpoint_last.pt --tokens-per-sample 256

A segment of random tokens (drawn by the square root of their frequency) whose second half repeats
the first: a model that copies predicts the second half, one that does not is at the loss of the
first. Prints loss (nats) of both halves and the share of the second half that is the first choice.
"""

import argparse
import json

import numpy as np
import torch

from longmem_fairseq.cli import run
from stream_scoring import load_model


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("data", help="folder made by preprocess/prepare_corpus.py")
    add("--path", required=True, help="checkpoint")
    add("--tokens-per-sample", type=int, default=1024, help="tokens of a segment")
    add("--segments", type=int, default=64, help="segments to try")
    add("--seed", type=int, default=1, help="of the random tokens")
    add("--results", help="file to append a JSON line to")
    return parser


@torch.no_grad()
def main() -> None:
    args = get_parser().parse_args()
    if args.tokens_per_sample < 4:
        raise ValueError(f"--tokens-per-sample ({args.tokens_per_sample}) must be at least 4")
    if args.segments < 1:
        raise ValueError(f"--segments ({args.segments}) must be at least 1")
    model, task = load_model(args.path, args.data, args.tokens_per_sample)
    dictionary = task.source_dictionary
    probabilities = np.sqrt(np.array(dictionary.count, dtype=np.float64))
    probabilities[: dictionary.nspecial] = 0
    half = args.tokens_per_sample // 2
    rng = np.random.default_rng(args.seed)
    tokens = torch.from_numpy(
        rng.choice(len(dictionary), (args.segments, half), p=probabilities / probabilities.sum())
    )
    tokens = torch.cat([tokens, tokens], dim=1)
    logits, _ = model(tokens[:, :-1], new_document=torch.ones(len(tokens), dtype=torch.bool))
    target = tokens[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), target, reduction="none"
    )
    right = logits.argmax(dim=-1).eq(target)
    # the first token of the second half cannot be known: nothing says that the repetition starts
    result = {
        "loss_first": loss[:, : half - 1].mean().item(),
        "loss_second": loss[:, half:].mean().item(),
        "copied": right[:, half:].float().mean().item(),
    }
    if args.results:
        with open(args.results, "a", encoding="utf-8") as results:
            results.write(json.dumps({"path": args.path, **result}) + "\n")
    print(
        f"loss of random tokens {result['loss_first']:.2f}, repeated {result['loss_second']:.2f}; "
        f"{100 * result['copied']:.1f}% of the repeated ones copied"
    )


if __name__ == "__main__":
    run(main)
