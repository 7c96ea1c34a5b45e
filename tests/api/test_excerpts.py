"""Excerpts of a memory: what is found, and that the prompt is read after them."""

import pytest
import torch

from longmem_fairseq import LongMem
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.commands import generate
from longmem_fairseq.memory import find_excerpts
from longmem_fairseq.utils.cli import run
from tests.helpers.model_folders import assert_same_memory, memory_state, story

FACT = "Dora was \u4e2d\u6587 and the \U0001f600 saw Emil"


@pytest.fixture
def lm(models):
    """Two documents in memory; the second one states FACT."""
    lm = LongMem.from_pretrained(models["longmem"], memory_size=4096)
    texts = [story(200, seed=1), f"{story(150, seed=2)} {FACT} {story(150, seed=3)}"]
    lm.memorize(texts, names=["a", "b"], progress=False)
    return lm


def test_the_best_excerpt_holds_the_words_of_the_query(lm):
    (found,) = lm.excerpts(FACT, 128)
    assert found.document == "b" and FACT in found.text and found.score > 0
    tokens = document_tokens(lm.tokenizer, f"{story(150, seed=2)} {FACT}", bare=True).size(1)
    assert found.offset < tokens < found.offset + 128 + 1
    several = lm.excerpts(FACT, 128 * 4)
    places = [(one.document, one.offset) for one in several]
    assert places == sorted(places) and FACT in "".join(one.text for one in several)


def test_a_prompt_is_read_after_its_excerpts(lm):
    """On lines of their own, after the beginning of the document; the memory stays as it is."""
    before, prompt = memory_state(lm), FACT[:8]
    tokens = document_tokens(lm.tokenizer, prompt)[0]
    newline = torch.from_numpy(lm.tokenizer.indices("\n")).long()
    bank = lm.memory.single_bank(lm.device)
    expected = [tokens[:1]]
    words = torch.from_numpy(lm.tokenizer.words)
    for found in find_excerpts(bank, 0, tokens[1:], 200, words):
        expected += [bank.logs[0].read(found.tokens).long(), newline]
    assert len(expected) >= 3
    together = torch.cat([*expected, tokens[1:]])
    assert torch.equal(lm.with_excerpts(tokens, 200), together)
    assert torch.equal(lm.with_excerpts(tokens, 0), tokens)
    bare = tokens[1:]  # a chat's template writes the beginning itself
    assert torch.equal(lm.with_excerpts(bare, 200), together[1:])
    assert_same_memory(lm, before)


def test_excerpts_that_the_window_does_not_hold(lm, caplog):
    """Are told of, once they are found."""
    lm.with_excerpts(document_tokens(lm.tokenizer, FACT)[0], 128)
    assert (
        "prompt and excerpts have 1" in caplog.text
        and "and the window 16: the first" in caplog.text
    )
    caplog.clear()
    lm.forget()
    lm.with_excerpts(document_tokens(lm.tokenizer, FACT)[0], 128)
    assert not caplog.text


def test_generation_with_excerpts(lm, models, tmp_path, monkeypatch, capsys):
    """Is that of the longer prompt, in Python and on the command line."""
    tokens = lm.with_excerpts(document_tokens(lm.tokenizer, FACT)[0], 128)
    text = lm.tokenizer.decode(tokens[1:].tolist())
    expected = lm.generate(text, 6)
    assert lm.generate(FACT, 6, excerpts=128) == expected
    lm.save_memory(tmp_path / "m")
    arguments = [str(models["longmem"]), "--memory", str(tmp_path / "m"), "--prompt", FACT]
    arguments += ["--memory-size", "4096", "--max-new-tokens", "6", "--excerpts", "128"]
    monkeypatch.setattr("sys.argv", ["longmem-generate", *arguments])
    generate.main()
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setattr("sys.argv", ["longmem-generate", *arguments[:-1], "127"])
    with pytest.raises(SystemExit) as exit_:
        run(generate.main)
    assert exit_.value.code == 2
    assert "--excerpts (127) must be at least 128, tokens of one\n" in capsys.readouterr().err


def test_what_excerpts_refuse(lm, models):
    with pytest.raises(ValueError, match=r"^excerpts \(127\) must be at least 128, tokens of one$"):
        lm.excerpts(FACT, 127)
    with pytest.raises(ValueError, match="^the text is empty$"):
        lm.excerpts("")
    lm.forget()
    assert lm.excerpts(FACT) == []
    backbone = LongMem.from_pretrained(models["backbone"])
    with pytest.raises(ValueError, match="^this model has no memory: "):
        backbone.generate(FACT, 1, excerpts=128)
