#!/usr/bin/env python3
"""How often memory finds the token that comes next: one level below every score.

Example:
    python -m eval.hit_rates 'books/test/*.txt' --path models/smollm2 --name smollm2 --pointer constant

Reads every document from its beginning, and for each token looks whether the one that really comes
next is among those that its query retrieves from the document's own past: of all tokens, and of rare
ones, which are 1 to 20 times in memory. Chance is as many places drawn at random. Needs
--memory-search hidden.
"""

import argparse
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from eval.common import model_options
from eval.common.results import append_result
from eval.common.timing import Stopwatch
from longmem_fairseq import LongMem
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.utils.cli import run, script_parser
from longmem_fairseq.utils.text_files import named_texts, read_text

RARE = 20  # times in memory, at most


class Hits(NamedTuple):
    """Of n queries: whether what came next was found, the chance of it, and whether it is rare."""

    found: Tensor
    chance: Tensor
    rare: Tensor


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    parser.add_argument("data", nargs="+", type=Path, help="files, or patterns of them")
    model_options.add_model_options(parser)
    return parser


@torch.no_grad()
def hits_of(lm: LongMem, text: str) -> Hits:
    """Of all queries of a document that have something in memory; it is forgotten first."""
    lm.forget()
    decoder, bank = lm.decoder, lm.memory.single_bank(lm.device)
    bank.begin_document(0, None, offset=-1)
    parts, read = [Hits(*torch.empty(3, 0).unbind())], 0
    tokens = document_tokens(lm.tokenizer, text)
    for segment, overlap in decoder.segments(tokens[:, :-1]):
        reading = decoder.read(segment.to(lm.device), bank.retrieve)
        if reading.lookup.found is not None:
            ids = reading.lookup.found.token_ids[0, overlap:].cpu()  # T x K
            next_tokens = tokens[0, read + 1 : read + 1 + len(ids)]
            held = torch.bincount(bank.logs[0].read(bank.held(0)), minlength=len(lm.dictionary))
            counts = held[next_tokens]
            chance = 1 - (1 - counts / counts.new_tensor(len(bank.held(0)))) ** ids.size(1)
            found = (ids == next_tokens.unsqueeze(1)).any(dim=1)
            parts.append(Hits(found.float(), chance, ((counts > 0) & (counts <= RARE)).float()))
        read += segment.size(1) - overlap
        new = slice(overlap, None)
        bank.write(**reading.entries.of_tokens(new)._asdict(), token_ids=segment[:, new])
    return joined(parts)


def joined(parts: Sequence[Hits]) -> Hits:
    """The queries of all parts."""
    return Hits(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    lm = model_options.load(args)
    if lm.decoder.memory is None or lm.memory.options["search"] != "hidden":
        raise ValueError(f"--path ({args.path}): the model needs --memory-search hidden")
    watch = Stopwatch()
    hits = joined([hits_of(lm, read_text(file)) for _, file in named_texts(args.data)])
    result = {
        "benchmark": "hit_rates",
        **model_options.describe_model(args, lm.model),
        "tokens": len(hits.found),
        "hits": share(hits.found),
        "chance": share(hits.chance),
        "rare_tokens": int(hits.rare.sum()),
        "rare_hits": share(hits.found, hits.rare),
        "rare_chance": share(hits.chance, hits.rare),
        "seconds": round(watch.seconds, 1),
    }
    append_result(args.results, result)
    print(
        f"{result['tokens']:,} tokens: {result['hits']:.1%} found, by chance "
        f"{result['chance']:.1%}; {result['rare_tokens']:,} rare ones: {result['rare_hits']:.1%}, by "
        f"chance {result['rare_chance']:.1%}"
    )


def share(values: Tensor, weights: Optional[Tensor] = None) -> float:
    """Their mean, by weight; 0 of none."""
    weights = torch.ones_like(values) if weights is None else weights
    return float((values * weights).sum() / weights.sum().clamp(min=1))


if __name__ == "__main__":
    run(main)
