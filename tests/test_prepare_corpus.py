"""preprocess/prepare_corpus.py: nothing of a text is lost, and every number says what is there."""

import hashlib
import json
import sys

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.data.indexed_dataset import MMapIndexedDataset

import make_recall_corpus
import prepare_corpus
from corpus_split import split_by_rank
from corpus_tokenizer import load_dictionary
from gpt2_tokenizer import GPT2Tokenizer
from longmem_fairseq.cli import run
from sentencepiece_tokenizer import SentencePieceTokenizer, training_sentences

VOCAB = "400"
PLAIN = "The cat sat on the mat, and the dog sat on the log.\nThen they ran home.\n" * 40
ODD_TEXTS = {
    "whitespace": "  two leading, double  inside,\t\ttabs \n\n\n  indented\r\nand trailing \n ",
    "no-break": "a\u00a0b\u2003c\u2028d\x0be\x0cf\x85g\x1ch",
    "unseen": "caf\u00e9 \u4e2d\u6587 \U0001f600 e\u0301 \ufb01 \uff21 \u0000 \ufeff",
    "sentencepiece's space": "\u2581a \u2581\u2581 b\u2581",
    "symbols": "<s> </s> <pad> <unk> <0x41> <0x0A> madeupword0000 ▁the",
    "space": " ",
    "newline": "\n",
    "one letter": "x",
    "empty": "",
}


def prepare(source, dest, *options):
    prepare_corpus.main(
        ["--source", str(source), "--dest", str(dest), "--vocab-size", VOCAB, *options]
    )
    return json.loads((dest / "manifest.json").read_text())


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items_of(dest, split):
    dataset = MMapIndexedDataset(str(dest / split))
    return [dataset[i].tolist() for i in range(len(dataset))]


def sentencepiece_of(dest):
    model = (dest / "sentencepiece.model").read_bytes()
    return SentencePieceTokenizer(model, "model", load_dictionary(dest / "dict.txt"))


