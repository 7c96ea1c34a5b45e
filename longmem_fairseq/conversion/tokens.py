"""A checkpoint's tokenizer and special tokens, checked against config.json.

Configurations are often copied from another model. So the tokenizer decides which tokens are special,
and which of them stands before a document.
"""

import json
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds
from longmem_fairseq.tokenizers.hf_tokenizer import panics_as_errors, parsed_tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError, MissingFileError
from longmem_fairseq.utils.cli import counted
from longmem_fairseq.utils.refusal import refused
from longmem_fairseq.utils.text_files import parse_json, read_json, read_text

logger = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"


class TokenFiles(NamedTuple):
    """A checkpoint's description of its tokens, in the form of the files of the Hugging Face hub.

    name: of the tokenizer's file, for messages
    tokenizer: text of tokenizer.json, None for a model that is converted without
    tokenizer_config: tokenizer_config.json, with the chat template that transformers would take
    generation_config: generation_config.json
    """

    name: str
    tokenizer: Optional[str] = None
    tokenizer_config: Dict[str, Any] = {}
    generation_config: Dict[str, Any] = {}


def read_token_files(folder: Path, with_tokenizer: bool = True) -> TokenFiles:
    """The files of a model's folder that describe its tokens.

    Raises:
        FileNotFoundError: there is no tokenizer
        ValueError: a file is damaged
    """
    path = folder / "tokenizer.json"
    tokenizer, settings = None, {}
    if with_tokenizer:
        tokenizer = read_text(path) if path.is_file() else older_tokenizer(folder)
        # the older of both files first, which the newer one overrules
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            settings.update(read_json(folder / name) if (folder / name).is_file() else {})
        if (folder / TEMPLATE_FILE).is_file():
            settings["chat_template"] = read_text(folder / TEMPLATE_FILE)
    generation = folder / "generation_config.json"
    generation_config = read_json(generation) if generation.is_file() else {}
    return TokenFiles(str(path), tokenizer, settings, generation_config)


def older_tokenizer(folder: Path) -> str:
    """tokenizer.json, made by transformers from the files of older tokenizers."""
    older = ("tokenizer.model", "vocab.json", "merges.txt")
    if not any((folder / name).is_file() for name in older):
        message = "{} has no tokenizer.json: {no_tokenizer} converts the weights alone"
        raise MissingFileError(message, folder)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ArgumentError(
            "{} has an older tokenizer without tokenizer.json: to read it, pip install transformers; "
            "or {no_tokenizer}",
            folder,
        ) from None
    options = {"trust_remote_code": False, "local_files_only": True}  # else it may ask, or download
    try:
        with panics_as_errors():
            return AutoTokenizer.from_pretrained(str(folder), **options).backend_tokenizer.to_str()
    except Exception as error:  # each of the many tokenizers of transformers has its own
        message = "{}: transformers cannot read its tokenizer ({}); or {no_tokenizer}"
        raise ArgumentError(message, folder, error) from error


def without_impossible_tokens(files: TokenFiles, vocab_size: int) -> TokenFiles:
    """Without added tokens above the embedding: the model can neither read nor produce them.

    Raises:
        ValueError: the tokenizer is damaged, or ordinary tokens have ids above the embedding
    """
    if files.tokenizer is None:
        return files
    content, vocab = _parsed(files)
    added = content["added_tokens"]
    impossible = [token["content"] for token in added if token["id"] >= vocab_size]
    last = max((id_ for token, id_ in vocab.items() if token not in impossible), default=-1)
    if last >= vocab_size:
        raise ArgumentError(
            "{} has ids up to {}, and the model an embedding of {} rows: give the tokenizer it was "
            "trained with, or {no_tokenizer}",
            *(files.name, last, vocab_size),
        )
    if not impossible:
        return files
    content["added_tokens"] = [token for token in added if token["id"] < vocab_size]
    if isinstance(content["model"]["vocab"], dict):
        for token in impossible:
            content["model"]["vocab"].pop(token, None)
    logger.warning(
        f"{files.name}: {counted(len(impossible), 'added token')} left out, above the embedding's "
        f"{vocab_size} rows ({', '.join(map(repr, impossible[:5]))})"
    )
    return files._replace(tokenizer=json.dumps(content, ensure_ascii=False))


