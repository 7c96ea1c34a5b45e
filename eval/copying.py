#!/usr/bin/env python3
"""How well a backbone copies inside its window: whether memory can help is decided there.

Example:
    python -m eval.copying data/books --path runs/backbone/checkpoint_last.pt

A segment of random tokens (drawn by the square root of their frequency) whose second half repeats
the first: a model that copies predicts the second half, one that does not is at the loss of the
first. Prints loss (nats) of both halves and the share of the second half that is the first choice.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from eval.common.results import append_result, check_results
from eval.common.stream_scoring import load_model
from longmem_fairseq.utils.cli import check_positive, run, script_parser


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("data", help="folder made by preprocess/prepare_corpus.py")
    add("--path", required=True, help="checkpoint")
    add(
        "--tokens-per-sample",
        type=int,
        help="tokens of a segment; if not given, those of the model's training",
    )
    add("--segments", type=int, default=64, help="segments to try")
    add("--seed", type=int, default=1, help="of the random tokens")
    add("--results", type=Path, help="file to append a JSON line to")
    return parser


@torch.no_grad()
def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "segments")
    if args.seed < 0:
        raise ValueError(f"--seed ({args.seed}) must be at least 0")
    check_results("--results", args.results)
    model, task = load_model(args.path, args.data, args.tokens_per_sample)
    segment = task.cfg.tokens_per_sample
    if segment < 4:
        raise ValueError(f"--tokens-per-sample ({segment}) must be at least 4")
    dictionary = task.source_dictionary
    probabilities = np.sqrt(np.array(dictionary.count, dtype=np.float64))
    probabilities[: dictionary.nspecial] = 0
    half = segment // 2
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
    append_result(args.results, {"path": args.path, "tokens_per_sample": segment, **result})
    print(
        f"loss of random tokens {result['loss_first']:.2f}, repeated {result['loss_second']:.2f}; "
        f"{100 * result['copied']:.1f}% of the repeated ones copied"
    )


if __name__ == "__main__":
    run(main)
