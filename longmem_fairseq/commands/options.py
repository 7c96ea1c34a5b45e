"""What the commands have in common: which model, which memory, which texts."""

import argparse
import os
import sys
from pathlib import Path
from typing import List, Tuple

from fairseq.dataclass.utils import gen_parser_from_dataclass

from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.api.pretrained import load_with_options
from longmem_fairseq.tasks.config import ModelOptions, given_options
from longmem_fairseq.utils.replaced_file import replaced_mode
from longmem_fairseq.utils.text_files import matching_files, read_text, text_of


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser of MODEL, TEXT... and the options of model and memory.

    Args:
        description: its first line says what the command does; the rest ends in an example
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", help="folder with checkpoint, dict.txt and tokenizer, or a checkpoint in it"
    )
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="text",
        help="text files in UTF-8, or patterns in quotes; - or none: standard input",
    )
    parser.add_argument("--memory", help="memory file to start from (default: an empty memory)")
    parser.add_argument(
        "--memory-map",
        action="store_true",
        help="leave the memory in its file instead of reading it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    gen_parser_from_dataclass(parser.add_argument_group("model"), ModelOptions())
    return parser


def load_model(args: argparse.Namespace) -> LongMem:
    """The model, with its memory.

    Raises:
        FileNotFoundError, ValueError: see :meth:`LongMem.from_pretrained` and ``load_memory``; or
            --memory-map without --memory
    """
    if args.memory_map and args.memory is None:
        raise ValueError("--memory-map needs --memory, the file that is to be mapped")
    lm = LongMem(*load_with_options(Path(args.model), args.device, given_options(args)))
    if args.memory is not None:
        lm.load_memory(args.memory, memory_map=args.memory_map)
    return lm


def read_texts(args: argparse.Namespace) -> List[Tuple[str, str]]:
    """Names and texts of all files, or of standard input.

    Raises:
        OSError: a file is not there, or cannot be read
        ValueError: one is no text in UTF-8
    """
    texts = []
    for pattern in args.texts or ["-"]:
        if pattern == "-":
            texts.append(("standard input", text_of(sys.stdin.buffer.read(), "standard input")))
        else:
            files = matching_files(Path(pattern))
            texts += [(str(file), read_text(file)) for file in files]
    return texts


def check_argument(option: str, text: str) -> str:
    """The text of an option, from the command line.

    Raises:
        ValueError: its bytes are no text in UTF-8, for which Python puts surrogates
    """
    return text_of(os.fsencode(text), option)


def check_output(path: str) -> None:
    """Before the work of hours.

    Raises:
        ValueError: *path*, given as --output, cannot be a file
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"--output ({path}): there is no folder {folder}")
    if Path(path).is_dir():
        raise ValueError(f"--output ({path}) is a folder: give a file to write")
    try:
        replaced_mode(path)
    except OSError as error:
        raise ValueError(f"--output ({path}): {error}") from None
