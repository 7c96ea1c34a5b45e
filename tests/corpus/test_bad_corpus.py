"""Bad input to preprocess/prepare_corpus.py: one line, and no half of a corpus."""

import json
import sys

import pytest
import sentencepiece

from longmem_fairseq.utils.cli import run
from tests.helpers.corpora import PLAIN, prepare, write_gpt2_files, write_splits


def lossy_model(folder, **options):
    prefix = str(folder / "lossy")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PLAIN[:70]] * 20),
        model_prefix=prefix,
        vocab_size=300,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return prefix + ".model"


# the content of train.jsonl
CONTENTS = {
    "empty file": "\n",
    "missing field": '{"text": "a"}\n\n{"txt": "b"}\n',
    "field is no text": '{"text": 3}\n',
    "record is no object": "[1]\n",
    "invalid JSON": '{"text": "a"}\n{"text": \n',
    "not UTF-8 in a line": b'{"text": "a"}\n{"text": "\xe9"}\n',
    "surrogate": '{"text": "\\ud800"}\n',
    "bad question": '{"text": "a b a", "questions": [{"answer": [4, 9]}]}\n',
    "nothing to train on": '{"text": ""}\n',
}
CORPUS_JSON = {
    "corpus.json is no object": "[]",
    "chance is no number": '{"chance": "half"}',
    "chance beyond 1": '{"chance": 40}',
}
GPT2 = "--tokenizer gpt2 --gpt2-bpe-dir {root}/bpe"
MODEL = "--sentencepiece-model {root}/lossy.model"
OPTIONS = {
    "vocabulary too large": "--vocab-size 100000",
    "vocabulary too small": "--vocab-size 100",
    "no gpt2 folder": "--tokenizer gpt2",
    "gpt2 folder for another tokenizer": "--gpt2-bpe-dir bpe",
    "another tokenizer's model for gpt2": "--tokenizer gpt2 --gpt2-bpe-dir bpe --sentencepiece-model m",
    "missing gpt2 file": GPT2,
    "damaged gpt2 file": GPT2,
    "gpt2 dictionary too small": GPT2,
    "workers": "--workers 0",
    "missing further source": "--also-train {root}/no",
    "further source without train": "--also-train {root}/other",
    "shares": "--valid-share 0.5 --test-share 0.5",
    "missing model": "--sentencepiece-model {root}/no.model",
    "garbage model": "--sentencepiece-model {root}/source/train.jsonl",
    "empty model": "--sentencepiece-model {root}/empty.model",
    "model without byte fallback": MODEL,
    "model with a dummy prefix": MODEL,
    "dictionary without its model": "--dict {root}/dict.txt",
    "dictionary of another model": MODEL + " --dict {root}/dict.txt",
}


def a_text_alone(root, content):
    (root / "source" / "train.jsonl").unlink()
    write_splits(root / "source", {"a": "caf"})
    (root / "source" / "train" / "a.txt").write_bytes(content)


# other changes to the folder that holds the source
CHANGES = {
    "missing source": lambda root: (root / "source").rename(root / "elsewhere"),
    "empty folder": lambda root: (root / "source" / "train.jsonl").unlink(),
    "no train split": lambda root: (root / "source" / "train.jsonl").rename(
        root / "source" / "valid.jsonl"
    ),
    "two train splits": lambda root: write_splits(root / "source", {"a": "text"}),
    "not UTF-8": lambda root: a_text_alone(root, b"caf\xe9"),
    "binary file": lambda root: a_text_alone(root, b"PK\0"),
    "damaged zst": lambda root: (root / "source" / "train.jsonl").rename(
        root / "source" / "train.jsonl.zst"
    ),
    "further source without train": lambda root: write_splits(root / "other", {}, {"a": PLAIN}),
    "missing gpt2 file": lambda root: (write_gpt2_files(root / "bpe") / "vocab.bpe").unlink(),
    "damaged gpt2 file": lambda root: (write_gpt2_files(root / "bpe") / "encoder.json").write_text(
        "{"
    ),
    "gpt2 dictionary too small": lambda root: (
        write_gpt2_files(root / "bpe") / "dict.txt"
    ).write_text("".join(f"{i} 1\n" for i in range(200))),
    "empty model": lambda root: (root / "empty.model").write_bytes(b""),
    "model without byte fallback": lossy_model,
    "model with a dummy prefix": lambda root: lossy_model(root, byte_fallback=True),
    "dictionary without its model": lambda root: (root / "dict.txt").write_text("a 1\n"),
    "dictionary of another model": lambda root: (
        (root / "dict.txt").write_text("a 1\n"),
        lossy_model(root, byte_fallback=True),
    ),
}


