"""Options of the model that every benchmark takes, and the model that they describe."""

import argparse
from pathlib import Path
from typing import Any, Dict, List

import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass

from eval.common.provenance import code_hash, commit
from eval.common.results import append_result, check_results
from longmem_fairseq import LongMem
from longmem_fairseq.api.pretrained import load_pretrained
from longmem_fairseq.models.checkpoints import fingerprint, hexadecimal
from longmem_fairseq.tasks.config import ModelOptions, given_options
from longmem_fairseq.utils.allocator import keep_freed_memory
from longmem_fairseq.utils.cli import as_option

# options that do not change the results
NO_SETTINGS = (
    "path",
    "name",
    "results",
    "data",
    "pretrained_model_path",
    "memory_dir",
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of the model and its memory, which replace those of the checkpoint's training."""
    add = parser.add_argument
    add("--path", required=True, help="checkpoint of a model of this plugin")
    add("--name", required=True, help="name of the model in results")
    add(
        "--results",
        type=Path,
        help="file to append JSON lines to; items that a killed run had finished are stored beside it",
    )
    add(
        "--tokens-per-sample",
        type=int,
        help="tokens of a segment, the local window; if not given, those of the model's training",
    )
    add(
        "--segment-overlap",
        type=int,
        help="tokens of a segment that are context from the one before; if not given, those of the "
        "model's training",
    )
    add(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1"
    )
    gen_parser_from_dataclass(parser.add_argument_group("model"), ModelOptions())


def load(args: argparse.Namespace) -> LongMem:
    """The model that the options describe, with the tokenizer in its folder.

    Raises:
        FileNotFoundError, ValueError: see :meth:`LongMem.from_pretrained` and below
    """
    check_results("--results", args.results)
    keep_freed_memory()
    options = given_options(args)
    for name in ("tokens_per_sample", "segment_overlap"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    lm = LongMem(*load_pretrained(Path(args.path), args.device, options))
    check_memory_options(args, lm.model)
    return lm


def check_memory_options(args: argparse.Namespace, model) -> None:
    """Raises ValueError for an option of the memory of a model that has none."""
    for name, value in given_options(args).items():
        if name == "memory_size" and value == 0:  # asks for none
            continue
        about_memory = name.startswith("memory_") or name in ("chunk_size", "k")
        if about_memory and model.decoder.memory is None:
            raise ValueError(
                f"{as_option(name)} ({value}) needs a model with a memory bank: leave it out"
            )


def describe_model(args: argparse.Namespace, model) -> Dict:
    """Fields of a result line: the model's name, arithmetic and memory options, and the data."""
    decoder = model.decoder
    memory_options = None
    if decoder.memory is not None:
        names = ("memory_size", "chunk_size", "k", "scope", "index", "index_parameters", "dtype")
        memory_options = {name: decoder.memory.options[name] for name in names}
        if decoder.memory.options["search"] == "hidden":
            dim, pointer = decoder.memory.options["search_dim"], decoder.pointer
            kind = None if pointer is None else type(pointer).__name__
            memory_options.update(search_layer=decoder.search_layer, search_dim=dim, pointer=kind)
            if kind is not None and decoder.pointer.added != 0:
                memory_options["pointer_bias"] = decoder.pointer.added
        if decoder.gate is not None:
            reader = decoder.layers[decoder.memory_layer].self_attn
            memory_options.update(heads=reader.memory_heads, distance=reader.memory_distance)
    compute_dtype = getattr(decoder, "backbone", decoder).compute_dtype
    return {
        "name": args.name,
        "commit": commit(),
        "tokens_per_sample": decoder.window,
        "segment_overlap": decoder.overlap,
        "compute_dtype": str(compute_dtype).removeprefix("torch."),
        "memory_options": memory_options,
        "data": str(args.data),
        "limit": getattr(args, "limit", None),  # eval/needle.py has none
    }


def append_measured(
    args: argparse.Namespace, model, benchmark: str, measured: Dict, setting: Dict, seed: Any = None
) -> None:
    """Appends a measurement to --results, with all that describes the model.

    Args:
        setting: of the benchmark
        seed: of what was drawn for it
    """
    result = {"benchmark": benchmark, **describe_model(args, model)}
    append_result(args.results, {**result, "setting": setting, "seed": seed, **measured})


def settings(args: argparse.Namespace, model, benchmark: str, data: Dict[str, str]) -> Dict:
    """Everything that results depend on, for :class:`ItemLog`.

    Args:
        data: hashes of the files that are read
    """
    options = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}
    options["tokens_per_sample"] = model.decoder.window
    options["segment_overlap"] = model.decoder.overlap
    code = {"weights": hexadecimal(fingerprint(model.state_dict())), "code": code_hash()}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
    return {"benchmark": benchmark, **code, "data": data, "options": plain}


def numbers(option: str, text: str, least: int = 0) -> List[int]:
    """The numbers of an option that takes several with commas between them.

    Raises:
        ValueError: it has another form, or a number is less than *least* or there twice
    """
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"{option} ({text}) must be whole numbers with commas between them")
    values = [int(part) for part in parts]
    if min(values) < least:
        raise ValueError(f"{option} ({text}) must be at least {least} each")
    if len(set(values)) < len(values):
        raise ValueError(f"{option} ({text}) must name every number once")
    return values


def check_demonstrations(args: argparse.Namespace, lm: LongMem, in_memory: List[int]) -> None:
    """Raises ValueError where --memory-demonstrations has no memory to go to."""
    if lm.decoder.memory is None and any(in_memory):
        raise ValueError(
            f"--memory-demonstrations ({args.memory_demonstrations}) needs a model with a memory bank; "
            "0 for one without"
        )
