"""Make a backbone of a pretrained language model, with its dictionary and tokenizer.

Example:
    python preprocess/convert_checkpoint.py --model Qwen/Qwen2.5-0.5B --dest models/qwen
    python preprocess/prepare_corpus.py --source books --dest data/books --vocabulary models/qwen

--model is a folder of the Hugging Face hub, a GGUF file of llama.cpp (dequantized to float32), a folder
that holds one, or else the name of a repository on the hub, which is downloaded.
Writes checkpoint.pt, dict.txt, ids.json (the model's ids and their dictionary indices) and
tokenizer.json into --dest, all or nothing. Nothing that comes with a model is executed.
"""

import argparse
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence

import torch
from omegaconf import OmegaConf

from longmem_fairseq.conversion.estimate import estimate
from longmem_fairseq.conversion.families import FAMILIES, Family, unknown
from longmem_fairseq.conversion.files import check_hashes, whole_number
from longmem_fairseq.conversion.model_folder import check_fits, save_model
from longmem_fairseq.conversion.search_mean import add_search_mean
from longmem_fairseq.conversion.source import Checkpoint, open_checkpoint
from longmem_fairseq.conversion.tokens import (
    checkpoint_ids,
    read_token_files,
    without_impossible_tokens,
)
from longmem_fairseq.conversion.weights import convert_weights
from longmem_fairseq.models.backbone import COMPUTE_DTYPES, BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.decoder_config import MOST_CHANNELS, MOST_LAYERS
from longmem_fairseq.models.memory_config import checked_search_layer, default_search_layer
from longmem_fairseq.tokenizers import load_tokenizer
from longmem_fairseq.tokenizers.checkpoint_ids import SPECIALS, CheckpointIds
from longmem_fairseq.utils.cli import check_positive, documented_parser, run
from longmem_fairseq.utils.output_folder import check_new, replaced_folder
from longmem_fairseq.utils.text_files import read_json

WINDOW = 1024
MOST_IDS = 2**20


def get_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="folder with config.json and weights, GGUF file, or hub id")
    add("--dest", type=Path, help="new or empty folder to write")
    add(
        "--dtype",
        choices=tuple(COMPUTE_DTYPES),
        help="of the matrices written (default: as they are, float32 of a GGUF file)",
    )
    add(
        "--search-tokens",
        type=int,
        default=2048,
        help="tokens of text whose mean hidden state is kept for --memory-search hidden; 0: none, and "
        "the backbone alone can have no memory (default: 2048)",
    )
    add(
        "--search-layer",
        type=int,
        help="backbone layer after which these are taken, and compared (default: 19 twentieths of the "
        "depth, best for text; two thirds are better for classification by demonstrations)",
    )
    add(
        "--tokens-per-sample", type=int, help="local window (default: 1,024, or what the model has)"
    )
    add("--no-tokenizer", action="store_true", help="convert the weights alone")
    add("--sha256", type=Path, help="list of sha256sum, to compare the files of weights with")
    add("--dry-run", action="store_true", help="print sizes from config.json, and write nothing")
    return parser


def read_config(folder: Path) -> Dict[str, Any]:
    """config.json of a known family.

    Raises:
        FileNotFoundError: there is none
        ValueError: of another family, or of quantized weights
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), dict):
        names = [f"{name}_token_id" for name in SPECIALS if f"{name}_token_id" in config]
        specials = {name: config[name] for name in names}
        config = {**config["text_config"], **specials, "model_type": "gemma3_text"}
    config.setdefault("vocab_size", 262208)  # which Gemma 3 leaves out
    if str(config.get("model_type")) not in FAMILIES:
        raise ValueError(f"{path}: {unknown(config)}")
    if config.get("quantization_config"):
        raise ValueError(f"{path}: its weights are quantized: give the model as it was before that")
    whole_number(config, "vocab_size", MOST_IDS)
    for name in ("num_hidden_layers", "num_layers", "n_layer"):
        if name in config:
            whole_number(config, name, MOST_LAYERS)
    return config


@contextmanager
def errors_of_config() -> Iterator[None]:
    """Around the reading of a stranger's config.json: whatever goes wrong there is a ValueError."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"config.json: {error.args[0]} is missing") from None
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # an option of another type fails wherever it is used first
        raise ValueError(f"config.json: {error}") from None


