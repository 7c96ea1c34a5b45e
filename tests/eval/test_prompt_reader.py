"""PromptReader: every fast path against plain forwards of the model."""

import pytest
import torch
from torch.testing import assert_close

from eval.common.prompt_reader import Demonstrations, PromptReader
from longmem_fairseq import LongMem

WINDOW = 24
KINDS = ("backbone", "longmem", "memtrm")


def tokens(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 300, (count,), generator=generator)


@pytest.fixture(params=KINDS)
def reader(request, models):
    options = {} if request.param == "backbone" else {"memory_size": 256}
    return PromptReader(
        LongMem.from_pretrained(models[request.param], tokens_per_sample=WINDOW, **options)
    )


@torch.no_grad()
def plain(reader, memorized, text):
    """Log-probabilities after every token of *text*, one segment that follows what was memorized."""
    fresh = torch.tensor([True])
    if reader.has_memory:
        reader.decoder.memory.reset()
        for segment in memorized:
            reader.decoder(segment[None], new_document=fresh)
            fresh = torch.tensor([False])
    return reader.decoder(text[None], new_document=fresh)[0][0].log_softmax(dim=-1)


def test_rows_after_a_prefix_are_what_a_plain_forward_says(reader):
    memorized, prefix = tokens(60, 1), tokens(7, 2)
    rows = [tokens(length, 3 + length) for length in (5, 1, 11, 17)]
    reader.forget()
    reader.memorize(memorized)
    scored = reader.score(prefix, rows)
    again = reader.score(prefix, rows)  # nothing was added to the memory
    for row, found, same in zip(rows, scored, again, strict=True):
        expected = plain(reader, memorized.split(WINDOW), torch.cat([prefix, row[:-1]]))
        expected = expected[len(prefix) - 1 :]
        likelihoods = expected.gather(1, row[:, None]).flatten()
        assert_close(found.log_probabilities, likelihoods, atol=1e-4, rtol=0)
        assert torch.equal(found.choices, expected.argmax(dim=-1))
        assert torch.equal(found.log_probabilities, same.log_probabilities)


def test_a_prefix_of_one_token(reader):
    reader.forget()
    rows = [tokens(5, 1), tokens(WINDOW, 2)]
    for row, found in zip(rows, reader.score(reader.start, rows), strict=True):
        expected = plain(reader, [], torch.cat([reader.start, row[:-1]]))
        likelihoods = expected.gather(1, row[:, None]).flatten()
        assert_close(found.log_probabilities, likelihoods, atol=1e-4, rtol=0)


def test_a_row_longer_than_the_window_is_read_on_from_memory(reader):
    memorized, row, half = tokens(30, 1), tokens(WINDOW + 9, 2), WINDOW // 2
    reader.forget()
    reader.memorize(memorized)
    (found,) = reader.score(reader.start, [row])
    text = torch.cat([reader.start, row[:-1]])
    before = [*memorized.split(WINDOW), text[:half]]
    expected = plain(reader, before, text[half:])
    assert len(found.choices) == WINDOW + 9 - half
    likelihoods = expected.gather(1, row[half:, None]).flatten()
    assert_close(found.log_probabilities, likelihoods, atol=1e-4, rtol=0)


def test_rows_side_by_side_have_to_fit(reader):
    with pytest.raises(ValueError, match="tokens-per-sample.*too small for 2 rows of up to 27"):
        reader.score(tokens(10), [tokens(3), tokens(18)])


