"""longmem_fairseq/tokenizers: nothing of a text is lost."""

import json

import pytest
import sentencepiece
from fairseq.data import Dictionary

from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from longmem_fairseq.tokenizers.sentencepiece_tokenizer import (
    SentencePieceTokenizer,
    training_sentences,
)
from tests.helpers.corpora import (
    ODD_TEXTS,
    PLAIN,
    items_of,
    prepare,
    read_lines,
    sentencepiece_of,
    write_gpt2_files,
    write_splits,
)


def test_sentencepiece_gives_back_every_text(odd_corpus):
    _, dest, _ = odd_corpus
    tokenizer = sentencepiece_of(dest)
    eos = tokenizer.dictionary.eos()
    documents = read_lines(dest / "test.documents.jsonl")
    items = items_of(dest, "test")
    assert [document["name"] for document in documents] == sorted(f"{n}.txt" for n in ODD_TEXTS)
    for document, item in zip(documents, items, strict=True):
        text = ODD_TEXTS[document["name"].removesuffix(".txt")]
        assert item[-1] == eos
        assert min(item[:-1], default=4) >= tokenizer.dictionary.nspecial
        assert tokenizer.decode(item) == text
        assert document["tokens"] == len(item)
        assert document["words"] == len(text.split())
        assert document["characters"] == len(text)
    assert items[sorted(ODD_TEXTS).index("empty")] == [eos]
    null = "a\0b"  # which a record may hold, but no file of text
    assert tokenizer.decode(tokenizer.indices(null)) == null
    # trained: a frequent word is one token, with the space before it
    assert len(tokenizer.encode("A cat sat on the mat")) == 6


def test_model_and_dictionary_can_be_reused(odd_corpus, tmp_path):
    _, dest, _ = odd_corpus
    source = write_splits(tmp_path / "source", {"a": "the cat"}, {"b": "a new word: zebra"})
    model, dictionary = str(dest / "sentencepiece.model"), str(dest / "dict.txt")
    prepare(source, tmp_path / "corpus", "--sentencepiece-model", model, "--dict", dictionary)
    for name in ("sentencepiece.model", "dict.txt"):
        assert (tmp_path / "corpus" / name).read_bytes() == (dest / name).read_bytes()
    tokenizer = sentencepiece_of(dest)
    (item,) = items_of(tmp_path / "corpus", "valid")
    assert tokenizer.decode(item) == "a new word: zebra"


def test_gpt2_bpe(tmp_path):
    folder = write_gpt2_files(tmp_path / "bpe")
    texts = {**ODD_TEXTS, "merges": "the then"}
    source = write_splits(tmp_path / "source", {"a": PLAIN}, texts)
    dest = tmp_path / "corpus"
    manifest = prepare(source, dest, "--tokenizer", "gpt2", "--gpt2-bpe-dir", str(folder))
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        assert (dest / name).read_bytes() == (folder / name).read_bytes()
    assert manifest["tokenizer"] == {"kind": "gpt2", "pieces": 258}
    assert manifest["vocab_size"] == 262
    tokenizer = GPT2Tokenizer(dest)  # the result is a complete --gpt2-bpe-dir
    items = items_of(dest, "valid")
    for name, item in zip(sorted(texts), items, strict=True):
        assert tokenizer.decode(item) == texts[name]
    assert tokenizer.decode(tokenizer.to_dictionary[tokenizer.encode("a\r\nb\r")]) == "a\r\nb\r"
    # by hand: "the" is id 257, at 4 + 0 in the reversed dictionary; " " and "n" are bytes
    encoder = json.loads((folder / "encoder.json").read_text())
    space, n = (4 + 257 - encoder[character] for character in ("\u0120", "n"))
    assert items[sorted(texts).index("merges")] == [4, space, 4, n, 2]


def test_training_sentences_lose_nothing_but_line_breaks():
    text = "ab " * 2000 + "\n" + "x" * 4500 + "\n\nshort"
    sentences = list(training_sentences(text))
    assert "".join(sentences) == text.replace("\n", "")
    assert max(map(len, sentences)) == 2000
    assert all(s.startswith(" ab") and s.endswith("ab") for s in sentences[1:3])


def test_pieces_named_like_fairseq_symbols_are_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PLAIN[:70]] * 20),
        model_prefix=str(tmp_path / "html"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=["</s>"],
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="no entry of its own for the piece '</s>'"):
        SentencePieceTokenizer((tmp_path / "html.model").read_bytes(), "html", Dictionary())