def checkpoint_ids(config: Dict[str, Any], files: TokenFiles) -> CheckpointIds:
    """The table of ids, with all that generation needs to know of special tokens.

    Args:
        config: config.json, with its vocab_size
        files: see :func:`without_impossible_tokens`

    Raises:
        ValueError: the model has no end of text, or its tokenizer begins texts in another way than
            with one token
    """
    size = config["vocab_size"]
    given = [*_ids(config, "eos", size), *_ids(files.generation_config, "eos", size)]
    ends = list(dict.fromkeys(given))
    if files.tokenizer is None:
        specials = _each_once(eos=ends, bos=_ids(config, "bos", size))
        return CheckpointIds(size, _with_end(specials, ends), ends=ends)
    content, vocab = _parsed(files)
    special = {
        token["content"]: token["id"] for token in content["added_tokens"] if token["special"]
    }
    named = _named_tokens(files.tokenizer_config)

    def special_ones(ids: List[int]) -> List[int]:
        return [id_ for id_ in ids if id_ in special.values()]

    # the tokenizer's end of text, where config.json names none, or an ordinary token
    own_end = [special[named["eos_token"]]] if named.get("eos_token") in special else []
    begins = _beginning(files, size)
    specials = _each_once(
        eos=special_ones(ends) or own_end,
        bos=begins or special_ones(_ids(config, "bos", size)),
        pad=special_ones(_ids(config, "pad", size)),
        unk=special_ones([vocab.get(content["model"].get("unk_token"))]),
    )
    specials = _with_end(specials, ends)
    start = "bos" if begins and begins != [specials["eos"]] else "eos"
    template = _template(files.tokenizer_config)
    return CheckpointIds(size, specials, start, ends, template, named)


def _ids(config: Dict[str, Any], name: str, vocab_size: int) -> List[int]:
    """The ids of bos, eos or pad in a configuration, as far as they are ids of the model."""
    given = config.get(f"{name}_token_id")
    given = given if isinstance(given, list) else [given]
    return [id_ for id_ in given if type(id_) is int and 0 <= id_ < vocab_size]


def _each_once(**candidates: List[int]) -> Dict[str, int]:
    """The first id of each name, without those that an earlier name has."""
    found: Dict[str, int] = {}
    for name, ids in candidates.items():
        if ids and ids[0] not in found.values():
            found[name] = ids[0]
    return found


def _with_end(specials: Dict[str, int], ends: List[int]) -> Dict[str, int]:
    if "eos" in specials:
        return specials
    if ends:
        raise ValueError(
            f"config.json: eos_token_id ({ends[0]}) is no special token of the tokenizer, and "
            "documents begin and end with one: correct it, or give the tokenizer it was trained with"
        )
    raise ValueError("config.json: eos_token_id is missing: documents begin and end with it")


def _beginning(files: TokenFiles, vocab_size: int) -> List[int]:
    """The id that the tokenizer puts before a text, if it does.

    tokenizer.json has the last word, as in transformers 5, which ignores the add_bos_token of
    tokenizer_config.json beside it.
    """
    encoding = parsed_tokenizer(Path(files.name), files.tokenizer).encode("a")
    first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
    before = encoding.ids[:first]
    if len(before) > 1 or any(id_ >= vocab_size for id_ in before):
        raise ArgumentError(
            "{} puts the ids {} before a text, expected one of the embedding's {} rows: {no_tokenizer} "
            "converts the weights alone",
            *(files.name, before, vocab_size),
        )
    return before


def _parsed(files: TokenFiles) -> Tuple[Dict[str, Any], Dict[str, int]]:
    """Content of tokenizer.json, and the ids of the model's own pieces.

    Raises:
        ValueError: it is not a tokenizer
    """
    with refused(f"{files.name} is not a tokenizer"):
        content = parse_json(files.tokenizer)
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):  # of a Unigram model: pieces and scores
            vocab = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
        added = [
            (token["content"], token["id"], token["special"]) for token in content["added_tokens"]
        ]
        if not all(type(id_) is int for id_ in [*vocab.values(), *(id_ for _, id_, _ in added)]):
            raise ValueError("ids must be whole numbers")
    return content, vocab


def _named_tokens(settings: Dict[str, Any]) -> Dict[str, str]:
    """Special tokens by name, as in ``{"eos_token": "</s>"}``."""
    named = {}
    for name, token in settings.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            named[name] = token
    return named


def _template(settings: Dict[str, Any]) -> Optional[str]:
    """The chat template; of several by name, the default."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        templates = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = templates[0].get("template") if templates else None
    return template if isinstance(template, str) else None