def backbone_config(
    family: Family, config: Dict[str, Any], ids: CheckpointIds
) -> LongMemBackboneConfig:
    """The configuration of a backbone.

    Raises:
        ValueError: config.json lacks an option, or has one of another kind
    """
    with errors_of_config():
        options = {"no_head_bias": len(ids.absent) == 0, **family.options(config)}
        cfg = LongMemBackboneConfig(
            _name="longmem_backbone",
            tied_head=config.get("tie_word_embeddings", family.tied),
            **options,
        )
        cfg = OmegaConf.to_object(OmegaConf.structured(cfg))  # which checks the types
    numbers = {name: value for name, value in vars(cfg).items() if type(value) is int}
    for name in numbers:
        if numbers[name] != 0:  # which is the default of many
            whole_number(numbers, name, MOST_CHANNELS)
    return cfg


def convert(args: argparse.Namespace) -> None:
    """Writes --dest, complete or not at all.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of another kind
    """
    dest = args.dest
    if not args.dry_run:
        if dest is None:
            raise ValueError("--dest is missing: a new or empty folder to write")
        check_new(dest)
    check_positive(args, "tokens_per_sample")
    if args.search_layer is not None and (args.no_tokenizer or args.search_tokens < 1):
        raise ValueError(
            f"--search-layer ({args.search_layer}) is of the hidden states of a text: leave out "
            "--no-tokenizer, and --search-tokens 0"
        )
    with_tokenizer = not (args.no_tokenizer or args.dry_run)
    with open_checkpoint(args.model, args.dry_run, with_tokenizer) as checkpoint:
        convert_checkpoint(args, checkpoint)


def convert_checkpoint(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Writes --dest, or prints what it would need."""
    dest, folder = args.dest, checkpoint.folder
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]
    files = read_token_files(folder, not (args.no_tokenizer or args.dry_run))
    files = without_impossible_tokens(files, config["vocab_size"])
    ids = checkpoint_ids(config, files)
    cfg = backbone_config(family, config, ids)
    search_layer = default_search_layer(cfg.num_layers)
    if args.search_layer is not None:
        search_layer = checked_search_layer(args.search_layer, cfg.num_layers)
    most = cfg.max_positions or config.get("max_position_embeddings")
    window = args.tokens_per_sample or (min(WINDOW, most) if type(most) is int else WINDOW)
    if args.dry_run:
        with errors_of_config():
            print("\n".join(estimate(cfg, ids.dictionary(), window)))
        return
    if args.sha256 is not None:
        check_hashes(args.sha256, checkpoint.files())
    with errors_of_config(), torch.device("meta"):
        decoder = BackboneDecoder(OmegaConf.structured(cfg), ids.dictionary(), window)
    weights, names = convert_weights(
        checkpoint, family, config, cfg, ids, COMPUTE_DTYPES.get(args.dtype)
    )
    check_fits(checkpoint.source, weights, decoder, names)
    with replaced_folder(dest) as new:
        text = "".join(f"{symbol} 1\n" for symbol in ids.symbols)
        save_model(new, cfg, weights, window, text)
        ids.save(new)
        if files.tokenizer is not None:
            (new / "tokenizer.json").write_text(files.tokenizer, encoding="utf-8")
        if files.tokenizer is not None and args.search_tokens > 0:
            tokenizer = load_tokenizer(new)
            add_search_mean(cfg, weights, tokenizer, window, args.search_tokens, search_layer)
            save_model(new, cfg, weights, window, text)
    print(dest)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the command line *argv* (default: that of the process)."""
    convert(get_parser().parse_args(argv))


def cli() -> None:
    """The console script longmem-convert."""
    run(main)
