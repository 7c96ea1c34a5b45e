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


def bad_case(name, root):
    """Source folder and options of one kind of bad input."""
    source = root / "source"
    source.mkdir()
    train = source / "train.jsonl"
    train.write_text(json.dumps({"text": PLAIN}) + "\n")
    options = []
    if name == "missing source":
        source = root / "nowhere"
    elif name == "empty folder":
        train.unlink()
    elif name == "empty file":
        train.write_text("\n")
    elif name == "no train split":
        train.rename(source / "valid.jsonl")
    elif name == "two train splits":
        write_splits(source, {"a": "text"})
    elif name == "missing field":
        train.write_text('{"text": "a"}\n\n{"txt": "b"}\n')
    elif name == "field is no text":
        train.write_text('{"text": 3}\n')
    elif name == "record is no object":
        train.write_text("[1]\n")
    elif name == "invalid JSON":
        train.write_text('{"text": "a"}\n{"text": \n')
    elif name == "not UTF-8":
        (source / "train.jsonl").unlink()
        write_splits(source, {"a": "caf"})
        (source / "train" / "a.txt").write_bytes(b"caf\xe9")
    elif name == "not UTF-8 in a line":
        train.write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    elif name == "binary file":
        (source / "train.jsonl").unlink()
        write_splits(source, {"a": "PK\0"})
    elif name == "surrogate":
        train.write_text('{"text": "\\ud800"}\n')
    elif name == "damaged zst":
        train.rename(source / "train.jsonl.zst")
    elif name == "bad question":
        train.write_text('{"text": "a b a", "questions": [{"answer": [4, 9]}]}\n')
    elif name == "corpus.json is no object":
        (source / "corpus.json").write_text("[]")
    elif name == "chance is no number":
        (source / "corpus.json").write_text('{"chance": "half"}')
    elif name == "chance beyond 1":
        (source / "corpus.json").write_text('{"chance": 40}')
    elif name == "vocabulary too large":
        options = ["--vocab-size", "100000"]
    elif name == "vocabulary too small":
        options = ["--vocab-size", "100"]
    elif name == "nothing to train on":
        train.write_text('{"text": ""}\n')
    elif name == "no gpt2 folder":
        options = ["--tokenizer", "gpt2"]
    elif name == "gpt2 folder for another tokenizer":
        options = ["--gpt2-bpe-dir", "bpe"]
    elif name == "another tokenizer's model for gpt2":
        options = ["--tokenizer", "gpt2", "--gpt2-bpe-dir", "bpe", "--sentencepiece-model", "m"]
    elif name == "missing gpt2 file":
        (write_gpt2_files(root / "bpe") / "vocab.bpe").unlink()
        options = ["--tokenizer", "gpt2", "--gpt2-bpe-dir", str(root / "bpe")]
    elif name == "damaged gpt2 file":
        (write_gpt2_files(root / "bpe") / "encoder.json").write_text("{")
        options = ["--tokenizer", "gpt2", "--gpt2-bpe-dir", str(root / "bpe")]
    elif name == "gpt2 dictionary too small":
        folder = write_gpt2_files(root / "bpe")
        (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(200)))
        options = ["--tokenizer", "gpt2", "--gpt2-bpe-dir", str(folder)]
    elif name == "workers":
        options = ["--workers", "0"]
    elif name == "shares":
        options = ["--valid-share", "0.5", "--test-share", "0.5"]
    elif name == "missing model":
        options = ["--sentencepiece-model", str(root / "no.model")]
    elif name == "garbage model":
        options = ["--sentencepiece-model", str(train)]
    elif name == "empty model":
        (root / "empty.model").write_bytes(b"")
        options = ["--sentencepiece-model", str(root / "empty.model")]
    elif name == "model without byte fallback":
        options = ["--sentencepiece-model", lossy_model(root)]
    elif name == "model with a dummy prefix":
        options = ["--sentencepiece-model", lossy_model(root, byte_fallback=True)]
    elif name == "dictionary without its model":
        (root / "dict.txt").write_text("a 1\n")
        options = ["--dict", str(root / "dict.txt")]
    elif name == "dictionary of another model":
        (root / "dict.txt").write_text("a 1\n")
        model = lossy_model(root, byte_fallback=True)
        options = ["--sentencepiece-model", model, "--dict", str(root / "dict.txt")]
    return source, options


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing source", "nowhere) does not exist"),
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
