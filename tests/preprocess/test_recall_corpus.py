"""preprocess/make_recall_corpus.py: every answer stands before its question."""

import collections
import json
import math
import re

import pytest

from longmem_fairseq.utils.cli import run
from preprocess import make_recall_corpus
from preprocess.recall_words import NAMES, RELATIONS

SMALL = ["--train-documents", "6", "--train-words", "3000"]
SMALL += ["--valid-documents", "1", "--test-documents", "2", "--test-words", "5000"]
# `Ada paints.`, whether stated or as an answer
MENTIONS = {
    relation: rf"\b({'|'.join(NAMES)}) ({'|'.join(RELATIONS[relation].values)})\."
    for relation in RELATIONS
}
QUESTIONS = {"does": "Do you remember? "}


def make(dest, *options):
    make_recall_corpus.main(["--dest", str(dest), *SMALL, *options])
    return {
        split: [json.loads(line) for line in open(dest / f"{split}.jsonl", encoding="ascii")]
        for split in ("train", "valid", "test")
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make(tmp_path_factory.mktemp("recall") / "corpus")


def mentions_in(text):
    """Every (relation, name, value, value's span), in order, read back from the plain text."""
    found = [
        (relation, *match.groups(), list(match.span(2)))
        for relation, pattern in MENTIONS.items()
        for match in re.finditer(pattern, text)
    ]
    return sorted(found, key=lambda mention: mention[3])


def test_questions_point_to_the_most_recent_mention_of_the_same_fact(corpus):
    num_questions = 0
    for document in corpus["train"] + corpus["test"]:
        text, last, expected = document["text"], {}, []
        for relation, name, value, span in mentions_in(text):
            sentence_start = text.rindex(name, 0, span[0])
            question = QUESTIONS[relation].format(name)
            if text[:sentence_start].endswith(question):
                earlier_value, earlier_span = last[relation, name]
                assert earlier_value == value
                expected.append({"answer": span, "mention": earlier_span, "relation": relation})
            else:
                assert (relation, name) not in last  # a fact is stated once
            last[relation, name] = value, span
        assert document["questions"] == expected
        num_questions += len(expected)
        assert text.count("?") == len(expected)
    assert num_questions > 1000


def test_documents_have_the_asked_size_and_are_plain_sentences(corpus):
    assert {split: len(documents) for split, documents in corpus.items()} == {
        "train": 6,
        "valid": 1,
        "test": 2,
    }
    for split, num_words in (("train", 3000), ("valid", 5000), ("test", 5000)):
        for document in corpus[split]:
            assert num_words <= len(document["text"].split()) < num_words + 10
            assert re.fullmatch(r"([A-Z][A-Za-z ]+[.?] ?)+", document["text"])
            # the first word has no space before it and would be another token: no name there
            assert document["text"].split()[0] not in NAMES


def test_values_are_uniform_and_drawn_anew_for_each_document(corpus):
    counts = {relation: collections.Counter() for relation in RELATIONS}
    values_of = collections.defaultdict(list)
    for document in corpus["train"] + corpus["test"]:
        stated = {(m[0], m[1]): m[2] for m in mentions_in(document["text"])}
        for (relation, name), value in stated.items():
            counts[relation][value] += 1
            values_of[relation, name].append(value)
    for relation, counter in counts.items():
        assert set(counter) <= set(RELATIONS[relation].values[:40])
        expected = sum(counter.values()) / 40
        statistic = sum(
            (counter[value] - expected) ** 2 / expected for value in RELATIONS[relation].values[:40]
        )
        # chi-squared with 39 degrees of freedom: mean 39, standard deviation 8.8
        assert statistic < 39 + 5 * math.sqrt(2 * 39)
    pairs = [(a, b) for v in values_of.values() for i, a in enumerate(v) for b in v[:i]]
    same = sum(a == b for a, b in pairs)
    assert len(pairs) > 400
    assert same / len(pairs) < 0.025 + 5 * math.sqrt(0.025 * 0.975 / len(pairs))


def test_facts_come_over_the_whole_length_and_questions_near_and_far(corpus):
    for document in corpus["test"]:
        half = len(document["text"]) // 2
        seen, positions = set(), []
        for relation, name, _, span in mentions_in(document["text"]):
            if (relation, name) not in seen:
                positions.append(span[0])
            seen.add((relation, name))
        assert 0.4 < sum(p < half for p in positions) / len(positions) < 0.6
    questions = [(d, q) for d in corpus["test"] for q in d["questions"]]
    sentences_between = [
        len(re.findall("[.?]", d["text"][q["mention"][1] : q["answer"][0]])) for d, q in questions
    ]
    assert 0.45 < sum(n <= 20 for n in sentences_between) / len(questions) < 0.8
    assert sum(n > 100 for n in sentences_between) / len(questions) > 0.15


def test_near_share_is_an_option(tmp_path):
    def far_share(near):
        documents = make(tmp_path / near, "--near", near)["test"]
        spans = [(q["mention"][0], q["answer"][0]) for d in documents for q in d["questions"]]
        return sum(answer - mention > 2000 for mention, answer in spans) / len(spans)

    assert far_share("1.0") < 0.05
    assert far_share("0.0") > 0.5


def test_words_are_distinct_and_fillers_hold_no_name_or_value():
    lists = [NAMES] + [relation.values for relation in RELATIONS.values()]
    words = [word.lower() for words in lists for word in words]
    assert len(words) == len(set(words))
    filler_words = {
        word.lower()
        for sentence in make_recall_corpus.all_fillers()
        for word in re.findall(r"\w+", sentence)
    }
    assert filler_words.isdisjoint(words)
    assert not any("{" in sentence for sentence in make_recall_corpus.all_fillers())


def test_same_seed_same_files_and_a_longer_split_begins_alike(tmp_path, corpus):
    same = make(tmp_path / "same")
    assert same == corpus
    other = make(tmp_path / "other", "--seed", "2")
    assert other["train"][0]["text"] != corpus["train"][0]["text"]
    longer = make(tmp_path / "longer", "--train-documents", "8")
    assert longer["train"][:6] == corpus["train"]
    assert len({document["text"] for document in longer["train"]}) == 8


def test_corpus_json_and_idempotence(tmp_path, capsys):
    dest = tmp_path / "corpus"
    make(dest, "--values", "10")
    content = json.loads((dest / "corpus.json").read_text())
    assert content["chance"] == 0.1
    assert content["options"]["train_words"] == 3000
    before = (dest / "train.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    make(dest, "--values", "10")
    assert capsys.readouterr().out == f"{dest}: up to date\n"
    assert (dest / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="or overwrite to replace it"):
        make(dest, "--values", "11")
    make(dest, "--values", "11", "--overwrite")
    assert json.loads((dest / "corpus.json").read_text())["chance"] == 1 / 11
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--names", "0"], "--names (0) must be from 1 to 260"),
        (["--names", "261"], "--names (261) must be from 1 to 260"),
        (["--values", "51"], "--values (51) must be from 2 to 50"),
        (["--train-words", "0"], "--train-words (0) must be at least 1"),
        (["--near", "1.5"], "--near (1.5) must be from 0 to 1"),
        (["--fact-rate", "0"], "--fact-rate (0.0) must be above 0"),
        (["--fact-rate", "0.7"], "must sum to at most 1"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    dest = tmp_path / "corpus"
    with pytest.raises(SystemExit) as exit_info:
        run(lambda: make_recall_corpus.main(["--dest", str(dest), *options]))
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
