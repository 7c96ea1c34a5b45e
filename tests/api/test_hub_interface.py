"""LongMem: what it memorizes, scores and reads is what evaluation does, and its memory is its own."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.memory import Source
from tests.helpers.model_folders import (
    DOCUMENTS,
    TEXT,
    WINDOW,
    assert_same_memory,
    ids,
    memory_state,
    story,
)

KINDS = ("backbone", "longmem", "memtrm")


@torch.no_grad()
def evaluated(lm, texts, frozen=()):
    """Log-probabilities of the last of *texts*, all read by the model's own forward in one stream.

    The memory is frozen while it reads the texts whose numbers are in *frozen*.
    """
    decoder, fresh, log_probs = lm.decoder, True, []
    for number, text in enumerate(texts):
        tokens, log_probs = ids(lm, text), []
        # what is memorized has every token as a source, what is scored all but the last
        source = tokens[:, :-1] if number == len(texts) - 1 else tokens
        for start in range(0, source.size(1), WINDOW):
            if decoder.memory is not None:
                decoder.memory.read_only = number in frozen
            segment = source[:, start : start + WINDOW]
            new_document = torch.tensor([fresh])
            logits, fresh = decoder(segment, new_document=new_document)[0], False
            target = tokens[:, start + 1 : start + 1 + WINDOW]
            scores = logits[:, : target.size(1)].log_softmax(-1)
            log_probs.append(scores.gather(-1, target.unsqueeze(-1)).flatten())
    if decoder.memory is not None:
        decoder.memory.read_only = False
    return torch.cat(log_probs)


# --- reading ---


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_evaluation(load_lm, kind):
    """Of a text of several segments, whose tokens join to it."""
    lm = load_lm(kind)
    assert len(lm.tokenizer.indices(TEXT)) > 4 * WINDOW
    tokens, log_probs = lm.score(TEXT)
    assert "".join(tokens) == TEXT and len(tokens) == len(log_probs)
    assert_close(log_probs, evaluated(load_lm(kind), [TEXT]), atol=1e-5, rtol=0)
    assert log_probs.max() < 0


@pytest.mark.parametrize("kind", ["longmem", "memtrm"])
def test_scores_after_documents_are_those_of_one_stream(load_lm, kind):
    lm = load_lm(kind)
    count = lm.memorize(DOCUMENTS.values(), names=DOCUMENTS)
    assert count == sum(len(lm.tokenizer.indices(text)) for text in DOCUMENTS.values())
    before, first = memory_state(lm), lm.score(TEXT).log_probs
    stream = [*DOCUMENTS.values(), TEXT]
    assert_close(first, evaluated(load_lm(kind), stream), atol=1e-5, rtol=0)
    assert_same_memory(lm, before)
    assert torch.equal(lm.score(TEXT).log_probs, first)
    empty = load_lm(kind).score(TEXT).log_probs
    assert (first[:WINDOW] - empty[:WINDOW]).abs().max() > 0.01  # also where a text begins
    with lm.frozen_memory():
        frozen = lm.score(TEXT).log_probs
    assert_close(frozen, evaluated(load_lm(kind), stream, frozen=[2]), atol=1e-5, rtol=0)
    assert (frozen - first)[WINDOW:].abs().max() > 0.01
    assert torch.equal(frozen[:WINDOW], first[:WINDOW])


def test_scores_without_memory_are_those_of_segments(load_lm):
    lm = load_lm()
    lm.memorize(DOCUMENTS["a"])
    scores, source = lm.score(TEXT, memory=False).log_probs, ids(lm, TEXT)
    with torch.no_grad():
        for start in range(0, len(scores), WINDOW):
            stop = min(start + WINDOW, len(scores))
            logits = lm.decoder.read(source[:, start:stop]).logits[0].log_softmax(-1)
            expected = logits.gather(1, source[0, start + 1 : stop + 1, None])[:, 0]
            assert_close(scores[start:stop], expected, atol=1e-5, rtol=0)


def test_logits_of_rows_are_those_of_each_alone(load_lm):
    lm = load_lm()
    lm.memorize(DOCUMENTS["a"])
    before = memory_state(lm)
    rows = torch.cat([ids(lm, text)[:, : 3 * WINDOW + 5] for text in (TEXT, story(50, seed=4))])
    logits = lm.logits(rows)
    assert logits.shape == (2, 3 * WINDOW + 5, len(lm.dictionary))
    for row in range(2):
        assert_close(
            logits[row : row + 1], lm.logits(rows[row : row + 1].tolist()), atol=1e-5, rtol=0
        )
    scores = lm.score(TEXT).log_probs[: 3 * WINDOW + 4]
    expected = logits[0, :-1].log_softmax(-1).gather(1, rows[0, 1:, None])[:, 0]
    assert_close(scores, expected, atol=1e-5, rtol=0)
    assert_same_memory(lm, before)


def test_a_window_of_another_length(load_lm):
    lm = load_lm(tokens_per_sample=400, memory_size=400)
    assert lm.window == 400
    with torch.no_grad():
        logits = lm.decoder.read(ids(lm, TEXT)).logits
    assert torch.equal(lm.logits(ids(lm, TEXT)), logits)


# --- memory ---


def test_what_is_memorized_is_known_by_name(load_lm):
    lm = load_lm()
    lm.memorize([DOCUMENTS["a"], DOCUMENTS["b"]], names=["first", "second"])
    lm.memorize(TEXT)
    bank = lm.memory.single_bank(lm.device)
    texts = (*DOCUMENTS.values(), TEXT)
    starts = [0, *torch.tensor([ids(lm, text).size(1) for text in texts]).cumsum(0).tolist()]
    names = ["first", "second", "document 3"]
    assert bank.sources == [[Source(s, name, -1) for s, name in zip(starts, names, strict=False)]]
    held = bank.held(0)
    assert held.stop == starts[-1]
    everything = torch.cat([ids(lm, text)[0] for text in texts])
    assert bank.logs[0].read(held).tolist() == everything[held.start :].tolist()


def test_files_are_documents(load_lm, tmp_path):
    lm = load_lm()
    for name, text in DOCUMENTS.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "c.md").write_text(TEXT, encoding="utf-8")
    lm.memorize([tmp_path / "c.md", tmp_path / "*.txt"])
    names = [str(tmp_path / name) for name in ("c.md", "a.txt", "b.txt")]
    assert [source.name for source in lm.memory.banks[False].sources[0]] == names
    other = load_lm()
    other.memorize([TEXT, *DOCUMENTS.values()], names)
    assert_same_memory(other, memory_state(lm))


def test_a_full_memory_says_so(load_lm, caplog):
    lm = load_lm()
    lm.memorize(story(20))
    assert caplog.text == ""
    tokens = lm.memorize(story(200))
    # the first text, the starts of both, and what the ring has no room for
    (kept,) = [bank.held(0) for bank in lm.memory.banks.values()]
    assert tokens > 128 and len(kept) <= 128
    assert (
        f"the memory holds 128 tokens: {kept.start} that were read before are forgotten"
        in caplog.text
    )


def test_a_memory_that_fills_up_call_by_call_says_so(load_lm, caplog):
    lm = load_lm()
    while lm.memory.single_bank(lm.device).held(0).start == 0:
        assert caplog.text == ""
        lm.memorize(story(20))
    assert "that were read before are forgotten; raise memory_size" in caplog.text


def test_evaluation_too_says_what_the_tokens_are(load_lm):
    lm = load_lm()
    evaluated(lm, [DOCUMENTS["a"], TEXT])
    read = torch.cat([ids(lm, DOCUMENTS["a"])[0], ids(lm, TEXT)[0, :-1]])
    bank = lm.memory.banks[False]
    held = bank.held(0)
    assert held.stop == len(read)
    assert bank.logs[0].read(held).tolist() == read[held.start :].tolist()


@pytest.mark.parametrize("kind", ["longmem", "memtrm"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_a_saved_memory_is_that_of_another_process(load_lm, kind, memory_map, tmp_path):
    lm, path = load_lm(kind), tmp_path / "memory"
    lm.memorize(DOCUMENTS.values())
    lm.save_memory(path)
    other = load_lm(kind)
    other.load_memory(path, memory_map=memory_map)
    prompt = story(3, seed=8)
    assert torch.equal(other.score(prompt).log_probs, lm.score(prompt).log_probs)
    assert other.retrieved(prompt) == lm.retrieved(prompt)
    lm.forget()
    assert torch.equal(lm.score(prompt).log_probs, load_lm(kind).score(prompt).log_probs)
    assert not torch.equal(lm.score(prompt).log_probs, other.score(prompt).log_probs)


def test_an_empty_memory_can_be_saved(load_lm, tmp_path):
    lm = load_lm()
    lm.save_memory(tmp_path / "memory")
    lm.memorize(DOCUMENTS["a"])
    lm.load_memory(tmp_path / "memory")
    assert lm.memory.single_bank(lm.device).num_tokens == [0]
