"""Small tokenizers of the kinds that Hugging Face models come with, trained on a page."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

PAGE = (
    "It was the best of times,  it was the worst of times; 1859, 42,195 km.\n\n"
    "\tdef f(x):\n        return {'a': x ** 2}  # naïve café, Straße, 東京 и Москва 🙂\r\n"
    "$\\alpha_1 \\le \\frac{n}{2}$ <b>bold</b> </s> <0x41> \u00a0\u2003 e\u0301 ﬁn\u0000 "
)
SPECIALS = ["<unk>", "<s>", "</s>"]
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
)
METASPACE_DECODER = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
)
KINDS = ["gpt2", "neox", "llama3", "llama2", "mistral", "gemma"]


def make_tokenizer(kind: str, vocab_size: int = 400) -> Tokenizer:
    is_byte_level = kind in ("gpt2", "neox", "llama3")
    tokenizer = Tokenizer(
        models.BPE() if is_byte_level else models.BPE(byte_fallback=True, unk_token="<unk>")
    )
    alphabet = [] if not is_byte_level else pre_tokenizers.ByteLevel.alphabet()
    extra = [] if is_byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    if is_byte_level:
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.decoder = METASPACE_DECODER
    if kind == "neox":
        tokenizer.normalizer = normalizers.NFC()
    elif kind == "llama3":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind == "llama2":
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    elif kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = BpeTrainer(
        vocab_size=vocab_size + len(extra),
        special_tokens=SPECIALS + extra,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words = ["the cat sat on the mat, ", "return x + y\n", "in the best of all worlds "] * 20
    tokenizer.train_from_iterator(words, trainer)
    if extra:
        tokenizer = _bytes_as_plain_pieces(tokenizer)
    if kind == "neox":
        tokenizer.add_tokens([AddedToken(" " * 8, normalized=False)])
    return tokenizer


def _bytes_as_plain_pieces(tokenizer: Tokenizer) -> Tokenizer:
    # the trainer knows byte pieces only as special tokens, which a text could spell out
    import json

    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIALS]
    return Tokenizer.from_str(json.dumps(content))