def folder_hash(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


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


@pytest.fixture(scope="module")
def odd_corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    write_splits(root / "source", {"plain": PLAIN}, {"plain": PLAIN}, ODD_TEXTS)
    return root / "source", root / "corpus", prepare(root / "source", root / "corpus")


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
    # trained: a frequent word is one token, with the space before it
    assert len(tokenizer.encode("A cat sat on the mat")) == 6


def test_manifest_counts_what_the_binaries_hold(odd_corpus):
    _, dest, manifest = odd_corpus
    dictionary = load_dictionary(dest / "dict.txt")
    assert manifest["format"] == 2
    assert manifest["vocab_size"] == len(dictionary) == 408  # 4 + 400 - unknown, to 8
    assert len(dictionary) % 8 == 0
    assert manifest["tokenizer"] == {"kind": "sentencepiece", "pieces": 400}
    assert "chance" not in manifest
    frequencies = np.bincount(np.concatenate(items_of(dest, "train")), minlength=len(dictionary))
    special = dictionary.nspecial  # whose counts fairseq does not save
    assert dictionary.count[special:] == frequencies[special:].tolist()
    for split, texts in (("train", [PLAIN]), ("valid", [PLAIN]), ("test", ODD_TEXTS.values())):
        items = items_of(dest, split)
        assert manifest["splits"][split] == {
            "documents": len(texts),
            "tokens": sum(len(item) for item in items),
            "words": sum(len(text.split()) for text in texts),
            "characters": sum(len(text) for text in texts),
        }
        assert not (dest / f"{split}.questions.jsonl").exists()
    assert sorted(path.name for path in dest.iterdir()) == sorted(
        ["dict.txt", "manifest.json", "sentencepiece.model"]
        + [f"{s}.{e}" for s in manifest["splits"] for e in ("bin", "idx", "documents.jsonl")]
    )


def test_up_to_date_other_options_and_workers(odd_corpus, tmp_path, capsys):
    source, dest, manifest = odd_corpus
    before = folder_hash(dest)
    prepare(source, dest, "--workers", "3")
    assert capsys.readouterr().out == f"{dest}: up to date\n"
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(source, dest, "--seed", "7")
    assert folder_hash(dest) == before
    # the same bytes with other processes, and over an older result
    copy = tmp_path / "corpus"
    prepare(source, copy, "--seed", "7")
    assert prepare(source, copy, "--workers", "2", "--overwrite") == manifest
    assert folder_hash(copy) == before
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert capsys.readouterr().out.splitlines()[-3].startswith("train: 1 documents, ")


def test_changed_source_changes_the_hash(tmp_path):
    source = write_splits(tmp_path / "source", {"a": PLAIN}, {"b": "one"})
    manifest = prepare(source, tmp_path / "corpus")
    (source / "valid" / "b.txt").write_text("two")
    with pytest.raises(ValueError, match="made from other input"):
        prepare(source, tmp_path / "corpus")
    assert prepare(source, tmp_path / "corpus", "--overwrite")["hash"] != manifest["hash"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path):
    source = write_splits(tmp_path / "source", {"a": PLAIN})
    dest = tmp_path / "thesis"
    dest.mkdir()
    (dest / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else"):
        prepare(source, dest, "--overwrite")
    assert (dest / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize("zipped", [False, True])
def test_records_are_split_by_a_seeded_hash_of_their_name(tmp_path, zipped):
    lines = [json.dumps({"body": f"{PLAIN[:60]} {i}", "name": f"n{i}"}) for i in range(20)]
    data = ("\n".join(lines) + "\n\n").encode()
    if zipped:
        zstandard = pytest.importorskip("zstandard")
        compress = zstandard.ZstdCompressor().compress
        # two frames, as the Pile's files may have
        (tmp_path / "all.jsonl.zst").write_bytes(compress(data[:500]) + compress(data[500:]))
    else:
        (tmp_path / "all.jsonl").write_bytes(data)
    options = ["--text-field", "body", "--valid-share", "0.1", "--test-share", "0.2"]
    # the result lies inside the source, and is not read as part of it
    prepare(tmp_path, tmp_path / "out", *options)
    dest = tmp_path / "out"
    names = {
        split: [document["name"] for document in read_lines(dest / f"{split}.documents.jsonl")]
        for split in ("train", "valid", "test")
    }
    assert {split: len(n) for split, n in names.items()} == {"train": 14, "valid": 2, "test": 4}
    assert sorted(sum(names.values(), [])) == sorted(f"n{i}" for i in range(20))
    ranks = sorted((hashlib.sha256(f"1 n{i}".encode()).digest(), f"n{i}") for i in range(20))
    assert set(names["valid"]) == {name for _, name in ranks[:2]}
    assert set(names["test"]) == {name for _, name in ranks[2:6]}
    tokenizer = sentencepiece_of(dest)
    for split, split_names in names.items():
        texts = [tokenizer.decode(item) for item in items_of(dest, split)]
        assert texts == [f"{PLAIN[:60]} {name[1:]}" for name in split_names]
    prepare(tmp_path, dest, *options)  # still up to date


def test_every_split_gets_a_document_while_train_keeps_one():
    hashes = [bytes([i]) for i in (3, 0, 2, 1)]
    assert split_by_rank(hashes, 0.01, 0.01) == ["train", "valid", "train", "test"]
    assert split_by_rank(hashes, 0.0, 0.5) == ["train", "test", "train", "test"]
    assert split_by_rank(hashes[:2], 0.01, 0.01) == ["train", "valid"]
    assert split_by_rank(hashes[:1], 0.01, 0.01) == ["train"]
    assert split_by_rank([], 0.01, 0.01) == []


def test_one_txt_file_is_a_train_split(tmp_path):
    (tmp_path / "book.txt").write_text(PLAIN)
    (tmp_path / "other.txt").write_text("not asked for")
    manifest = prepare(tmp_path / "book.txt", tmp_path / "corpus")
    assert list(manifest["splits"]) == ["train"]
    assert [d["name"] for d in read_lines(tmp_path / "corpus" / "train.documents.jsonl")] == [
        "book.txt"
    ]


def test_questions_point_to_the_tokens_of_answer_and_mention(tmp_path):
    # a byte-fallback letter in front moves byte offsets away from character offsets
    text = "Ren\u00e9 \u4e2d: Ada lives in Paris. Where does Ada live? Ada lives in Paris."
    first, second = text.index("Paris"), text.rindex("Paris")
    question = {
        "answer": [second, second + 5],
        "mention": [first, first + 5],
        "relation": "lives",
    }
    source = tmp_path / "source"
    source.mkdir()
    records = [{"text": PLAIN}, {"text": text, "questions": [question]}]
    (source / "train.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (source / "corpus.json").write_text('{"chance": 0.125}')
    manifest = prepare(source, tmp_path / "corpus")
    assert manifest["chance"] == 0.125
    assert manifest["splits"]["train"]["questions"] == 1
    assert manifest["splits"]["train"]["documents"] == 2

    tokenizer = sentencepiece_of(tmp_path / "corpus")
    item = items_of(tmp_path / "corpus", "train")[1]
    (found,) = read_lines(tmp_path / "corpus" / "train.questions.jsonl")
    position, mention, length = found["position"], found["mention"], found["tokens"]
    assert found == {
        "document": 1,
        "position": position,
        "tokens": length,
        "mention": mention,
        "distance": position - mention,
        "relation": "lives",
    }
    # the space before it is no part of the answer, but may be part of its first token
    assert tokenizer.decode(item[position : position + length]).lstrip() == "Paris"
    assert tokenizer.decode(item[mention : mention + length]).lstrip() == "Paris"
    assert text.startswith(tokenizer.decode(item[:mention]))
    assert len(tokenizer.decode(item[:mention]).rstrip()) == len(text[:first].rstrip())
    assert len(tokenizer.decode(item[:position]).rstrip()) == len(text[:second].rstrip())


def test_recall_corpus_end_to_end_has_single_token_names_and_values(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "corpus"
    sizes = ["--train-documents", "60", "--test-documents", "1", "--test-words", "4000"]
    make_recall_corpus.main(["--dest", str(source), *sizes])
    manifest = prepare(source, dest, "--vocab-size", "2000")
    assert manifest["chance"] == 0.025
    documents = read_lines(source / "test.jsonl")
    questions = read_lines(dest / "test.questions.jsonl")
    asked = [question for document in documents for question in document["questions"]]
    assert manifest["splits"]["test"]["questions"] == len(questions) == len(asked) > 100
    tokenizer = sentencepiece_of(dest)
    (item,) = items_of(dest, "test")
    for question, source_question in zip(questions, asked, strict=True):
        start, end = source_question["answer"]
        assert question["tokens"] == 1
        assert item[question["position"]] == item[question["mention"]]
        value = documents[0]["text"][start:end]
        assert tokenizer.decode([item[question["position"]]]) == " " + value
    words = make_recall_corpus.NAMES[:240]
    for relation in make_recall_corpus.RELATIONS.values():
        words = words + relation.values[:40]
        for sentence in (relation.statement, relation.question):
            words = words + [w.strip(".?") for w in sentence.split() if "{" not in w]
    assert [w for w in words if len(tokenizer.encode(" " + w)) != 1] == []


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
    elif name == "surrogate":
        train.write_text('{"text": "\\ud800"}\n')
    elif name == "damaged zst":
        train.rename(source / "train.jsonl.zst")
    elif name == "bad question":
        train.write_text('{"text": "a b a", "questions": [{"answer": [4, 9]}]}\n')
    elif name == "vocabulary too large":
        options = ["--vocab-size", "100000"]
    elif name == "vocabulary too small":
        options = ["--vocab-size", "100"]
    elif name == "nothing to train on":
        train.write_text('{"text": ""}\n')
    elif name == "no gpt2 folder":
        options = ["--tokenizer", "gpt2"]
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
        ("empty folder", "holds no documents: expected .txt, .jsonl or .jsonl.zst files"),
        ("empty file", "holds no documents"),
        ("no train split", "has no documents in its train split"),
        ("two train splits", "has train, train.jsonl: keep one for each split"),
        ("missing field", "train.jsonl, line 3: no text in field 'text' (--text-field"),
        ("field is no text", "train.jsonl, line 1: no text in field 'text'"),
        ("record is no object", "train.jsonl, line 1: no text in field 'text'"),
        ("invalid JSON", "train.jsonl, line 2: invalid JSON"),
        ("not UTF-8", "a.txt: not UTF-8 (byte 0xE9 at offset 3)"),
        ("surrogate", "train.jsonl, line 1: half of a surrogate pair"),
        ("damaged zst", "train.jsonl.zst: damaged zstandard file"),
        ("bad question", "train.jsonl, line 1: each of 'questions' needs"),
        ("vocabulary too large", "--vocab-size (100000) does not suit the train split: Vocabulary"),
        ("vocabulary too small", "--vocab-size (100) does not suit the train split: Vocabulary"),
        ("nothing to train on", "does not suit the train split: it has no text"),
        ("no gpt2 folder", "--tokenizer gpt2 needs --gpt2-bpe-dir"),
        ("missing gpt2 file", "has no vocab.bpe: expected encoder.json, vocab.bpe, dict.txt"),
        ("damaged gpt2 file", "encoder.json or vocab.bpe is not GPT-2's"),
        ("gpt2 dictionary too small", "the tokenizer loses characters of this text"),
        ("workers", "--workers (0) must be at least 1"),
        ("shares", "leave no train split"),
        ("missing model", "no.model) does not exist"),
        ("garbage model", "train.jsonl) is not a model"),
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
