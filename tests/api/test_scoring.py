"""api/scoring.py and api/decoding.py against reading one text at a time."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.api.decoding import Draw, decode
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.api.scoring import Row, score_rows
from longmem_fairseq.api.text_stream import TextStream
from tests.helpers.model_folders import DOCUMENTS, WINDOW, assert_same_memory, memory_state, story

NAMES = ["backbone", "longmem", "memtrm"]


@pytest.fixture
def lm(load_lm, request):
    """A model that has memorized the documents, if it has a memory; a name, or that and an overlap."""
    name, overlap = (request.param, 0) if isinstance(request.param, str) else request.param
    lm = load_lm(name, segment_overlap=overlap)
    if lm.decoder.memory is not None:
        lm.memorize(DOCUMENTS.values(), names=list(DOCUMENTS), progress=False)
    return lm


def slowly(lm, tokens, scored):
    """One row, one window at a time, by the definition."""
    fork, size = None, 1
    if lm.decoder.memory is not None:
        fork = lm.fork(1)
        size = fork.bank.layout.chunk_size
    inputs = tokens[:-1]
    begin = max(0, len(inputs) - WINDOW)
    if begin and fork is not None:
        while (fork.bank.num_pending[0] + begin) % size:
            begin += 1
    scores, first = {}, len(inputs) - scored
    retrieve = None if fork is None else fork.retrieve
    overlap, rolls = lm.decoder.overlap, first < begin
    starts = range(0, begin + overlap if rolls else begin, WINDOW - overlap)
    windows = [(max(0, start - overlap), start, start + WINDOW - overlap) for start in starts]
    for place, start, stop in [*windows, (begin, begin, len(inputs))]:
        segment = inputs[None, place:stop]
        reading = lm.decoder.read(segment, retrieve)
        log_probs = reading.logits[0].float().log_softmax(-1)
        for i in range(start, place + segment.size(1)):
            if i >= first and (place == begin or rolls) and i not in scores:
                scores[i] = log_probs[i - place]
        new = slice(start - place, min(stop, begin) - place)
        if fork is not None and start < min(stop, begin):
            keys, values = reading.entries.keys[:, :, new], reading.entries.values[:, :, new]
            fork.write(keys, values, segment[:, new])
    assert sorted(scores) == list(range(first, len(inputs)))
    return torch.stack([scores[place] for place in sorted(scores)])


@pytest.mark.parametrize("lm", [*NAMES, ("longmem", 5), ("backbone", 9)], indirect=True)
@torch.no_grad()
def test_rows_are_scored_side_by_side_as_alone(lm):
    """Shorter and longer than the window, with less and more to score than it holds."""
    before = None if lm.decoder.memory is None else memory_state(lm)
    rows = []
    for words, scored in ((3, 2), (8, 30), (20, 5), (40, 1), (40, WINDOW), (33, 60), (12, 3)):
        tokens = document_tokens(lm.tokenizer, story(words, seed=words))[0]
        rows.append(Row(tokens, min(scored, len(tokens) - 1)))
    for row, found in zip(rows, score_rows(lm, rows, top=3), strict=True):
        expected = slowly(lm, *row)
        targets = row.tokens[-row.scored :]
        assert_close(
            found.log_probs, expected.gather(1, targets[:, None])[:, 0], atol=1e-4, rtol=1e-4
        )
        assert_close(found.choice_log_probs, expected.topk(3).values, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.choices, expected.topk(3).indices)
    if before is not None:
        assert_same_memory(lm, before)
        (without,) = score_rows(lm, rows[2:3], memory=False)
        (found,) = score_rows(lm, rows[2:3])
        assert (without.log_probs - found.log_probs).abs().max() > 1e-3


@pytest.mark.parametrize("lm", NAMES, indirect=True)
def test_a_text_in_the_window_has_the_scores_of_score(lm):
    text = " ".join(story(5, seed=4).split())
    tokens = document_tokens(lm.tokenizer, text)[0]
    assert len(tokens) <= WINDOW + 1
    (found,) = score_rows(lm, [Row(tokens, len(tokens) - 1)])
    assert_close(found.log_probs, lm.score(text).log_probs, atol=1e-5, rtol=1e-5)


# --- continuing ---


def continued(lm, prompts, length, draw=None, stop=()):
    streams = [TextStream(lm.tokenizer, stop) for _ in prompts]
    tokens = [document_tokens(lm.tokenizer, prompt)[0] for prompt in prompts]
    reasons = decode(
        lm.decoder,
        lm.tokenizer,
        tokens,
        length,
        lambda row, token: streams[row].push(token.index),
        draw,
    )
    for stream in streams:
        stream.finish()
    return [stream.text for stream in streams], reasons


@pytest.mark.parametrize("lm", NAMES, indirect=True)
def test_prompts_are_continued_side_by_side_as_by_generate(lm):
    """Also those that the window does not hold, and past the window."""
    before = None if lm.decoder.memory is None else memory_state(lm)
    prompts = [story(words, seed=words) for words in (2, 5, 9, 14, 30)]
    expected = [lm.generate(prompt, 25) for prompt in prompts]
    texts, reasons = continued(lm, prompts, 25)
    assert texts == expected and set(reasons) <= {"stop", "length"}
    stop = [expected[2][4:7], expected[0][6:8]]
    texts, reasons = continued(lm, prompts, 25, stop=stop)
    assert texts == [lm.generate(prompt, 25, stop=stop) for prompt in prompts]
    assert reasons[0] == reasons[2] == "stop"
    if before is not None:
        assert_same_memory(lm, before)


@pytest.mark.parametrize("lm", ["longmem"], indirect=True)
def test_what_is_drawn_is_what_generate_draws(lm):
    for options in ({"temperature": 0.8}, {"temperature": 1.0, "top_k": 5, "top_p": 0.7}):
        text = lm.generate("Ann saw", 20, seed=5, **options)
        assert continued(lm, ["Ann saw"], 20, Draw(**options, seed=5))[0] == [text]


@pytest.mark.parametrize("lm", ["longmem"], indirect=True)
def test_tokens_come_with_their_log_probabilities(lm):
    prompt, tokens = document_tokens(lm.tokenizer, "Ann saw")[0], []
    decode(lm.decoder, lm.tokenizer, [prompt], 6, lambda row, token: tokens.append(token), top=2)
    row = torch.cat([prompt, torch.tensor([token.index for token in tokens])])
    (found,) = score_rows(lm, [Row(row, len(tokens))], top=2)
    assert_close(torch.tensor([t.log_prob for t in tokens]), found.log_probs, atol=1e-4, rtol=1e-4)
    assert [token.choices for token in tokens] == found.choices.tolist()
    likely = torch.tensor([token.choice_log_probs for token in tokens])
    assert_close(likely, found.choice_log_probs, atol=1e-4, rtol=1e-4)
    assert all(token.log_prob == token.choice_log_probs[0] for token in tokens)


@pytest.mark.parametrize("lm", ["longmem"], indirect=True)
def test_a_stream_of_text_is_the_text_of_the_tokens(lm):
    tokens = document_tokens(lm.tokenizer, "Caf\u00e9 \u4e2d\u6587 owl \U0001f600 house")[0][
        1:
    ].tolist()
    stream = TextStream(lm.tokenizer)
    for token in tokens:
        stream.push(token)
        assert stream.settled == len(stream.text)
    stream.finish()
    assert stream.text == lm.tokenizer.decode(tokens)
    assert [piece.text for piece in stream.pieces] == lm.tokenizer.pieces(tokens)
    assert all(stream.text.startswith(piece.text, piece.offset) for piece in stream.pieces)
    stream = TextStream(lm.tokenizer, ["owl \u4e2d", "owl \U0001f600", "house"])
    ended, settled = False, []
    for token in tokens:
        ended = ended or stream.push(token)
        settled.append(stream.text[: stream.settled])
    assert ended and stream.text == lm.tokenizer.decode(tokens).split("owl")[0]
    assert all("o" not in text for text in settled)