def test_generation_is_greedy_and_stops(reader):
    memorized, prefix, rows = tokens(60, 1), tokens(5, 2), torch.stack([tokens(4, 3), tokens(4, 4)])
    expected = []
    for row in rows:
        text = torch.cat([prefix, row])
        for _ in range(6):
            following = plain(reader, memorized.split(WINDOW), text)[-1].argmax()
            text = torch.cat([text, following[None]])
        expected.append(text[-6:])
    reader.forget()
    reader.memorize(memorized)
    none, expected = torch.tensor([], dtype=torch.long), torch.stack(expected)
    assert torch.equal(reader.generate(prefix, rows, 6, none), expected)
    # once both rows have had a token that ends them, nothing more is written
    stop = expected[:, 2]
    last = max(int(torch.isin(row, stop).nonzero()[0]) for row in expected)
    assert torch.equal(reader.generate(prefix, rows, 6, stop), expected[:, : last + 1])


def test_segments_read_side_by_side_are_those_read_one_by_one(reader, monkeypatch):
    if not reader.has_memory:
        pytest.skip("a backbone alone memorizes nothing")
    monkeypatch.setattr("eval.common.prompt_reader.MEMORIZED_AT_ONCE", 2 * WINDOW)
    text = tokens(5 * WINDOW + 7)
    parts = [reader.decoder.entries(segment[None]) for segment in text.split(WINDOW)]
    found, expected = reader.entries(text), zip(*parts, strict=True)
    for tensor, tensors in zip(found[:2], expected, strict=False):
        assert_close(tensor, torch.cat(tensors, dim=2), atol=1e-5, rtol=0)


def test_segments_that_overlap(reader, monkeypatch):
    if not reader.has_memory:
        pytest.skip("a backbone alone memorizes nothing")
    monkeypatch.setattr("eval.common.prompt_reader.MEMORIZED_AT_ONCE", 2 * WINDOW)
    monkeypatch.setattr(reader.decoder, "overlap", 9)
    text, stride, parts = tokens(5 * WINDOW + 7), WINDOW - 9, []
    for start in range(0, len(text), stride):
        begin = max(0, start - 9)
        entries = reader.decoder.entries(text[None, begin : start + stride])
        parts.append(entries.keys[:, :, start - begin :])
    assert_close(reader.entries(text).keys, torch.cat(parts, dim=2), atol=1e-5, rtol=0)


def test_the_memory_has_room_for_all_that_is_memorized(reader):
    reader.forget()
    reader.memorize(tokens(256))
    if reader.has_memory:
        with pytest.raises(
            ValueError, match=r"--memory-size \(256\) is too small for the 258 tokens"
        ):
            reader.memorize(tokens(1))  # a whole chunk of 2
        reader.forget()
        assert reader.lm.memory.single_bank(reader.lm.device).num_tokens == [0]


def test_demonstrations_move_from_the_window_to_the_memory(reader):
    in_memory = [tokens(9, 1), tokens(30, 2)]
    in_context = [tokens(6, 3), tokens(5, 4), tokens(4, 5)]
    shown = Demonstrations(reader, in_memory, in_context, longest=40)
    # 24 - 1 for the start: 15 tokens of demonstrations fit beside 8
    assert torch.equal(shown.before(8), torch.cat([reader.start, *in_context]))
    assert torch.equal(shown.before(9), torch.cat([reader.start, *in_context[1:]]))
    assert torch.equal(shown.before(14), torch.cat([reader.start, *in_context[1:]]))
    assert shown.memorized == 39 + 6
    assert torch.equal(shown.before(40), reader.start)
    assert shown.memorized == 39 + 15
    if reader.has_memory:
        bank = reader.lm.memory.single_bank(reader.lm.device)
        # a start of its own before those in memory, and one that completes the chunk of the odd one
        assert (bank.num_tokens, bank.num_pending) == ([1 + 39 + 6 + (5 + 1) + 4], [0])
        other = reader.lm.memory._new_bank(1, reader.lm.device)
        first = torch.cat([reader.start, *in_memory])
        odd = torch.cat([in_context[1], reader.start])
        for text in (*first.split(WINDOW), in_context[0], odd, in_context[2]):
            other.write(**reader.decoder.entries(text[None])._asdict())
        assert_close(bank.state_dict()["keys"], other.state_dict()["keys"], atol=1e-5, rtol=0)
