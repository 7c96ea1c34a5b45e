"""LongMem.generate: searches and draws, from a prompt that is read at once."""

import pytest
import torch

from longmem_fairseq import LongMem
from longmem_fairseq.api.decoding import most_likely
from tests.helpers.model_folders import WINDOW, story

KINDS = ("backbone", "longmem", "memtrm")
# within the window, longer than it, and longer than what the memory holds
PROMPTS = {"short": story(3, seed=5), "long": story(40, seed=6), "very long": story(120, seed=7)}


@pytest.fixture
def load(models):
    """Loads a model by name; it has memorized one document."""

    def load_model(name="longmem", memorized=True):
        lm = LongMem.from_pretrained(models[name])
        if memorized and lm.decoder.memory is not None:
            lm.memorize(story(40, seed=1))
        return lm

    return load_model


def prompt_of(lm, text):
    """1 x (1 + T)"""
    return torch.tensor([[lm.dictionary.eos(), *lm.tokenizer.indices(text).tolist()]])


@torch.no_grad()
def from_scratch(lm, text, steps):
    """The most likely token after all tokens so far, which are read anew in every step."""
    tokens = prompt_of(lm, text)
    start = tokens.size(1)
    for _ in range(steps):
        logits = lm.decoder(tokens, incremental_state={})[0][0, -1]
        logits[lm.dictionary.pad()] = float("-inf")
        tokens = torch.cat([tokens, logits.argmax().view(1, 1)], dim=1)
        if tokens[0, -1] == lm.dictionary.eos():
            break
    return lm.tokenizer.decode(tokens[0, start:].tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_generation_is_that_of_every_step_from_scratch(load, kind, prompt):
    lm = load(kind)
    text = lm.generate(PROMPTS[prompt], 3 * WINDOW)
    assert text == from_scratch(lm, PROMPTS[prompt], 3 * WINDOW)
    assert text == lm.generate(PROMPTS[prompt], 3 * WINDOW)
    assert len(text) > 3 * WINDOW


def test_generation_reads_the_memory_and_leaves_it(load):
    lm = load()
    bank = lm.memory.single_bank(lm.device)
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    text = lm.generate(PROMPTS["short"], 2 * WINDOW)
    assert lm.memory.single_bank(lm.device) is bank
    assert all(torch.equal(bank.state_dict()[name], before[name]) for name in before)
    empty = load(memorized=False).generate(PROMPTS["short"], 2 * WINDOW)
    assert text != empty
    lm.forget()
    assert lm.generate(PROMPTS["short"], 2 * WINDOW) == empty


@torch.no_grad()
def beams_from_scratch(lm, text, steps, beam):
    """A beam search without caches, arrays and reordering; the best mean log-probability wins."""
    start, eos = prompt_of(lm, text)[0].tolist(), lm.dictionary.eos()
    running, ended = [(0.0, [])], []
    for length in range(1, steps + 1):
        longer = []
        for score, tokens in running:
            read = torch.tensor([start + tokens])
            logits = lm.decoder(read, incremental_state={})[0][0, -1]
            logits[lm.dictionary.pad()] = float("-inf")
            log_probs = logits.log_softmax(0).tolist()
            longer += [(score + value, [*tokens, i]) for i, value in enumerate(log_probs)]
        best = sorted(longer, key=lambda hypothesis: -hypothesis[0])[: 2 * beam]
        done = [tokens[-1] == eos or length == steps for _, tokens in best]
        ended += [(s / length, t) for (s, t), is_done in zip(best, done, strict=True) if is_done][
            :beam
        ]
        running = [h for h, is_done in zip(best, done, strict=True) if not is_done][:beam]
        ended = sorted(ended, key=lambda hypothesis: -hypothesis[0])[:beam]
        if len(ended) == beam and running and running[0][0] / length <= ended[-1][0]:
            break
    return lm.tokenizer.decode(ended[0][1])


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_is_that_of_every_hypothesis_from_scratch(load, kind):
    """tests/conversion/test_hf_generation.py compares it with transformers'."""
    lm = load(kind)
    text = lm.generate(PROMPTS["short"], WINDOW, beam=3)
    assert text == beams_from_scratch(lm, PROMPTS["short"], WINDOW, 3)


def test_a_wider_beam_finds_something_more_likely(load):
    lm = load("backbone")
    texts = [lm.generate(PROMPTS["short"], 8, beam=beam) for beam in (1, 5)]
    scores = [float(lm.score(PROMPTS["short"] + text).log_probs[-8:].sum()) for text in texts]
    assert texts[0] != texts[1] and scores[1] > scores[0]


def test_the_same_seed_draws_the_same(load):
    lm = load()
    options = {"max_new_tokens": 20, "temperature": 1.0}
    torch.manual_seed(3)
    following = torch.rand(1)
    torch.manual_seed(3)
    first = lm.generate(PROMPTS["long"], seed=1, **options)
    assert torch.equal(torch.rand(1), following)  # PyTorch's own generator was left alone
    assert lm.generate(PROMPTS["long"], seed=1, **options) == first
    assert lm.generate(PROMPTS["long"], seed=2, **options) != first
    torch.manual_seed(1)
    assert lm.generate(PROMPTS["long"], **options) == first
    assert lm.generate(PROMPTS["long"], **options) != first  # it went on


def test_a_draw_from_one_token_is_greedy(load):
    lm = load()
    greedy = lm.generate(PROMPTS["long"], 20)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"top_k": 5, "top_p": 1e-6}):
        assert lm.generate(PROMPTS["long"], 20, temperature=1.0, **options) == greedy
    assert lm.generate(PROMPTS["long"], 20, temperature=1e-3) == greedy


