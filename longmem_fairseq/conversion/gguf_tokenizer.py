"""The tokenizer in a GGUF file's metadata, as the tokenizer.json it was made of."""

import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from longmem_fairseq.tokenizers.hf_tokenizer import SPACE_PIECE
from longmem_fairseq.utils.argument_error import ArgumentError

Metadata = Dict[str, Any]


NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # of llama.cpp's types of tokens
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE_DIGIT = CL100K.replace("{1,3}", "")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
TEKKEN = WORD + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class PreTokenizer(NamedTuple):
    """The cuts of a text before byte pairs are merged, as the tokenizers of these models make them.

    Args:
        steps: of ``tokenizers.pre_tokenizers``, a regular expression being a Split; ByteLevel comes
            after them
        gpt2: ByteLevel cuts as GPT-2 does
        nfc: the text is normalized first
        whole_words: a piece that is a token is not made of merges
        adds_bos: where the metadata does not say
    """

    steps: Tuple[str, ...] = ()
    gpt2: bool = True
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(("digits",))
_LLAMA3 = PreTokenizer((CL100K,), gpt2=False, whole_words=True, adds_bos=True)
_QWEN2 = PreTokenizer((ONE_DIGIT,), gpt2=False, nfc=True)
PRE_TOKENIZERS = {  # by tokenizer.ggml.pre
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "jais", "exaone4"), _GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((CL100K,), gpt2=False)),
    "command-r": PreTokenizer(("digits",), nfc=True),
    "olmo": PreTokenizer(nfc=True),
    "stablelm2": PreTokenizer((ONE_DIGIT,), gpt2=False),
    "falcon": PreTokenizer(("punctuation", "gpt2", "numbers", "[0-9][0-9][0-9]"), gpt2=False),
    "bloom": PreTokenizer((BLOOM,), gpt2=False),
    "tekken": PreTokenizer((TEKKEN,), gpt2=False, whole_words=True, adds_bos=True),
}


def tokenizer_json(metadata: Metadata) -> str:
    """The text of tokenizer.json.

    Raises:
        ImportError: the package ``tokenizers`` is not installed
        ValueError: there is no tokenizer, or one of another kind
    """
    kinds: Dict[str, Callable] = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in kinds:
        message = "tokenizer.ggml.model ({}) is not supported, only {}; or {no_tokenizer}"
        raise ArgumentError(message, kind, ", ".join(kinds))
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "a GGUF file's tokenizer needs the package tokenizers: pip install 'longmem-fairseq[hf]'"
        ) from None
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens"
        )
    tokenizer, adds_bos = kinds[kind](tokenizers, metadata, tokens, types)
    added = [
        tokenizers.AddedToken(token, special=type_ == CONTROL, normalized=False)
        for token, type_ in zip(tokens, types, strict=True)
        if type_ in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    _add_template(tokenizers, tokenizer, metadata, tokens, adds_bos)
    return tokenizer.to_str()


def _add_template(
    tokenizers, tokenizer, metadata: Metadata, tokens: List[str], adds_bos: bool
) -> None:
    """Adds the tokens that stand before and after every text."""
    ends = {}
    for name, default in (("bos", adds_bos), ("eos", False)):
        id_ = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default) and id_ is not None:
            ends[name] = (tokens[id_], id_)
    if ends:
        parts = [
            ends["bos"][0] if "bos" in ends else "",
            "$A",
            ends["eos"][0] if "eos" in ends else "",
        ]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            [part for part in parts if part], special_tokens=list(dict.fromkeys(ends.values()))
        )


def _byte_level(tokenizers, metadata: Metadata, tokens: List[str], types: List[int]):
    name = metadata.get("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        message = "tokenizer.ggml.pre ({}) is unknown, expected one of {}; or {no_tokenizer}"
        raise ArgumentError(message, name, ", ".join(PRE_TOKENIZERS))
    rule = PRE_TOKENIZERS[name]
    # llama.cpp fills an embedding without tokens with [PAD123]
    vocab = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.whole_words)
    )
    if rule.nfc:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    pre = tokenizers.pre_tokenizers
    known = {
        "digits": lambda: pre.Digits(individual_digits=True),
        "numbers": lambda: pre.Digits(individual_digits=False),
        "punctuation": lambda: pre.Punctuation("contiguous"),
        "gpt2": lambda: pre.ByteLevel(add_prefix_space=False),
    }
    steps = [
        known[step]() if step in known else pre.Split(tokenizers.Regex(step), "isolated")
        for step in rule.steps
    ]
    if "gpt2" not in rule.steps:
        steps.append(pre.ByteLevel(add_prefix_space=False, use_regex=rule.gpt2))
    tokenizer.pre_tokenizer = pre.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer, rule.adds_bos


def _sentencepiece(tokenizers, metadata: Metadata, tokens: List[str], types: List[int]):
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens"
        )
    vocab = {token: i for i, token in enumerate(tokens) if not _is_filling(token, types[i])}
    unk: Optional[int] = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab,
            merges=_merges(tokens, types, scores),
            unk_token=None if unk is None else tokens[unk],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = tokenizers.normalizers.Replace(" ", SPACE_PIECE)
    decoders = [tokenizers.decoders.Replace(SPACE_PIECE, " "), tokenizers.decoders.ByteFallback()]
    decoders.append(tokenizers.decoders.Fuse())
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        prefix = tokenizers.normalizers.Prepend(SPACE_PIECE)
        tokenizer.normalizer = tokenizers.normalizers.Sequence([prefix, spaces])
        decoders.append(tokenizers.decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = tokenizers.decoders.Sequence(decoders)
    return tokenizer, True


def _is_filling(token: str, type_: int) -> bool:
    """True for a token that llama.cpp made up for a row of the embedding without one."""
    return type_ == UNUSED and re.fullmatch(r"\[PAD\d+\]", token) is not None


def _merges(tokens: List[str], types: List[int], scores: List[float]) -> List[Tuple[str, str]]:
    """Pairs of pieces in the order in which SentencePiece joins them: by the score of the result.

    It stores no pairs: each split of a piece into two others is one, and for one score the shorter
    left part comes first, as transformers orders them.
    """
    normal = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    ranked = []
    for token, id_ in normal.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((-scores[id_], cut, (left, right)))
    ranked.sort(key=lambda entry: entry[:2])
    return [pair for _, _, pair in ranked]
