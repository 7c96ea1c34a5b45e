"""Converted models continue prompts as transformers does: special tokens, ends, beams and chats."""

import json
import logging
import sys

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")

from tokenizers.processors import TemplateProcessing  # noqa: E402

from longmem_fairseq import LongMem  # noqa: E402
from longmem_fairseq.commands import convert, generate  # noqa: E402
from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds  # noqa: E402
from tests.helpers.hf_models import make_model  # noqa: E402
from tests.helpers.hf_pairs import MARKS, PROMPT, STEPS, Pair, log_probs  # noqa: E402
from tests.helpers.hf_tokenizers import make_tokenizer  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{{ '<|0|>' + message['role'] + '\n' + message['content'] + '<|1|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|0|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs longmem-generate; returns what it prints and its exit status."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["longmem-generate", *map(str, arguments)])
        capsys.readouterr()  # of the conversion
        try:
            generate.cli()
        except SystemExit as exited:
            return capsys.readouterr().err, exited.code
        return capsys.readouterr().out, 0

    return run


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


def test_padding_that_is_an_ordinary_token_is_one(tmp_path):
    pad = make_tokenizer("llama3").token_to_id("!")
    pair = Pair(tmp_path, pad_token_id=pad)
    lm, text = pair.converted(tokens_per_sample=64), "Stop! Help!"
    ids = pair.ids(text)
    assert ids[0].tolist().count(pad) == 2
    assert_close(lm.score(text).log_probs, log_probs(pair.model, ids), atol=1e-4, rtol=0)
    assert "pad" not in lm.tokenizer.ids.specials
    assert lm.generate(text, STEPS) == pair.text(pair.generated(ids))


def test_a_special_token_for_padding_is_fairseqs(tmp_path):
    pair = Pair(tmp_path, pad_token_id=0)
    assert pair.converted().tokenizer.ids.specials == {"eos": 2, "bos": 1, "pad": 0}


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_every_end_of_config_and_generation_config_ends(pair, file, beam):
    whole = pair.generated(num_beams=beam)
    end = int(whole[7])  # also an ordinary token may be an end
    pair.change("generation_config.json", eos_token_id=[2, end])
    if file == "config.json":  # which transformers reads where there is no other
        (pair.hf / "generation_config.json").unlink()
        pair.change(eos_token_id=[2, end])
    expected = pair.generated(num_beams=beam)
    assert len(expected) < STEPS and expected[-1] == end
    lm = pair.converted(tokens_per_sample=64)
    assert lm.generate(PROMPT, STEPS, beam=beam) == pair.text(expected[:-1])
    assert lm.tokenizer.ids.ends == [2, end]
    assert CheckpointIds.load(pair.folder, lm.dictionary).ends == [2, end]


@pytest.mark.parametrize("steps", [1, 2, 5, STEPS])
@pytest.mark.parametrize("beam", [2, 5])
def test_beams_are_ranked_as_transformers_ranks_them(pair, beam, steps):
    """With ends that are often met, and hypotheses that --max-new-tokens cuts off."""
    ends = [2, *range(3, 400, 13)]
    pair.change("generation_config.json", eos_token_id=ends)
    lm, lengths = pair.converted(tokens_per_sample=64), set()
    for prompt in ("the cat", "a mat, ", PROMPT, "return x"):
        expected = pair.generated(pair.ids(prompt), num_beams=beam, max_new_tokens=steps)
        lengths.add(len(expected))
        if expected[-1] in ends:
            expected = expected[:-1]
        assert lm.generate(prompt, steps, beam=beam) == pair.text(expected), prompt
    assert steps == 1 or len(lengths) > 1 or lengths == {steps}


def test_gemma_3_that_also_sees_begins_as_its_tokenizer_does(tmp_path):
    tokenizer = make_tokenizer("gemma")
    tokenizer.post_processor = TemplateProcessing("</s> $A", special_tokens=[("</s>", 2)])
    size = tokenizer.get_vocab_size()
    model = make_model("gemma3", tmp_path / "hf", tokenizer, vocab_size=size, eos_token_id=1)
    path = tmp_path / "hf" / "config.json"
    text = json.loads(path.read_text())
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        text.pop(name, None)
    config = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text}
    path.write_text(json.dumps(config))
    arguments = ["--model", str(tmp_path / "hf"), "--dest", str(tmp_path / "ours")]
    convert.main([*arguments, "--search-tokens", "0"])
    lm = LongMem.from_pretrained(tmp_path / "ours", tokens_per_sample=32)
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    assert ids[0, 0] == 2 and lm.tokenizer.document_start == lm.tokenizer.to_dictionary[2] == 0
    assert lm.tokenizer.ids.ends == [1, 106]
    assert_close(lm.score(PROMPT).log_probs, log_probs(model, ids), atol=1e-4, rtol=0)


def test_added_tokens_above_the_embedding_are_left_out(tmp_path, caplog):
    size = make_tokenizer("llama3").get_vocab_size() + len(MARKS) - 1
    pair = Pair(tmp_path, vocab_size=size)
    lm = pair.converted(tokens_per_sample=64)
    assert f"1 added token left out, above the embedding's {size} rows ('<|59|>')" in caplog.text
    assert "<|58|>" in lm.tokenizer.special_tokens and "<|59|>" not in lm.tokenizer.special_tokens
    read = lm.tokenizer.encode_spelled("<|58|><|59|>").tolist()
    assert read[0] == size - 1 and lm.tokenizer.joined_bytes(read[1:]) == b"<|59|>"
    assert len(lm.tokenizer.to_dictionary) == size
    assert lm.generate(PROMPT, STEPS) == pair.text(pair.generated())


def test_a_stop_string_may_name_a_special_token(pair):
    whole, lm = pair.generated(), pair.converted(tokens_per_sample=64)
    first = next(i for i, id_ in enumerate(whole.tolist()) if pair.tokenizer.decode(id_) in MARKS)
    mark = pair.tokenizer.decode(whole[first])
    for beam, options in ((1, {}), (1, {"temperature": 1.0, "top_k": 1})):
        text = lm.generate(PROMPT, STEPS, stop=mark, beam=beam, **options)
        assert text == pair.text(whole[:first])
    assert lm.generate(PROMPT, STEPS) == pair.text(whole) != text


def test_special_tokens_that_a_prompt_spells_out(pair, caplog):
    lm, prompt = pair.converted(tokens_per_sample=64), "<|0|>the cat<|1|>"
    ids = pair.ids(prompt)
    assert ids[0, 0] == 1 and ids[0, 1] == pair.tokenizer.convert_tokens_to_ids("<|0|>")
    assert lm.generate(prompt, STEPS, special_tokens=True) == pair.text(pair.generated(ids))
    # the beginning, spelled out too, does not stand there twice
    assert lm.generate("<s>" + prompt, STEPS, special_tokens=True) == pair.text(pair.generated(ids))
    scores = lm.score(prompt, special_tokens=True)
    assert_close(scores.log_probs, log_probs(pair.model, ids), atol=1e-4, rtol=0)
    assert "".join(scores.tokens) == prompt
    assert "spells out" not in caplog.text
    as_text = lm.generate(prompt, STEPS)
    assert (
        "the prompt spells out <|0|>, <|1|>, which is read as text: special_tokens" in caplog.text
    )
    assert as_text != lm.generate(prompt, STEPS, special_tokens=True)
    with pytest.raises(ValueError, match="nothing but the beginning of a document"):
        lm.score("<s>", special_tokens=True)
    alone = torch.tensor([[1]])
    assert lm.generate("<s>", 5, special_tokens=True) == pair.text(
        pair.generated(alone, max_new_tokens=5)
    )


def test_a_chat_is_written_with_the_models_own_template(tmp_path, caplog):
    pair = Pair(tmp_path, {"chat_template": TEMPLATE})
    lm = pair.converted(tokens_per_sample=64)
    messages = [{"role": "user", "content": "the cat"}]
    for prompt, said in (
        ("the cat", messages),
        (messages, messages),
        ("<|1|> sat", [{"role": "user", "content": "<|1|> sat"}]),
    ):
        ids = pair.tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
        expected = pair.generated(torch.tensor([ids]))
        assert lm.generate(prompt, STEPS, chat=True) == pair.text(expected)
    assert caplog.text == ""


def test_the_command_reads_special_tokens_and_chats(tmp_path, call):
    pair = Pair(tmp_path, {"chat_template": TEMPLATE})
    lm, prompt = pair.converted(), "<|0|>user\nthe cat<|1|><|0|>assistant\n"
    line = (pair.folder, "--max-new-tokens", 9)
    expected = pair.text(pair.generated(pair.ids(prompt), max_new_tokens=9))
    assert call(*line, "--special-tokens", "--prompt", prompt) == (expected + "\n", 0)
    bare = pair.generated(pair.ids(prompt)[:, 1:], max_new_tokens=9)
    assert call(*line, "--chat", "--prompt", "the cat") == (pair.text(bare) + "\n", 0)
    stop = pair.tokenizer.decode(next(i for i in bare if pair.tokenizer.decode(i) in MARKS))
    said = lm.generate("the cat", 9, chat=True, stop=stop)
    assert call(*line, "--chat", "--stop", stop, "--prompt", "the cat") == (said + "\n", 0)
    error = "--chat reads special tokens already: leave --special-tokens out"
    assert call(*line, "--chat", "--special-tokens", "--prompt", "a") == (
        f"longmem-generate: error: {error}\n",
        2,
    )


def test_a_template_that_refuses_is_one_line(tmp_path, call):
    pair = Pair(tmp_path)
    (pair.hf / "chat_template.jinja").write_text("{{ raise_exception('no user') }}")
    pair.converted()
    error = "the model's chat template fails (TemplateError: no user)"
    assert call(pair.folder, "--chat", "--prompt", "a") == (
        f"longmem-generate: error: {error}\n",
        2,
    )


def test_a_model_without_a_template_or_special_tokens(pair, models):
    with pytest.raises(ValueError, match="the model has no chat template"):
        pair.converted().generate("a", chat=True)
    lm = LongMem.from_pretrained(models["backbone"])
    with pytest.raises(ValueError, match="the model has no chat template"):
        lm.generate("a", chat=True)
    with pytest.raises(ValueError, match="the model's tokenizer has no special tokens"):
        lm.generate("a", special_tokens=True)
    with pytest.raises(ValueError, match="messages are a chat: give chat too"):
        lm.generate([{"role": "user", "content": "a"}])


def test_what_is_not_read_of_a_long_prompt_is_said(pair, caplog):
    lm = pair.converted(tokens_per_sample=16)
    prompt = "the cat sat on the mat, " * 9
    ids = pair.ids(prompt)
    length = ids.size(1)
    lm.generate(prompt, 1)
    # the window goes on in halves of 8
    unread = next(n for n in range(0, length, 8) if length - n <= 16)
    assert f"the prompt has {length} tokens and the window 16: the first {unread} are not read" in (
        caplog.text
    )
    assert "tokens_per_sample widens the window" in caplog.text
    caplog.clear()
    wide = LongMem.from_pretrained(pair.folder, tokens_per_sample=length)
    assert wide.generate(prompt, 1) == pair.text(pair.generated(ids, max_new_tokens=1))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_end_that_is_no_special_token(tmp_path):
    ordinary = make_tokenizer("llama3").token_to_id("!")
    pair = Pair(tmp_path, {"eos_token": "<|5|>"}, eos_token_id=ordinary)
    ids = pair.converted().tokenizer.ids
    end = pair.tokenizer.convert_tokens_to_ids("<|5|>")
    assert ids.specials == {"eos": end, "bos": 1} and ids.ends == [ordinary, end]
    (pair.hf / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=rf"eos_token_id \({ordinary}\) is no special token of"):
        convert.main(["--model", str(pair.hf), "--dest", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_a_table_of_ids_of_before_is_read(tmp_path):
    ids = CheckpointIds(20, {"eos": 2, "bos": 1}, "bos")
    (tmp_path / "ids.json").write_text('{"num_ids": 20, "start": "bos", "eos": 2, "bos": 1}')
    found = CheckpointIds.load(tmp_path, ids.dictionary())
    assert (found.ends, found.end_indices, found.chat_template) == ([2], [2], None)
    for change in ({"ends": [20]}, {"ends": 3}, {"chat_template": 1}, {"named_tokens": {"a": 1}}):
        table = {"num_ids": 20, "start": "bos", "eos": 2, "bos": 1, **change}
        (tmp_path / "ids.json").write_text(json.dumps(table))
        with pytest.raises(ValueError, match="is not a table of ids"):
            CheckpointIds.load(tmp_path, ids.dictionary())
