"""Texts that are read in segments that overlap, against a plain loop."""

import pytest
import torch
from torch.testing import assert_close

from tests.helpers.model_folders import TEXT, WINDOW, memory_state
from tests.helpers.overlapping_segments import one_by_one

OVERLAP = 5


@pytest.fixture(params=["backbone", "longmem", "memtrm"])
def lm(load_lm, request):
    return load_lm(request.param, segment_overlap=OVERLAP)


def test_scores_and_logits_are_those_of_a_plain_loop(lm):
    tokens = torch.from_numpy(lm.tokenizer.indices(TEXT)).long()
    expected = one_by_one(lm.decoder, tokens, lm.tokenizer.document_start, OVERLAP)
    if lm.decoder.memory is not None:
        lm.decoder.memory.reset()
    own = expected.gather(1, tokens.unsqueeze(1))[:, 0]
    assert_close(lm.score(TEXT).log_probs, own, atol=1e-4, rtol=0)
    source = torch.cat([torch.tensor([lm.tokenizer.document_start]), tokens[:-1]])
    logits = lm.logits(source.unsqueeze(0))[0]
    assert_close(logits.log_softmax(dim=-1), expected, atol=1e-4, rtol=0)


def test_every_token_is_memorized_once(load_lm):
    lm, plain = load_lm(segment_overlap=OVERLAP), load_lm()
    lm.memorize(TEXT, progress=False)
    bank = lm.memory.single_bank(lm.device)
    tokens = [lm.tokenizer.document_start, *lm.tokenizer.indices(TEXT).tolist()]
    assert bank.logs[0].read(bank.held(0)).tolist() == tokens[-len(bank.held(0)) :]
    other, stride = plain.memory.single_bank(plain.device), WINDOW - OVERLAP
    for start in range(0, len(tokens), stride):
        begin = max(0, start - OVERLAP)
        entries = plain.decoder.entries(torch.tensor([tokens[begin : start + stride]]))
        other.write(entries.keys[:, :, start - begin :], entries.values[:, :, start - begin :])
    found = memory_state(lm)[1]
    for name in ("keys", "values", "chunk_keys"):
        assert_close(found[name], memory_state(plain)[1][name], atol=1e-5, rtol=0)


def test_every_token_has_its_own_passages(load_lm):
    """Those that it read itself, not those of the tokens before it in its segment."""
    lm = load_lm(segment_overlap=OVERLAP)
    readings = lm.retrieved(TEXT, per_head=1)
    assert [reading.token for reading in readings] == lm.score(TEXT).tokens
    stride = WINDOW - OVERLAP
    for place, reading in enumerate(readings):
        assert (len(reading.passages) > 0) == (place >= stride)
        segment = place // stride * stride  # which is not in memory yet
        assert all(passage.offset < segment for passage in reading.passages)


def test_an_overlap_has_to_be_less_than_the_window(load_lm):
    for overlap in (WINDOW, -1):
        with pytest.raises(ValueError) as error:
            load_lm(segment_overlap=overlap)
        assert str(error.value) == (
            f"segment_overlap ({overlap}) must be at least 0 and less than tokens_per_sample (16)"
        )
