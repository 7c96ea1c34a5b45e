"""A converted backbone has a memory without training: a constant pointer, against the slow mixture."""

import json
import logging
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

from fairseq_cli import eval_lm  # noqa: E402

from eval import evaluate, hit_rates  # noqa: E402
from longmem_fairseq import LongMem  # noqa: E402
from longmem_fairseq.api.reading import read_segments  # noqa: E402
from longmem_fairseq.commands import convert, prepare  # noqa: E402
from longmem_fairseq.data import IndexedDocuments  # noqa: E402
from longmem_fairseq.inspector import inspect_text, make_page  # noqa: E402
from longmem_fairseq.modules import places  # noqa: E402
from tests.helpers.hf_models import make_model  # noqa: E402
from tests.helpers.hf_tokenizers import PAGE, make_tokenizer  # noqa: E402
from tests.helpers.slow_pointer import slow_reading  # noqa: E402

WINDOW, K = 16, 8
PAGE = PAGE.replace("e\u0301", "e").replace("\0", "")
DOCUMENTS = {"a": PAGE[:150] * 2, "b": PAGE[60:130], "c": PAGE[100:180]}
TEXT = PAGE[20:110]


@pytest.fixture(autouse=True)
def near_places(monkeypatch):
    """WINDOW is shorter than a pointer's least distance."""
    monkeypatch.setattr(places, "NEAREST", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the backbone; beside it data/, a corpus in its tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("bare"), make_tokenizer("llama3")
    changes = {"vocab_size": tokenizer.get_vocab_size() + 3, "bos_token_id": 1, "eos_token_id": 2}
    make_model("llama", folder / "hf", tokenizer, **changes)
    convert.main(["--model", str(folder / "hf"), "--dest", str(folder / "backbone")])
    for split in ("train", "valid", "test"):
        (folder / "text" / split).mkdir(parents=True)
        for name, text in DOCUMENTS.items():
            (folder / "text" / split / f"{name}.txt").write_bytes((split + text * 2).encode())
    arguments = ["--source", folder / "text", "--dest", folder / "data"]
    arguments += ["--vocabulary", folder / "backbone"]
    prepare.main([str(argument) for argument in arguments])
    return folder / "backbone"


def load(folder, **options):
    return LongMem.from_pretrained(folder, tokens_per_sample=WINDOW, k=K, **options)


@pytest.fixture
def lm(folder):
    """A bare backbone that remembers DOCUMENTS."""
    lm = load(folder)
    lm.memorize(DOCUMENTS.values(), names=list(DOCUMENTS), progress=False)
    return lm


def test_scores_are_those_of_the_slow_mixture(lm, folder):
    assert not lm.decoder.has_sidenet and lm.decoder.gate is None
    # slow_reading takes these sizes from the model
    assert (lm.decoder.window, lm.decoder.memory.options["k"]) == (WINDOW, K)
    expected, weights = slow_reading(lm, TEXT, DOCUMENTS.values())
    assert weights.max() > 0.1
    found = lm.score(TEXT)
    assert_close(found.log_probs, expected, rtol=1e-3, atol=1e-3)
    lm.forget()
    expected, _ = slow_reading(lm, TEXT * 2)
    assert_close(lm.score(TEXT * 2).log_probs, expected, rtol=1e-3, atol=1e-3)
    without = LongMem.from_pretrained(folder, tokens_per_sample=WINDOW, no_memory=True)
    assert without.decoder.memory is None
    assert_close(lm.score(TEXT, memory=False).log_probs, without.score(TEXT).log_probs)


def test_a_saved_memory_and_a_forgotten_document(lm, folder, tmp_path):
    lm.save_memory(tmp_path / "memory")
    load(folder, dtype="bfloat16").load_memory(tmp_path / "memory")  # nothing in it has a type
    expected = lm.score(TEXT).log_probs
    never = load(folder)
    never.memorize([DOCUMENTS["a"], DOCUMENTS["c"]], names=["a", "c"], progress=False)
    without, retrieved = never.score(TEXT).log_probs, never.retrieved(TEXT)
    assert not torch.equal(without, expected)
    for memory_map in (False, True):
        other = load(folder)
        other.load_memory(tmp_path / "memory", memory_map=memory_map)
        assert torch.equal(other.score(TEXT).log_probs, expected)
        with pytest.raises(ValueError) as error:
            other.forget("d")
        assert str(error.value) == "no document 'd' is in memory, which holds: 'a', 'b', 'c'"
        assert other.forget("b") == lm.tokenizer.indices(DOCUMENTS["b"]).size
        assert torch.equal(other.score(TEXT).log_probs, without)
        assert other.retrieved(TEXT) == retrieved
        left = other.memory.single_bank(other.device).held(0)
        assert other.forget() == len(left) and not len(
            other.memory.single_bank(other.device).held(0)
        )
        with other.frozen_memory(), pytest.raises(ValueError, match="the memory is frozen"):
            other.forget("a")
    assert "b" not in {passage.document for token in retrieved for passage in token.passages}


def test_words_are_remembered_without_reading_them(lm):
    """They are found by excerpts, and nothing by its state; other documents stay as they are."""
    text = TEXT[::-1]
    number = lm.memorize(text, "words", progress=False, words_only=True)
    bank = lm.memory.single_bank(lm.device)
    assert bank.documents(0)["words"] == number == len(lm._tokens(text, False)[0]) - 1
    assert "words" in {found.document for found in lm.excerpts(text[-40:], 128)}
    read = {passage.document for token in lm.retrieved(TEXT) for passage in token.passages}
    assert "a" in read and "words" not in read


def test_generation_takes_the_likeliest_of_the_mixture(lm):
    """Read anew for every token, in halves of the window as a generation leaves them behind."""
    decoder, prompt = lm.decoder, DOCUMENTS["a"][:60]
    tokens = lm._tokens(prompt, False)
    bank, expected = lm.memory.single_bank(lm.device), []
    for _ in range(8):
        fork, past = lm.fork(1), decoder.left_behind(tokens.size(1))
        with torch.no_grad():
            for segment in tokens[:, :past].split(WINDOW // 2, dim=1):
                fork.write(**decoder.entries(segment)._asdict(), token_ids=segment)
            scores = decoder.read(tokens[:, past:], fork.retrieve).scores[0, -1]
        scores[lm.tokenizer.impossible] = -math.inf
        expected.append(int(scores.argmax()))
        tokens = torch.cat([tokens, scores.argmax().view(1, 1)], dim=1)
        if expected[-1] in lm.tokenizer.ends:
            expected.pop()
            break
    assert lm.generate(prompt, 8) == lm.tokenizer.decode(expected)
    assert bank is lm.memory.single_bank(lm.device)
    drawn = [lm.generate(prompt, 8, temperature=0.7, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] and len(lm.generate(prompt, 8, beam=3)) > 0


def test_passages_are_what_the_pointer_says(lm):
    readings, (_, weights) = lm.retrieved(TEXT), slow_reading(lm, TEXT, DOCUMENTS.values())
    assert "".join(reading.token for reading in readings) == TEXT
    found = lm.score(TEXT)
    for (_, passages), weight in zip(readings, weights, strict=True):
        assert {p.head for p in passages} == {0} and len(passages) == K
        assert 0 < sum(p.weight for p in passages) < 1.0001  # the rest is for places in the window
        assert [p.gate for p in passages] == pytest.approx([float(weight)] * K, abs=1e-3)
        assert all(-1.001 < p.score < 1.001 for p in passages)
        assert [p.weight for p in passages] == sorted((p.weight for p in passages), reverse=True)
        for p in passages:
            document = {**DOCUMENTS, "this text": TEXT}[p.document]
            assert (
                p.before + p.text + p.after in document or "\ufffd" in p.before + p.text + p.after
            )
    inspection = inspect_text(lm, TEXT)
    assert inspection.readings == lm.retrieved(TEXT, per_head=3)
    assert_close(torch.from_numpy(inspection.log_probs), found.log_probs)
    page = make_page(inspection, "title", "memory")
    pointer = re.search(r'"pointer":\[([^]]*)\]', page)[1].split(",")
    assert [float(p) for p in pointer] == pytest.approx(weights.tolist(), abs=2e-3)


def test_eval_lm_and_scores_agree(folder, root, monkeypatch, caplog):
    arguments = (
        f"fairseq-eval-lm {folder.parent}/data --user-dir {root}/longmem_fairseq --cpu --num-workers 0 "
        f"--task longmem_language_modeling --path {folder}/checkpoint.pt --gen-subset test "
        f"--batch-size 1 --tokens-per-sample {WINDOW} --pointer constant --k {K}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    with caplog.at_level(logging.INFO):
        eval_lm.cli_main()
    lm, losses = load(folder), []
    documents = IndexedDocuments(str(folder.parent / "data" / "test"), len(lm.dictionary))
    for document in documents:
        tokens = torch.cat([torch.tensor([lm.tokenizer.document_start]), document.long()])
        with torch.no_grad():
            scores = torch.cat(
                list(read_segments(lm.decoder, tokens[None, :-1], lm.fork(1))), dim=1
            )
        losses.append(F.cross_entropy(scores[0].double(), tokens[1:], reduction="none"))
    text = lm.tokenizer.decode(documents[1].tolist()[:-1])
    assert_close(lm.score(text).log_probs.double(), -losses[1][:-1], rtol=1e-5, atol=1e-5)
    losses = torch.cat(losses)
    assert f"Evaluated {len(losses)} tokens" in caplog.text
    loss = float(re.search(r"Loss \(base 2\): ([\d.]+)", caplog.text)[1])
    assert loss == pytest.approx(float(losses.mean()) / math.log(2), abs=2e-4)


def test_evaluation_says_what_the_pointer_is_worth(folder, tmp_path, monkeypatch):
    """Without it, in the same pass: the backbone alone, which is also the model of an empty memory."""
    results = tmp_path / "results.jsonl"
    for name, options in {
        "backbone": "",
        "own": f"--pointer constant --k {K}",
        "empty": f"--pointer constant --k {K} --memory empty",
        "other": f"--pointer constant --k {K} --memory other",
    }.items():
        arguments = (
            f"evaluate {folder.parent}/data --path {folder}/checkpoint.pt --name {name} --batch-size 3 "
            f"--tokens-per-sample {WINDOW} --results {results} {options}"
        )
        monkeypatch.setattr(sys, "argv", arguments.split())
        evaluate.main()
    lines = {line["name"]: line for line in map(json.loads, results.open(encoding="utf-8"))}
    assert "without_pointer" not in lines["backbone"]
    backbone = pytest.approx(lines["backbone"]["ppl"], rel=1e-5)
    for name in ("own", "empty", "other"):
        assert lines[name]["without_pointer"]["ppl"] == backbone
    assert lines["empty"]["ppl"] == backbone
    assert len({round(line["ppl"], 3) for line in lines.values()}) == 3


def test_hit_rates_where_a_query_retrieves_everything(folder, tmp_path, monkeypatch, capsys):
    """A token is found if it is in memory."""
    options = {"pointer": "constant", "k": 1024, "memory_size": 1024, "tokens_per_sample": WINDOW}
    lm = LongMem.from_pretrained(folder, segment_overlap=4, **options)
    tokens, expected, start = lm._tokens(TEXT, False)[0].tolist(), [], 0
    while start < len(tokens) - 1:
        stop = min(start + WINDOW - 4, len(tokens) - 1)
        past = tokens[1:start]  # the first token came after none
        counts = [past.count(following) for following in tokens[start + 1 : stop + 1]]
        expected += [(n > 0, 0 < n <= hit_rates.RARE) for n in counts if past]
        start = stop
    hits = hit_rates.hits_of(lm, TEXT)
    assert list(zip(hits.found.bool().tolist(), hits.rare.bool().tolist(), strict=True)) == expected
    assert ((hits.chance > 0) == hits.found.bool()).all() and (hits.chance <= 1).all()
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    arguments = ["hit_rates", str(tmp_path / "*.txt"), "--path", str(folder), "--name", "x"]
    arguments += ["--results", str(tmp_path / "r"), "--tokens-per-sample", str(WINDOW)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--pointer", "constant", "--k", str(K)])
    hit_rates.main()
    line = json.loads((tmp_path / "r").read_text())
    assert 0 < line["chance"] < 1 and 0 < line["hits"] < 1 and line["tokens"] < len(tokens)
    assert f"{line['tokens']:,} tokens: {line['hits']:.1%} found" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "--pointer", "none"])
    with pytest.raises(ValueError, match="the model needs --memory-search hidden"):
        hit_rates.main()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pointer": "trained"}, "pointer (trained) has not been trained"),
        ({"memory_search": "attention"}, "pointer (constant) needs memory_search hidden"),
        (
            {"search_layer": 1},
            "search_layer (1) must be 4, or -1: the search keys of this backbone",
        ),
        ({"search_dim": -1}, "search_dim (-1) must be at least 1"),
        ({"memory_size": 8}, "memory_size (8) must be at least"),
    ],
)
def test_options_that_do_not_fit(folder, options, message):
    with pytest.raises(ValueError) as error:
        load(folder, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_kinds_of_loading(folder):
    """Without memory, or with a backbone of fewer bits."""
    for options in ({"no_memory": True}, {"memory_size": 0}, {"pointer": "none"}):
        assert LongMem.from_pretrained(folder, **options).decoder.memory is None
    plain = load(folder).score(TEXT, memory=False).log_probs
    few = load(folder, backbone_dtype="int8")
    assert_close(few.score(TEXT, memory=False).log_probs, plain, rtol=0, atol=0.5)
    assert not torch.equal(few.score(TEXT, memory=False).log_probs, plain)
    half = load(folder, dtype="bfloat16")
    half.memorize(DOCUMENTS["a"], names="a", progress=False)
    assert half.score(TEXT).log_probs.isfinite().all()


@pytest.mark.gpu
def test_hit_rates_on_a_gpu(folder):
    options = {"pointer": "constant", "memory_size": 1024, "tokens_per_sample": WINDOW}
    found = [
        hit_rates.hits_of(LongMem.from_pretrained(folder, device=device, **options), TEXT)
        for device in ("cpu", "cuda")
    ]
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert_close(on_gpu, on_cpu)
