"""eval/: perplexities, positions and recall worked out by hand, and the report made from them."""

import json

import numpy as np
import pytest

import evaluate
import report
from longmem_fairseq import cli
from stream_scoring import DocumentScores


def document(nll, words=1, name="d", tokens=None, right=None):
    nll = np.array(nll, dtype=np.float32)
    tokens = np.zeros(len(nll), dtype=np.int32) if tokens is None else np.array(tokens)
    right = np.ones(len(tokens), dtype=bool) if right is None else right
    return DocumentScores(name, words, tokens, nll, right)


def test_perplexity_per_token_word_and_document():
    documents = [document([np.log(2)] * 4, words=2, name="a"), document([np.log(8)] * 2, words=1)]
    result = evaluate.summarise(documents)
    assert (result["tokens"], result["words"]) == (6, 3)
    # 4 log 2 + 2 log 8 = 10 log 2
    assert result["ppl"] == pytest.approx(2 ** (10 / 6))
    assert result["word_ppl"] == pytest.approx(2 ** (10 / 3))
    assert [d["ppl"] for d in result["documents"]] == pytest.approx([2, 8])


def test_positions_double_and_cover_every_token():
    documents = [document(np.full(3000, np.log(4))), document(np.full(1025, np.log(2)))]
    buckets = evaluate.by_position(documents)
    assert [(b["from"], b["to"], b["tokens"]) for b in buckets] == [
        (0, 1024, 2048),
        (1024, 2048, 1025),
        (2048, 4096, 952),
    ]
    assert buckets[0]["ppl"] == pytest.approx(2**1.5)
    assert buckets[2]["ppl"] == pytest.approx(4)


def test_recall_within_and_beyond_the_window():
    # segments of 4: targets 0-3, 4-7, 8-11; input p is target p - 1
    scored = {0: document(np.zeros(12), tokens=np.arange(12), right=np.arange(12) != 10)}
    questions = [
        # mention 1 is input 2, in the segment of position 3: visible, right
        {"document": 0, "position": 3, "tokens": 1, "mention": 1, "distance": 2},
        # mention 3 is input 4, the first of the second segment: visible at position 5, right
        {"document": 0, "position": 5, "tokens": 2, "mention": 3, "distance": 2},
        # mention 1 and position 9: beyond (more than 4 tokens ago), right
        {"document": 0, "position": 9, "tokens": 1, "mention": 1, "distance": 8},
        # beyond, and the second token of the answer is wrong
        {"document": 0, "position": 9, "tokens": 2, "mention": 2, "distance": 7},
        # in the segment before but not more than a window ago: neither
        {"document": 0, "position": 4, "tokens": 1, "mention": 2, "distance": 2},
    ]
    result = evaluate.recall(scored, questions, segment=4)
    assert result["questions"] == {"within": 2, "beyond": 2}
    assert result["recall"] == {"within": 1.0, "beyond": 0.5}
    assert result["recall_by_distance"] == [{"from": 1, "to": 32, "questions": 5, "recall": 0.8}]


@pytest.fixture
def results(tmp_path):
    lines = [
        {"name": "backbone", "ppl": 9.0, "memory": "own"},
        {"name": "backbone", "ppl": 4.0, "memory": "own"},
        {"name": "longmem", "ppl": 3.0, "memory": "own", "recall": {"within": 1.0, "beyond": 0.5}},
    ]
    for line in lines:
        line.update(tokens=1000, word_ppl=5.0, recall_by_distance=[{"to": 32, "recall": 1.0}])
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_report(results, tmp_path, monkeypatch, capsys):
    plot = tmp_path / "plot.png"
    monkeypatch.setattr("sys.argv", ["report.py", str(results), "--plot", str(plot)])
    report.main()
    table = capsys.readouterr().out.splitlines()
    assert table[2] == "| backbone | 1,000 | 4.000 | 5.00 | 1.0000 |  |  |"
    assert table[3] == "| longmem | 1,000 | 3.000 | 5.00 | 0.7500 | 100.0% | 50.0% |"
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["longmem"]["recall"] == {"within": 1.0, "beyond": 0.5}
    assert summary["backbone"]["ppl"] == 4.0  # the last line of a name counts
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_report_of_nothing_is_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.jsonl"
    path.touch()
    monkeypatch.setattr("sys.argv", ["report.py", str(path)])
    with pytest.raises(SystemExit) as stop:
        cli.run(report.main)
    assert stop.value.code == 2
    message = f"report.py: error: {path} holds no results: run eval/evaluate.py first\n"
    assert capsys.readouterr().err == message
