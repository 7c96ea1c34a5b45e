"""Reads documents into a memory and saves it.

    longmem-memorize runs/quickstart/longmem 'documents/*.txt' --output documents.memory

Every file is a document of its own; passages name it. With --memory it adds to what was
saved before; a memory to which another process is adding, or has added, is left as it is.
"""

import argparse
import fcntl
import json
import os
from contextlib import contextmanager
from typing import Iterator

from longmem_fairseq.commands.options import (
    check_writable,
    load_model,
    make_parser,
    parse,
    read_texts,
)
from longmem_fairseq.utils.cli import counted, run
from longmem_fairseq.utils.replaced_file import file_version


def main() -> None:
    """Runs the command line of the process."""
    parser = make_parser(__doc__)
    parser.add_argument("--output", required=True, help="memory file to write")
    parser.add_argument(
        "--words-only",
        action="store_true",
        help="remember the tokens without reading them with the model, which is thousands of times "
        "faster: --excerpts then find them by their words, and nothing by its meaning",
    )
    args = parse(parser)
    check_writable("--output", args.output)
    from longmem_fairseq.memory.memory_file import is_memory_file

    if os.path.exists(args.output) and not is_memory_file(args.output):
        raise ValueError(f"--output ({args.output}) is there, and no memory file: give a new name")
    with only_writer(args.output):
        result = memorize_files(args)
    if args.json:
        print(json.dumps(result))
        return
    waiting = result["waiting"]
    print(
        f"{args.output}: read {counted(result['documents'], 'document')} of {result['tokens']:,} "
        f"tokens; the memory holds {result['held']:,} tokens, beginnings included, of at most "
        f"{result['memory_size']:,}"
        + (f", and {waiting} of an unfinished chunk" if waiting else "")
    )


def memorize_files(args: argparse.Namespace) -> dict:
    """Memorizes the texts of a command line, saves the memory, and describes both for --json."""
    before = file_version(args.output)
    names, texts = zip(*read_texts(args), strict=True)
    lm = load_model(args)
    tokens = lm.memorize(
        texts, names, special_tokens=args.special_tokens, words_only=args.words_only
    )
    lm.save_memory(args.output, replaces=before)
    bank = lm.memory.single_bank(lm.device)
    return {
        "memory": args.output,
        "documents": len(texts),
        "tokens": tokens,
        "held": bank.num_tokens[0],
        "waiting": bank.num_pending[0],
        "memory_size": bank.layout.memory_size,
    }


@contextmanager
def only_writer(path: str) -> Iterator[None]:
    """Refuses at once where ``save_memory`` would refuse hours later.

    Raises:
        ValueError: another process of this command is adding to *path*
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed, or we are killed
        except BlockingIOError:
            raise ValueError(
                f"--output ({path}): another process is adding to it: wait until it has ended"
            ) from None
        except OSError:  # a network file system without locks: save_memory looks at the end
            pass
        yield


def cli() -> None:
    """The console script longmem-memorize."""
    run(main)