def bad_case(name, root):
    """Source folder and options of one kind of bad input."""
    source = root / "source"
    source.mkdir()
    content = CONTENTS.get(name, json.dumps({"text": PLAIN}) + "\n")
    content = content.encode() if isinstance(content, str) else content
    (source / "train.jsonl").write_bytes(content)
    if name in CORPUS_JSON:
        (source / "corpus.json").write_text(CORPUS_JSON[name])
    if name in CHANGES:
        CHANGES[name](root)
    return source, OPTIONS.get(name, "").format(root=root).split()


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing source", "source) does not exist"),
        ("empty folder", "holds no documents: expected .txt or .jsonl files, also .gz or .zst"),
        ("empty file", "holds no documents"),
        ("no train split", "has no documents in its train split"),
        ("two train splits", "has train, train.jsonl: keep one for each split"),
        ("missing field", "train.jsonl, line 3: no text in field 'text' (--text-field"),
        ("field is no text", "train.jsonl, line 1: no text in field 'text'"),
        ("record is no object", "train.jsonl, line 1: no text in field 'text'"),
        ("invalid JSON", "train.jsonl, line 2: invalid JSON"),
        ("not UTF-8", "a.txt is not a text in UTF-8 (byte 0xE9 at offset 3)"),
        ("not UTF-8 in a line", "train.jsonl, line 2 is not a text in UTF-8 (byte 0xE9 at offset"),
        ("binary file", "a.txt is not a text in UTF-8 (byte 0x00 at offset 2)"),
        ("surrogate", "train.jsonl, line 1: half of a surrogate pair"),
        ("damaged zst", "train.jsonl.zst: damaged zstandard file"),
        ("bad question", "train.jsonl, line 1: each of 'questions' needs"),
        ("corpus.json is no object", "corpus.json holds no JSON object"),
        ("chance is no number", "corpus.json: chance is 'half', expected a number from 0 to 1"),
        ("chance beyond 1", "corpus.json: chance is 40, expected a number from 0 to 1"),
        ("vocabulary too large", "--vocab-size (100000) does not suit the train split: Vocabulary"),
        ("vocabulary too small", "--vocab-size (100) does not suit the train split: Vocabulary"),
        ("nothing to train on", "does not suit the train split: it has no text"),
        ("no gpt2 folder", "--tokenizer gpt2 needs --gpt2-bpe-dir"),
        ("gpt2 folder for another tokenizer", "--gpt2-bpe-dir (bpe) needs --tokenizer gpt2"),
        (
            "another tokenizer's model for gpt2",
            "--sentencepiece-model (m) does not go with --tokenizer gpt2",
        ),
        ("missing gpt2 file", "has no vocab.bpe: expected encoder.json, vocab.bpe, dict.txt"),
        ("damaged gpt2 file", "encoder.json or vocab.bpe is not GPT-2's"),
        ("gpt2 dictionary too small", "the tokenizer loses characters of this text"),
        ("missing further source", "no) does not exist"),
        ("further source without train", "other) has splits, but no train"),
        ("workers", "--workers (0) must be at least 1"),
        ("shares", "leave no train split"),
        ("missing model", "no.model) does not exist"),
        ("garbage model", "train.jsonl) is not a model"),
        ("empty model", "empty.model) is not a model"),
        ("model without byte fallback", "train it with byte_fallback"),
        ("model with a dummy prefix", "train.jsonl, line 1: the tokenizer loses characters"),
        ("dictionary without its model", "needs the --sentencepiece-model it belongs to"),
        ("dictionary of another model", "--dict has no entry of its own for the piece"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capfd, name, message):
    source, options = bad_case(name, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_info:
        run(lambda: prepare(source, tmp_path / "corpus", *options))
    assert exit_info.value.code == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_bad_input_in_a_worker_and_missing_zstandard(tmp_path, monkeypatch):
    source = tmp_path / "train.jsonl"
    source.write_text(json.dumps({"text": PLAIN}))
    model = lossy_model(tmp_path, byte_fallback=True)
    with pytest.raises(ValueError, match="loses characters"):
        prepare(source, tmp_path / "a", "--workers", "2", "--sentencepiece-model", model)
    source.rename(tmp_path / "train.jsonl.zst")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match="pip install zstandard"):
        prepare(tmp_path / "train.jsonl.zst", tmp_path / "b")
