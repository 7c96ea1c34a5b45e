"""The options that the commands share: the model, its memory, the texts.

fairseq takes seconds to import, and is imported once a command line is known to be good.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Tuple, Union

from longmem_fairseq.commands.light_fairseq import import_fairseq
from longmem_fairseq.utils.allocator import keep_freed_memory
from longmem_fairseq.utils.cli import check_positive, documented_parser
from longmem_fairseq.utils.replaced_file import replaced_mode
from longmem_fairseq.utils.text_files import matching_files, read_text, text_of
from longmem_fairseq.utils.threads import wait_briefly

if TYPE_CHECKING:
    from longmem_fairseq import LongMem

wait_briefly()  # before PyTorch is imported


def make_parser(description: str, reads_texts: bool = True) -> argparse.ArgumentParser:
    """A parser, for :func:`parse`, of MODEL, TEXT... and the options of model and memory.

    Args:
        description: of the command in its first line; the rest ends in an example
        reads_texts: otherwise there are no TEXT..., --special-tokens and --json
    """
    parser = documented_parser(description)
    parser.add_argument(
        "model", help="folder with checkpoint, dict.txt and tokenizer, or a checkpoint in it"
    )
    if reads_texts:
        _add_text_options(parser)
    parser.add_argument("--memory", help="memory file to start from (default: an empty memory)")
    parser.add_argument(
        "--memory-map",
        action="store_true",
        help="leave the memory in its file instead of reading it",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--tokens-per-sample",
        type=int,
        help="tokens of the local window (default: as the checkpoint was trained)",
    )
    parser.add_argument(
        "--segment-overlap",
        type=int,
        help="tokens of a window that are context from the one before, when a text is memorized or "
        "scored (default: as the checkpoint was trained)",
    )
    parser.add_argument(
        "--help-model",
        action=_HelpModel,
        nargs=0,
        help="show the options of model and memory too (--memory-size, --k, --compute-dtype, ...)",
    )
    return parser


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        nargs="*",
        metavar="text",
        help="text files in UTF-8, or patterns in quotes; - or none: standard input",
    )
    parser.add_argument(
        "--special-tokens",
        action="store_true",
        help="read special tokens of the model that a text spells out (default: they are text)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


class _HelpModel(argparse.Action):
    def __call__(self, parser, *unused):
        _add_model_options(parser)
        parser.print_help()
        parser.exit()


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    import_fairseq()  # before anything imports it in full
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    from longmem_fairseq.tasks.config import ModelOptions

    logging.getLogger().setLevel(logging.WARNING)  # fairseq leaves it at DEBUG
    gen_parser_from_dataclass(parser.add_argument_group("model"), ModelOptions())


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with the options of the model, which come last."""
    parser.parse_known_args()  # help, and most mistakes, need no fairseq
    _add_model_options(parser)
    return parser.parse_intermixed_args()


def load_model(args: argparse.Namespace, with_memory: bool = True) -> "LongMem":
    """The model, with its memory, which has the size of its file unless --memory-size is given.

    Args:
        with_memory: otherwise --memory is not read

    Raises:
        FileNotFoundError, ValueError: see :meth:`LongMem.from_pretrained` and ``load_memory``; or
            --memory-map without --memory
    """
    if args.memory_map and args.memory is None:
        raise ValueError("--memory-map needs --memory, the file that is to be mapped")
    check_positive(args, "tokens_per_sample")
    from longmem_fairseq import LongMem
    from longmem_fairseq.api.pretrained import load_pretrained
    from longmem_fairseq.memory import memory_size_of
    from longmem_fairseq.tasks.config import given_options

    keep_freed_memory()
    options = given_options(args)
    for name in ("tokens_per_sample", "segment_overlap"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    size = memory_size_of(args.memory) if args.memory is not None and with_memory else None
    if size is not None:
        options.setdefault("memory_size", size)
    lm = LongMem(*load_pretrained(Path(args.model), args.device, options))
    if args.memory is not None and with_memory:
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


def check_writable(option: str, path: Union[str, Path]) -> None:
    """Checks, before the work of hours, that a file can be written.

    Raises:
        ValueError: *path*, given as *option*, cannot
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{option} ({path}): there is no folder {folder}")
    if Path(path).is_dir():
        raise ValueError(f"{option} ({path}) is a folder: give a file to write")
    try:
        replaced_mode(path)
    except OSError as error:
        raise ValueError(f"{option} ({path}): {error}") from None
