"""Continues texts, with what is in a memory.

    echo 'The old lighthouse' | longmem-generate runs/quickstart/longmem --memory documents.memory

Prints the continuation of each text, whose line breaks at the end are left out: the most likely one,
unless --temperature asks for a draw.
"""

import argparse
import json
from typing import List, Tuple

from longmem_fairseq.commands.options import (
    check_argument,
    load_model,
    make_parser,
    parse,
    read_texts,
)
from longmem_fairseq.utils.cli import run


def get_parser() -> argparse.ArgumentParser:
    """The options of the command, without those of the model."""
    parser = make_parser(__doc__)
    add = parser.add_argument_group("generation").add_argument
    add("--prompt", action="append", help="a text to continue, instead of files; may be repeated")
    add("--max-new-tokens", type=int, default=100, help="at most so many (default: 100)")
    add(
        "--temperature",
        type=float,
        default=0.0,
        help="0: the most likely continuation (default); 1: draw from the model's distribution; less, "
        "down to 0.001: from a sharper one",
    )
    add("--top-k", type=int, default=0, help="draw from so many most likely tokens (default: all)")
    add(
        "--top-p",
        type=float,
        default=0.0,
        help="draw from as few most likely tokens as have this probability together (default: all)",
    )
    add("--beam", type=int, default=1, help="hypotheses of the search (default: 1, greedy)")
    add("--seed", type=int, help="of the draws (default: another one every time)")
    add(
        "--stop",
        action="append",
        default=[],
        help="end before this string, or at this special token; may be repeated",
    )
    add(
        "--excerpts",
        type=int,
        default=0,
        metavar="TOKENS",
        help="read again, before the text, excerpts of the memory that share words with it; so many at "
        "most (default: 0)",
    )
    add("--chat", action="store_true", help="answer the text, with the model's own chat template")
    return parser


def read_prompts(args: argparse.Namespace) -> List[Tuple[str, str]]:
    """Names and texts of the prompts.

    Raises:
        OSError: a file is not there, or cannot be read
        ValueError: there are two kinds of prompts, or one is empty or no text in UTF-8
    """
    if args.prompt is not None and args.texts:
        raise ValueError("--prompt and files of texts: give one of them")
    if args.prompt is None:
        prompts = [(name, text.rstrip("\n")) for name, text in read_texts(args)]
    else:
        prompts = [("--prompt", check_argument("--prompt", text)) for text in args.prompt]
    for name, prompt in prompts:
        if not prompt:
            raise ValueError(f"{name}: the prompt is empty")
    return prompts


def main() -> None:
    """Runs the command line of the process."""
    args = parse(get_parser())
    prompts = read_prompts(args)
    if args.chat and args.special_tokens:
        raise ValueError("--chat reads special tokens already: leave --special-tokens out")
    from longmem_fairseq.api.generation import check_generation
    from longmem_fairseq.api.remembering import check_excerpts

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "beam", "seed", "stop")
    options = {name: getattr(args, name) for name in names}
    check_generation(**options)
    if args.excerpts:
        check_excerpts(args.excerpts)
    for text in args.stop:
        check_argument("--stop", text)
    lm = load_model(args)
    options |= {name: getattr(args, name) for name in ("special_tokens", "chat", "excerpts")}
    for name, prompt in prompts:
        text = lm.generate(prompt, **options, progress=True)
        if args.json:
            print(json.dumps({"name": name, "prompt": prompt, "continuation": text}))
        else:
            print(f"==> {name} <==\n{text}" if len(prompts) > 1 else text)


def cli() -> None:
    """The console script longmem-generate."""
    run(main)