def test_the_lowest_temperature_does_not_overflow_float16(models):
    lm = LongMem.from_pretrained(models["backbone"], dtype="float16")
    lm.decoder.output_projection.weight.data *= 100 / lm.logits([[4]]).abs().max()
    greedy = lm.generate(PROMPTS["short"], 5)
    assert lm.generate(PROMPTS["short"], 5, temperature=1e-3) == greedy


def test_draws_follow_the_distribution(load):
    lm, counts = load(), {}
    logits = lm.logits(prompt_of(lm, PROMPTS["short"]))[0, -1]
    for seed in range(100):
        text = lm.generate(PROMPTS["short"], 1, temperature=0.5, top_k=2, seed=seed)
        counts[text] = counts.get(text, 0) + 1
    best = logits.topk(2)
    expected = 100 * (best.values / 0.5).softmax(0)
    assert set(counts) == {lm.tokenizer.decode([i]) for i in best.indices}
    for index, count in zip(best.indices, expected, strict=True):
        assert abs(counts[lm.tokenizer.decode([index])] - count) < 4 * 100**0.5 / 2


@pytest.mark.parametrize("top_k", [0, 1, 3, 9])
@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.4, 0.9, 1.0])
def test_the_most_likely_tokens_one_by_one(top_k, top_p):
    torch.manual_seed(1)
    log_probs = (3 * torch.randn(4, 2, 7)).log_softmax(-1)
    found = most_likely(log_probs.clone(), top_k, top_p)
    for row, values in zip(found.view(-1, 7), log_probs.view(-1, 7), strict=True):
        order = sorted(range(7), key=lambda i: -values[i])[: top_k or None]
        total, kept = sum(values[i].exp() for i in order), []
        for i in order:
            if top_p == 0 or sum(values[j].exp() for j in kept) / total < top_p:
                kept.append(i)
        assert torch.isfinite(row).nonzero().flatten().tolist() == sorted(kept)
        assert torch.equal(row[kept], values[kept])


def test_the_text_ends_before_a_stop_string(load):
    lm = load()
    whole = lm.generate(PROMPTS["short"], 60)
    middle = whole[20:26]  # of several tokens
    assert len(lm.tokenizer.indices(middle)) > 1
    assert lm.generate(PROMPTS["short"], 60, stop=middle) == whole[: whole.index(middle)]
    other = whole[5:8]
    end = min(whole.index(middle), whole.index(other))
    assert lm.generate(PROMPTS["short"], 60, stop=[middle, other]) == whole[:end]
    assert lm.generate(PROMPTS["short"], 60, stop=["not said"]) == whole


def test_a_stop_string_spares_the_other_steps(load, monkeypatch):
    lm, steps = load(), []
    whole = lm.generate(PROMPTS["short"], 60)
    read = lm.decoder.read
    monkeypatch.setattr(lm.decoder, "read", lambda *args: steps.append(1) or read(*args))
    lm.generate(PROMPTS["short"], 60, stop=whole[5:8], beam=1)
    assert len(steps) < 15


def test_a_document_ends(load):
    """Where eos is the most likely token, nothing more comes."""
    lm = load()
    with torch.no_grad():
        lm.decoder.backbone.output_projection.bias[lm.dictionary.eos()] += 1000
    assert lm.generate(PROMPTS["short"], 20) == lm.generate(PROMPTS["short"], 20, beam=2) == ""
