"""Tokenizers out of a GGUF file's metadata give the tokens of those that they were made of."""

import io
import json

import pytest
import sentencepiece
from fairseq.data import Dictionary

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
pytest.importorskip("gguf", reason="needs the extra hf")

from gguf import TokenType  # noqa: E402
from tokenizers import Tokenizer, decoders, models  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence  # noqa: E402
from tokenizers.trainers import BpeTrainer  # noqa: E402

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.conversion.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_json  # noqa: E402
from longmem_fairseq.tokenizers import load_tokenizer  # noqa: E402
from tests.helpers.gguf_models import write_gguf  # noqa: E402
from tests.helpers.hf_models import make_model  # noqa: E402
from tests.helpers.hf_tokenizers import PAGE, make_tokenizer  # noqa: E402

TEXTS = [
    PAGE,
    "in  1859   and\t\t12,345.678 + 1e10\n\n\n  x",
    " a leading space",
    "👩‍👩‍👧‍👦 🇩🇪 ❤️ ok 👍🏽 今天天气很好。１２３ مرحبا بالعالم ١٢٣ cafe\u0301 ﬁ\u00a0\u2003x",
    "It's we'LL I'M \r\n\r\n    return {'a': x ** 2}  # \ud7ff",
    " " * 40 + "the" + "\n" * 9,
    "",
]


def make_smollm():
    """With the pre-tokenizer of SmolLM's own tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["in  1859   and  12 345 the cat sat on the mat,  ", "return  x + y\n\n    x"] * 20
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def byte_level_metadata(tokenizer, pre):
    """As llama.cpp's converter writes it."""
    content = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    tokens, types = [f"[PAD{i}]" for i in range(size + 2)], [TokenType.UNUSED] * (size + 2)
    for token, id_ in content["model"]["vocab"].items():
        tokens[id_], types[id_] = token, TokenType.NORMAL
    for token in content["added_tokens"]:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
    }


def own(metadata):
    tokenizer = Tokenizer.from_str(tokenizer_json(metadata))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize(
    "make, pre",
    [
        (make_smollm, "smollm"),
        (lambda: make_tokenizer("gpt2"), "gpt-2"),
        (lambda: make_tokenizer("neox"), "olmo"),
    ],
)
def test_byte_level(make, pre):
    original = make()
    original.encode_special_tokens = True
    found = own(byte_level_metadata(original, pre))
    for text in TEXTS:
        assert found.encode(text).ids == original.encode(text, add_special_tokens=False).ids
        assert found.decode(found.encode(text).ids, False) == original.decode(
            original.encode(text).ids, False
        )
    found.encode_special_tokens = original.encode_special_tokens = False
    for token in original.get_added_tokens_decoder().values():
        assert found.encode(token.content).ids == original.encode(token.content).ids


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_the_text(pre):
    found = own(byte_level_metadata(make_tokenizer("gpt2"), pre))
    for text in TEXTS:
        normal = text if found.normalizer is None else found.normalizer.normalize_str(text)
        assert found.decode(found.encode(text).ids, False) == normal


def test_llama_3_takes_whole_words_and_begins_texts():
    metadata = byte_level_metadata(make_tokenizer("llama3"), "llama-bpe")
    metadata["tokenizer.ggml.bos_token_id"] = 1
    metadata["tokenizer.ggml.tokens"].append("catmat")  # which no merges make
    metadata["tokenizer.ggml.token_type"].append(1)
    found = own(metadata)
    last = len(metadata["tokenizer.ggml.tokens"]) - 1
    assert found.encode("catmat").ids == [1, last]
    assert found.encode("").ids == [1]
    metadata["tokenizer.ggml.add_bos_token"] = False
    assert own(metadata).encode("catmat").ids == [last]


def train_sentencepiece(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            ["the cat sat on  the mat, 12 345", "in the best of all worlds"] * 30
        ),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(processor, adds_space):
    tokens, types = [], []
    for id_ in range(processor.vocab_size()):
        kind = TokenType.NORMAL
        token = processor.id_to_piece(id_)
        if processor.is_unknown(id_):
            kind = TokenType.UNKNOWN
        elif processor.is_control(id_):
            kind = TokenType.CONTROL
        elif processor.is_byte(id_):
            kind = TokenType.BYTE
        elif id_ in (3, 4, 5) and "\u2581\u2581" in token:  # which llama.cpp writes with spaces
            kind, token = TokenType.USER_DEFINED, token.replace("\u2581", " ")
        tokens.append(token)
        types.append(int(kind))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [processor.get_score(id_) for id_ in range(len(tokens))],
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.add_space_prefix": adds_space,
    }


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece(adds_space):
    options = {} if adds_space else {"user_defined_symbols": ["\u2581\u2581", "\u2581\u2581\u2581"]}
    original = train_sentencepiece(add_dummy_prefix=adds_space, **options)
    found = own(sentencepiece_metadata(original, adds_space))
    for text in TEXTS[:5]:
        ids = found.encode(text, add_special_tokens=False).ids
        assert ids == original.encode(text)
        assert found.decode(ids) == original.decode(ids)
    assert found.encode("").ids == [original.bos_id()]


def test_the_tokenizer_of_a_file(tmp_path):
    original = make_smollm()
    metadata = byte_level_metadata(original, "smollm")
    size = len(metadata["tokenizer.ggml.tokens"])
    theirs = make_model("llama", tmp_path / "hf", vocab_size=size, bos_token_id=1, eos_token_id=0)
    pairs = [(key.removeprefix("tokenizer."), value) for key, value in metadata.items()]
    write_gguf(theirs, tmp_path / "model.gguf", pairs)
    arguments = ["--model", str(tmp_path / "model.gguf"), "--dest", str(tmp_path / "ours")]
    convert_checkpoint(arguments)
    tokenizer = load_tokenizer(tmp_path / "ours")
    original.encode_special_tokens = True
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == original.encode(text).ids
    dictionary = Dictionary.load(str(tmp_path / "ours" / "dict.txt"))
    assert len(dictionary) == size + 2  # pad and unk, which it has not
