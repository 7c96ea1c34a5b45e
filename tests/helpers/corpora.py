"""Small corpora, and what preprocess/prepare_corpus.py makes of them."""

import json

from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.data.indexed_dataset import MMapIndexedDataset

from longmem_fairseq.commands.prepare import main as prepare_corpus
from longmem_fairseq.tokenizers import load_dictionary
from longmem_fairseq.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

VOCAB = "400"
PLAIN = "The cat sat on the mat, and the dog sat on the log.\nThen they ran home.\n" * 40
ODD_TEXTS = {
    "whitespace": "  two leading, double  inside,\t\ttabs \n\n\n  indented\nand trailing \n ",
    "no-break": "a\u00a0b\u2003c\u2028d\x0be\x0cf\x85g\x1ch",
    "unseen": "caf\u00e9 \u4e2d\u6587 \U0001f600 e\u0301 \ufb01 \uff21 \ufeff",
    "sentencepiece's space": "\u2581a \u2581\u2581 b\u2581",
    "symbols": "<s> </s> <pad> <unk> <0x41> <0x0A> madeupword0000 ▁the",
    "space": " ",
    "newline": "\n",
    "one letter": "x",
    "empty": "",
}


def prepare(source, dest, *options):
    prepare_corpus(["--source", str(source), "--dest", str(dest), "--vocab-size", VOCAB, *options])
    return json.loads((dest / "manifest.json").read_text())


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items_of(dest, split):
    dataset = MMapIndexedDataset(str(dest / split))
    return [dataset[i].tolist() for i in range(len(dataset))]


def sentencepiece_of(dest):
    model = (dest / "sentencepiece.model").read_bytes()
    return SentencePieceTokenizer(model, "model", load_dictionary(dest / "dict.txt"))


def write_splits(folder, train, valid=None, test=None):
    """Folders of .txt files, written byte for byte."""
    for split, texts in (("train", train), ("valid", valid), ("test", test)):
        for name, text in (texts or {}).items():
            path = folder / split / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    return folder


def write_gpt2_files(folder):
    """GPT-2 BPE with the 256 bytes and two merges; its dictionary in another order than its ids."""
    characters = list(bytes_to_unicode().values())
    tokens = characters + ["th", "the"]
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nt h\nth e\n", encoding="utf-8")
    ids = reversed(range(len(tokens)))
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in ids))
    return folder
