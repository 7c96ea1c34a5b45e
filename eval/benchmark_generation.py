#!/usr/bin/env python3
"""Checks a long greedy generation against reading everything anew in every step, and times it.

    python -m eval.benchmark_generation runs/quickstart/longmem prompt.txt --compute-dtype float32

The text leaves the window many times. Anew means as in evaluation: the tokens behind the window are
memorized in halves of a window, then the rest is read as one segment. Token by token a step should
cost the same at any length of the text.
"""

import json
import time
from typing import List, Tuple

import torch
from torch import Tensor

from longmem_fairseq import LongMem
from longmem_fairseq.commands.options import load_model, make_parser, parse, read_texts
from longmem_fairseq.utils.cli import run

EARLY = slice(300, 400)  # steps to compare the last hundred with


def main() -> None:
    """Runs the script; see the module's documentation."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2000, help="to generate (default: 2000)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="generations; the fastest of each step counts"
    )
    args = parse(parser)
    if args.tokens < EARLY.stop + 100:
        raise ValueError(f"--tokens ({args.tokens}) must be at least {EARLY.stop + 100}")
    if args.memory is not None:
        raise ValueError(f"--memory ({args.memory}) would be read anew in every step: leave it out")
    lm = load_model(args)
    _, text = read_texts(args)[0]
    prompt = torch.tensor(
        [[lm.tokenizer.document_start, *lm.tokenizer.indices(text.rstrip("\n")).tolist()]]
    )
    runs = [generate(lm, prompt.to(lm.device), args.tokens) for _ in range(max(1, args.repeat))]
    tokens, seconds = (
        runs[0][0],
        [min(step) for step in zip(*(run for _, run in runs), strict=True)],
    )
    same = sum(
        next_token(lm, read_anew(lm, tokens[:, :stop])) == int(tokens[0, stop])
        for stop in range(prompt.size(1), tokens.size(1))
    )
    early, last = (100 / sum(seconds[some]) for some in (EARLY, slice(-100, None)))
    result = {
        "tokens": args.tokens,
        "window": lm.window,
        "same": same,
        "tokens_per_second": {"early": early, "last": last},
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{same:,} of {args.tokens:,} tokens are those of reading everything anew (window "
            f"{lm.window}); tokens {EARLY.start} to {EARLY.stop}: {early:.1f} tokens/s, the last "
            f"hundred: {last:.1f} tokens/s, {last / early:.2f} of that"
        )


@torch.no_grad()
def generate(lm: LongMem, tokens: Tensor, count: int) -> Tuple[Tensor, List[float]]:
    """The prompt (1 x T) with *count* tokens more, and the seconds that each of them took."""
    state, seconds = {}, []
    for _ in range(count):
        start = time.perf_counter()
        logits = lm.decoder(tokens, incremental_state=state)[0][0, -1]
        new = next_token(lm, logits)
        seconds.append(time.perf_counter() - start)
        tokens = torch.cat([tokens, tokens.new_tensor([[new]])], dim=1)
    return tokens, seconds


@torch.no_grad()
def read_anew(lm: LongMem, tokens: Tensor) -> Tensor:
    """The logits after 1 x T tokens, of an empty memory; V numbers."""
    half = lm.window - lm.window // 2
    past = max(0, -(-(tokens.size(1) - lm.window) // half) * half)
    fresh = torch.tensor([True])
    for segment in (*tokens[:, :past].split(half, dim=1), tokens[:, past:]):
        if segment.size(1) > 0:
            logits = lm.decoder(segment, new_document=fresh)[0]
            fresh = torch.tensor([False])
    return logits[0, -1]


def next_token(lm: LongMem, logits: Tensor) -> int:
    """The most likely token, other than the end of the document."""
    logits[[lm.dictionary.pad(), lm.dictionary.eos()]] = float("-inf")
    return int(logits.argmax())


if __name__ == "__main__":
    run(main)
