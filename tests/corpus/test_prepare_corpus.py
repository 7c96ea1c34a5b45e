"""preprocess/prepare_corpus.py: nothing of a source is lost, and every number says what is there."""

import hashlib
import json

import numpy as np
import pytest

from longmem_fairseq.corpus.split import split_by_rank
from longmem_fairseq.tokenizers import load_dictionary
from preprocess import make_recall_corpus
from tests.helpers.corpora import (
    ODD_TEXTS,
    PLAIN,
    items_of,
    prepare,
    read_lines,
    sentencepiece_of,
    write_splits,
)


def folder_hash(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


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
    with pytest.raises(ValueError, match="or overwrite to replace it"):
        prepare(source, dest, "--seed", "7")
    assert folder_hash(dest) == before
    # the same bytes with other processes, and over an older result
    copy = tmp_path / "corpus"
    prepare(source, copy, "--seed", "7")
    assert prepare(source, copy, "--workers", "2", "--overwrite") == manifest
    assert folder_hash(copy) == before
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert capsys.readouterr().out.splitlines()[-3].startswith("train: 1 documents, ")


def test_changed_source_changes_the_hash(tmp_path, capsys):
    source = write_splits(tmp_path / "source", {"a": PLAIN}, {"b": "one"})
    manifest = prepare(source, tmp_path / "corpus")
    assert "no test split" not in capsys.readouterr().out  # the source has splits of its own
    (source / "valid" / "b.txt").write_text("two")
    with pytest.raises(ValueError, match="made from other input"):
        prepare(source, tmp_path / "corpus")
    assert prepare(source, tmp_path / "corpus", "--overwrite")["hash"] != manifest["hash"]


@pytest.mark.parametrize("has_splits", [False, True])
def test_another_source_is_trained_on_besides(tmp_path, capsys, has_splits):
    """After the documents of the source; its other splits are left out, and a change is noticed."""
    source = write_splits(tmp_path / "source", {"a": PLAIN}, {"b": "one"}, {"c": "two"})
    texts = {"d": "\u0394 " + PLAIN[:50], "e": PLAIN[:40]}
    if has_splits:
        other = write_splits(tmp_path / "other", texts, {"f": "three"})
    else:
        other = tmp_path / "other"
        other.mkdir()
        for name, text in texts.items():
            (other / f"{name}.txt").write_text(text)
    (other / "notes.md").touch()
    plain = prepare(source, tmp_path / "plain")
    manifest = prepare(source, tmp_path / "corpus", "--also-train", str(other))
    assert f"left out of {other}: 1 .md\n" in capsys.readouterr().out
    names = [row["name"] for row in read_lines(tmp_path / "corpus" / "train.documents.jsonl")]
    assert names == ["a.txt", "d.txt", "e.txt"]
    for split in ("valid", "test"):
        assert manifest["splits"][split]["documents"] == plain["splits"][split]["documents"] == 1
    path = other / "train" / "d.txt" if has_splits else other / "d.txt"
    path.write_text("another")
    with pytest.raises(ValueError, match="made from other input"):
        prepare(source, tmp_path / "corpus", "--also-train", str(other))
    assert prepare(source, tmp_path / "plain") == plain


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path):
    source = write_splits(tmp_path / "source", {"a": PLAIN})
    dest = tmp_path / "thesis"
    dest.mkdir()
    (dest / "chapter.tex").write_text("years of work")
    for stranger in (None, '{"name": "a web site"}', "{", "[]"):
        if stranger is not None:
            (dest / "manifest.json").write_text(stranger)
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


def test_one_txt_file_is_a_train_split(tmp_path, capsys):
    (tmp_path / "book.txt").write_text(PLAIN)
    (tmp_path / "other.txt").write_text("not asked for")
    manifest = prepare(tmp_path / "book.txt", tmp_path / "corpus", "--test-share", "0")
    (missing,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no ")]
    assert missing.startswith("no valid split: the source has 1 document, and train keeps one;")
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
    sizes = ["--train-documents", "15", "--test-documents", "1", "--test-words", "4000"]
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
