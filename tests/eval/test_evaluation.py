"""eval/: perplexities, positions and recall worked out by hand, and the report made from them."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from eval import evaluate, perplexities, report
from eval.common.stream_scoring import DocumentScores
from longmem_fairseq.models.longmem_config import LongMemConfig
from tests.helpers.benchmark_runs import assert_one_line
from tests.helpers.small_models import MEMORY, SEGMENT


def document(nll, words=1, name="d", tokens=None, right=None):
    nll = np.array(nll, dtype=np.float32)
    tokens = np.zeros(len(nll), dtype=np.int32) if tokens is None else np.array(tokens)
    right = np.ones(len(tokens), dtype=bool) if right is None else right
    return DocumentScores(name, words, tokens, nll, nll + 1, right)


def records_of(*documents):
    return [evaluate.record_of(document, []) for document in documents]


def test_perplexity_per_token_word_and_document():
    documents = [document([np.log(2)] * 4, words=2, name="a"), document([np.log(8)] * 2, words=1)]
    result = evaluate.summarize(records_of(*documents))
    assert (result["tokens"], result["words"]) == (6, 3)
    # 4 log 2 + 2 log 8 = 10 log 2
    assert result["ppl"] == pytest.approx(2 ** (10 / 6))
    assert result["word_ppl"] == pytest.approx(2 ** (10 / 3))
    assert [d["ppl"] for d in result["documents"]] == pytest.approx([2, 8])


def test_perplexities_that_are_none():
    """Of no words (an empty text is the token that ends it), beyond all numbers, and of NaN."""
    result = evaluate.summarize(records_of(document([np.log(2)], words=0)))
    assert (result["ppl"], result["word_ppl"]) == (pytest.approx(2), None)
    result.update(name="m", memory="own")
    assert evaluate.describe(result) == "m (memory: own): 1 tokens, ppl 2.000, per word -"
    result = evaluate.summarize(records_of(document([709.0], words=1), document([711.0], words=0)))
    assert (result["loss"], result["word_ppl"]) == (710.0, None)
    assert [d["ppl"] for d in result["documents"]] == [pytest.approx(np.exp(709)), None]
    result = evaluate.summarize(records_of(document([float("nan")])))
    assert (result["loss"], result["ppl"], result["by_position"][0]["ppl"]) == (None, None, None)
    json.dumps(result, allow_nan=False)


def test_positions_double_and_cover_every_token():
    documents = [document(np.full(3000, np.log(4))), document(np.full(1025, np.log(2)))]
    buckets = perplexities.by_position(records_of(*documents))
    assert [(b["from"], b["to"], b["tokens"]) for b in buckets] == [
        (0, 1024, 2048),
        (1024, 2048, 1025),
        (2048, 4096, 952),
    ]
    assert buckets[0]["ppl"] == pytest.approx(2**1.5)
    assert buckets[2]["ppl"] == pytest.approx(4)


def test_lengths_are_the_papers_buckets():
    sizes = {4999: 2, 5000: 2, 9999: 8, 10_000: 2, 1_000_000: 4}  # tokens: perplexity
    documents = [document(np.full(size, np.log(ppl)), words=size) for size, ppl in sizes.items()]
    buckets = perplexities.by_length(records_of(*documents))
    assert [(b["from"], b["to"], b["documents"], b["tokens"]) for b in buckets] == [
        (0, 5000, 1, 4999),
        (5000, 10_000, 2, 14_999),
        (10_000, 100_000, 1, 10_000),
        (1_000_000, None, 1, 1_000_000),
    ]
    # 5,000 log 2 + 9,999 log 8 = 34,997 log 2
    assert buckets[1]["ppl"] == pytest.approx(2 ** (34_997 / 14_999), rel=1e-5)
    assert buckets[3]["word_ppl"] == pytest.approx(4, rel=1e-5)


def test_recall_within_and_beyond_the_window():
    # segments of 4: targets 0-3, 4-7, 8-11; input p is target p - 1
    scores = document(np.zeros(12), tokens=np.arange(12), right=np.arange(12) != 10)
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
    result = evaluate.recall([evaluate.record_of(scores, questions)], questions, segment=4)
    assert result["questions"] == {"within": 2, "beyond": 2}
    assert result["recall"] == {"within": 1.0, "beyond": 0.5}
    assert result["recall_by_distance"] == [{"from": 1, "to": 32, "questions": 5, "recall": 0.8}]


def test_recall_within_a_window_that_overlaps():
    # segments of 4 that predict 3: inputs 0-2, 2-5, 5-8, 8-11, which predict 0-2, 3-5, 6-8, 9-11
    scores = document(np.zeros(12), tokens=np.arange(12), right=np.ones(12, dtype=bool))
    questions = [
        # mention 4 is input 5, which is read again before target 6; mention 3 is not
        {"document": 0, "position": 6, "tokens": 1, "mention": mention, "distance": 6 - mention}
        for mention in (3, 4)
    ]
    record = evaluate.record_of(scores, questions)
    result = evaluate.recall([record], questions, segment=4, overlap=1)
    assert result["questions"] == {"within": 1, "beyond": 0}


@pytest.fixture
def checkpoint(build, backbone_path, tmp_path):
    """Of a longmem, as fairseq-train writes it."""
    cfg = LongMemConfig(_name="longmem", pretrained_model_path=backbone_path, **MEMORY)
    state = {
        "cfg": {"model": OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True)},
        "args": None,
        "model": build().state_dict(),
        "optimizer_history": [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {},
    }
    torch.save(state, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def test_memory_options_replace_those_of_the_checkpoint(
    checkpoint, task, tmp_path, monkeypatch, capsys
):
    used = {}

    def read(args, model, *unused):
        used.update(model.decoder.memory.options)
        return [{**record, "seconds": 0.0} for record in records_of(document([np.log(2)]))]

    monkeypatch.setattr(evaluate, "read_split", read)
    own = {
        "memory_size": 64,
        "chunk_size": 2,
        "k": 8,
        "index": "torch",
        "index_parameters": "",
        "dtype": "float32",
        "storage": "device",
        "directory": None,
    }
    more = "--memory-size 128 --chunk-size 4 --k 16 --memory-index HNSW8 --memory-dtype int8"
    more += f" --memory-index-parameters efSearch=64 --memory-storage disk --memory-dir {tmp_path}"
    others = (128, 4, 16, "HNSW8", "efSearch=64", "int8", "disk", str(tmp_path))
    command = f"evaluate.py {task.cfg.data} --path {checkpoint} --name m"
    command += f" --tokens-per-sample {SEGMENT} "
    for arguments, expected in (("", own), (more, dict(zip(own, others, strict=True)))):
        monkeypatch.setattr("sys.argv", (command + arguments).split())
        evaluate.main()
        assert {name: used[name] for name in own} == expected
    assert capsys.readouterr().out.count("ppl 2.000") == 2


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
    summary = json.loads((tmp_path / "results.json").read_text())["perplexity"]
    assert summary["longmem"]["recall"] == {"within": 1.0, "beyond": 0.5}
    assert summary["backbone"]["ppl"] == 4.0  # the last line of a name counts
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_report_of_nothing_is_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.jsonl"
    path.touch()
    message = assert_one_line(monkeypatch, capsys, report.main, "report.py", path)
    assert message == f"{path} holds no results: run eval/evaluate.py first"
