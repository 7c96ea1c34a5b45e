"""Make a backbone of a Hugging Face language model, with its dictionary and tokenizer.

Example:
    python preprocess/convert_checkpoint.py --model Qwen/Qwen2.5-0.5B --dest models/qwen
    python preprocess/prepare_corpus.py --source books --dest data/books --vocabulary models/qwen

--model is a folder, or else the name of a repository on the Hugging Face hub, which is downloaded.
Writes checkpoint.pt, dict.txt, ids.json (the model's ids and their dictionary indices) and
tokenizer.json into --dest, all or nothing. Nothing that comes with a model is executed.
"""

import argparse
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from longmem_fairseq.conversion.estimate import estimate
from longmem_fairseq.conversion.families import FAMILIES, Family
from longmem_fairseq.conversion.files import (
    check_hashes,
    model_folder,
    tensors,
    weight_files,
    whole_number,
)
from longmem_fairseq.conversion.model_folder import check_fits, save_model
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackboneConfig
from longmem_fairseq.models.decoder_config import MOST_CHANNELS, MOST_LAYERS, key_value_sizes
from longmem_fairseq.tokenizers.checkpoint_ids import SPECIALS, CheckpointIds
from longmem_fairseq.tokenizers.hf_tokenizer import panics_as_errors, parsed_tokenizer
from longmem_fairseq.utils.cli import check_positive, run
from longmem_fairseq.utils.optional_packages import import_transformers
from longmem_fairseq.utils.output_folder import check_new, replaced_folder
from longmem_fairseq.utils.text_files import parse_json, read_json, read_text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WINDOW = 1024
MOST_IDS = 2**20
_MISFITS = (RuntimeError, TypeError, AttributeError, ArithmeticError, OmegaConfBaseException)
ROWS_OF_IDS = {"embed_tokens.weight", "output_projection.weight"}
# The head's bias of fairseq's special symbols that the model does not have: they are never predicted.
ABSENT_BIAS = -1e4


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder with config.json and weights, or a hub id")
    add("--dest", type=Path, help="new or empty folder to write")
    add("--dtype", choices=tuple(DTYPES), help="of the matrices written (default: as they are)")
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
        ValueError: of another family, or of quantised weights
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("model_type") == "gemma3" and isinstance(config.get("text_config"), dict):
        names = [f"{name}_token_id" for name in SPECIALS if f"{name}_token_id" in config]
        specials = {name: config[name] for name in names}
        config = {**specials, **config["text_config"], "model_type": "gemma3_text"}
    config.setdefault("vocab_size", 262208)  # which Gemma 3 leaves out
    if str(config.get("model_type")) not in FAMILIES:
        raise ValueError(
            f"{path}: model_type {config.get('model_type')} is unknown, expected one of "
            f"{', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise ValueError(f"{path}: its weights are quantised: give the model as it was before that")
    whole_number(config, "vocab_size", MOST_IDS)
    for name in ("num_hidden_layers", "n_layer"):
        if name in config:
            whole_number(config, name, MOST_LAYERS)
    return config


def special_ids(config: Dict[str, Any], unk: Optional[int]) -> Dict[str, int]:
    """The model's ids of fairseq's special symbols, each for one of them, the end of text first.

    Raises:
        ValueError: it has no end of text
    """
    found: Dict[str, int] = {}
    for name in ("eos", "bos", "pad", "unk"):
        id_ = unk if name == "unk" else config.get(f"{name}_token_id")
        id_ = id_[0] if isinstance(id_, list) and id_ else id_
        if isinstance(id_, int) and 0 <= id_ < config["vocab_size"] and id_ not in found.values():
            found[name] = id_
    if "eos" not in found:
        raise ValueError("config.json: eos_token_id is missing: documents begin and end with it")
    return found


@contextmanager
def errors_of_config() -> Iterator[None]:
    """Around what is made of config.json: whatever goes wrong there is a ValueError."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"config.json: {error.args[0]} is missing") from None
    except _MISFITS as error:
        raise ValueError(f"config.json: {error}") from None


def backbone_config(
    family: Family, config: Dict[str, Any], ids: CheckpointIds
) -> LongMemBackboneConfig:
    """
    Raises:
        ValueError: config.json lacks an option, or has one of another kind
    """
    with errors_of_config():
        cfg = LongMemBackboneConfig(
            _name="longmem_backbone",
            tied_head=config.get("tie_word_embeddings", family.tied),
            no_head_bias=len(ids.absent) == 0,
            **family.options(config),
        )
        cfg = OmegaConf.to_object(OmegaConf.structured(cfg))  # which checks the types
    numbers = {name: value for name, value in vars(cfg).items() if type(value) is int}
    for name in numbers:
        if numbers[name] != 0:  # which is the default of many
            whole_number(numbers, name, MOST_CHANNELS)
    return cfg


def separated(
    name: str, tensor: Tensor, cfg: LongMemBackboneConfig
) -> Iterator[Tuple[str, Tensor]]:
    """Queries, keys and values apart, where *name* is all three; see :class:`Family`."""
    if ".qkv." not in name:
        yield name, tensor
        return
    heads = cfg.num_attention_heads
    kv_heads, head_dim = key_value_sizes(cfg)
    rows = (kv_heads, heads // kv_heads + 2, head_dim)
    if tensor.size(0) != rows[0] * rows[1] * rows[2]:
        raise ValueError(f"{name} has {tensor.size(0)} rows, expected {' x '.join(map(str, rows))}")
    grouped = tensor.unflatten(0, rows)
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    for projection, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
        yield name.replace("qkv", projection), part.flatten(0, 2)


def dictionary_rows(tensor: Tensor, ids: CheckpointIds) -> Tensor:
    """The rows of an embedding in the order of the dictionary; zeros for symbols the model lacks."""
    if tensor.size(0) != ids.num_ids:
        raise ValueError(
            f"the embedding has {tensor.size(0)} rows, and config.json a vocab_size of {ids.num_ids}"
        )
    rows = tensor.new_zeros(len(ids.to_checkpoint), tensor.size(1))
    rows[torch.from_numpy(ids.to_dictionary).long()] = tensor
    return rows


def convert_weights(
    folder: Path,
    family: Family,
    config: Dict[str, Any],
    cfg: LongMemBackboneConfig,
    ids: CheckpointIds,
    dtype: Optional[torch.dtype],
) -> Dict[str, Tensor]:
    """The state dict of our decoder; vectors (norms, biases) are float32 in any case."""
    weights: Dict[str, Tensor] = {}
    for path, names in weight_files(folder).items():
        for name, tensor in tensors(path, names):
            ours = family.our_name(name)
            if not ours or (cfg.tied_head and ours.startswith("output_projection.")):
                continue
            try:
                changed = family.change(ours, tensor, config)
                parts = dict(separated(ours, changed, cfg))
                for name_of_rows in ROWS_OF_IDS & parts.keys():
                    parts[name_of_rows] = dictionary_rows(parts[name_of_rows], ids)
            except (RuntimeError, LookupError, TypeError, ArithmeticError) as error:
                raise ValueError(
                    f"{path}: {name} of shape {tuple(tensor.shape)} does not fit config.json ({error})"
                ) from None
            for part_name, part in parts.items():
                stored = torch.float32 if part.dim() < 2 else dtype or part.dtype
                # a copy: what is saved with a view is all that it is a view of
                weights[part_name] = part.to(stored, copy=True).contiguous()
    if cfg.tied_head and "embed_tokens.weight" in weights:
        weights["output_projection.weight"] = weights["embed_tokens.weight"]
    if len(ids.absent) > 0:
        bias = torch.zeros(len(ids.to_checkpoint))
        bias[torch.from_numpy(ids.absent)] = ABSENT_BIAS
        weights["output_projection.bias"] = bias
    return weights


def read_tokenizer(folder: Path, config: Dict[str, Any]) -> Tuple[str, Optional[int]]:
    """The text of tokenizer.json, and the id of its unknown token.

    Raises:
        FileNotFoundError: there is no tokenizer
        ValueError: it is damaged, or has more tokens than the model
    """
    path = folder / "tokenizer.json"
    text = read_text(path) if path.is_file() else older_tokenizer(folder)
    try:
        content = parse_json(text)
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):  # of a Unigram model: pieces and scores
            vocab = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
        last = max([*vocab.values(), *(token["id"] for token in content["added_tokens"])])
        unk = vocab.get(content["model"].get("unk_token"))
        too_large = last >= config["vocab_size"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a tokenizer") from None
    if too_large:
        raise ValueError(
            f"{path} has ids up to {last}, and the model an embedding of {config['vocab_size']} rows: "
            "give the tokenizer it was trained with, or --no-tokenizer"
        )
    return text, unk


def document_start(folder: Path, tokenizer: Optional[str], specials: Dict[str, int]) -> str:
    """What stands before a document: bos, where the model's own tokenizer puts it before a text.

    In some models (Gemma above all) much depends on it. tokenizer.json has the last word, as in
    transformers 5, which ignores the add_bos_token of tokenizer_config.json beside it.
    """
    if tokenizer is None or "bos" not in specials:
        return "eos"
    first = parsed_tokenizer(folder / "tokenizer.json", tokenizer).encode("").ids[:1]
    return "bos" if first == [specials["bos"]] else "eos"


def older_tokenizer(folder: Path) -> str:
    """tokenizer.json, made by transformers from the files of older tokenizers."""
    older = ("tokenizer.model", "vocab.json", "merges.txt")
    if not any((folder / name).is_file() for name in older):
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: --no-tokenizer converts the weights alone"
        )
    try:
        transformers = import_transformers()
    except ImportError:
        raise ValueError(
            f"{folder} has an older tokenizer without tokenizer.json: to read it, pip install "
            "transformers; or --no-tokenizer"
        ) from None
    options = {"trust_remote_code": False, "local_files_only": True}  # else it may ask, or download
    try:
        with panics_as_errors():
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **options)
            return tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever the many tokenizers of transformers raise
        raise ValueError(
            f"{folder}: transformers cannot read its tokenizer ({error}); or --no-tokenizer"
        ) from error


def convert(args: argparse.Namespace) -> None:
    """Writes --dest, complete or not at all.

    Raises:
        FileNotFoundError, ValueError: in one line what is wrong
    """
    dest = args.dest
    if not args.dry_run:
        if dest is None:
            raise ValueError("--dest is missing: a new or empty folder to write")
        check_new(dest)
    check_positive(args, "tokens_per_sample")
    folder = model_folder(args.model, args.dry_run)
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]
    tokenizer, unk = None, None
    if not (args.no_tokenizer or args.dry_run):
        tokenizer, unk = read_tokenizer(folder, config)
    specials = special_ids(config, unk)
    start = document_start(folder, tokenizer, specials)
    ids = CheckpointIds(config["vocab_size"], specials, start)
    cfg = backbone_config(family, config, ids)
    most = cfg.max_positions or config.get("max_position_embeddings")
    window = args.tokens_per_sample or (min(WINDOW, most) if type(most) is int else WINDOW)
    if args.dry_run:
        with errors_of_config():
            print("\n".join(estimate(cfg, ids.dictionary(), window)))
        return
    if args.sha256 is not None:
        check_hashes(folder, args.sha256, list(weight_files(folder)))
    with errors_of_config(), torch.device("meta"):
        decoder = BackboneDecoder(OmegaConf.structured(cfg), ids.dictionary(), window)
    weights = convert_weights(folder, family, config, cfg, ids, DTYPES.get(args.dtype))
    check_fits(folder, weights, decoder)
    with replaced_folder(dest) as new:
        text = "".join(f"{symbol} 1\n" for symbol in ids.symbols)
        save_model(new, cfg, weights, window, text)
        ids.save(new)
        if tokenizer is not None:
            (new / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    print(dest)


def main(argv: Optional[Sequence[str]] = None) -> None:
    convert(get_parser().parse_args(argv))


def cli() -> None:
    run(main)
