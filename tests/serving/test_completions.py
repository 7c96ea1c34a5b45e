"""Completions and chats, asked by the package openai, against the Python API."""

import json

import httpx
import openai
import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.commands import convert
from tests.helpers.hf_models import make_model
from tests.helpers.hf_tokenizers import make_tokenizer
from tests.helpers.model_folders import DOCUMENTS, assert_same_memory, memory_state, story
from tests.helpers.servers import PROMPT, served

DRAWN = {"temperature": 0.8, "top_p": 0.9, "seed": 3}


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_completions_are_those_of_generate(client, lm, server):
    before = memory_state(server[1].lm)
    for options in ({"temperature": 0}, DRAWN):
        text = lm.generate(PROMPT, 20, **options)
        answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, **options)
        (choice,) = answer.choices
        assert (choice.text, choice.finish_reason, choice.logprobs) == (text, "length", None)
        prompt = len(lm.tokenizer.indices(PROMPT))
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
            *(prompt, 20),
            prompt + 20,
        )
    assert text != lm.generate(PROMPT, 20, **{**DRAWN, "seed": 4})
    greedy = lm.generate(PROMPT, 20)
    stop = greedy[4:7]
    answer = client.completions.create(
        model="tiny", prompt=[PROMPT, "Bob"], max_tokens=20, temperature=0, stop=[stop, "nothing"]
    )
    assert [choice.text for choice in answer.choices] == [
        lm.generate(prompt, 20, stop=stop) for prompt in (PROMPT, "Bob")
    ]
    assert answer.choices[0].finish_reason == "stop"
    assert_same_memory(server[1].lm, before)


@pytest.mark.parametrize("stop", [None, "e"])
def test_a_stream_is_the_completion(client, lm, stop):
    arguments = dict(model="tiny", prompt=PROMPT, max_tokens=30, temperature=0, stop=stop)
    whole = client.completions.create(**arguments, logprobs=2)
    pieces = list(
        client.completions.create(
            **arguments, logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    choices = [choice for piece in pieces for choice in piece.choices]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert whole.choices[0].text == lm.generate(PROMPT, 30, stop=stop or ())
    assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + [
        whole.choices[0].finish_reason
    ]
    assert stop is not None or len(choices) > 5
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        joined = [value for choice in choices for value in getattr(choice.logprobs, name)]
        assert joined == getattr(whole.choices[0].logprobs, name)
    assert pieces[-1].usage == whole.usage


def test_echo_and_log_probabilities_are_those_of_score(client, lm):
    """As evaluation tools ask for them: nothing is written, everything is scored."""
    text = " ".join(story(6, seed=5).split())
    answer = client.completions.create(
        model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=1
    )
    (choice,) = answer.choices
    scores = lm.score(text)
    assert choice.text == text == "".join(scores.tokens) and choice.logprobs.tokens == scores.tokens
    assert choice.logprobs.token_logprobs == pytest.approx(scores.log_probs.tolist(), abs=1e-4)
    offsets = [len("".join(scores.tokens[:i])) for i in range(len(scores.tokens))]
    assert choice.logprobs.text_offset == offsets
    assert all(len(top) == 1 for top in choice.logprobs.top_logprobs)
    answer = client.completions.create(
        model="tiny", prompt=text, max_tokens=4, echo=True, logprobs=0, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text == text + lm.generate(text, 4)
    assert len(choice.logprobs.tokens) == len(scores.tokens) + 4
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.top_logprobs == [{}] * len(choice.logprobs.tokens)


def test_excerpts_are_read_before_the_prompt(client, lm):
    arguments = dict(model="tiny", prompt=DOCUMENTS["a"][:30], max_tokens=5, temperature=0)
    answer = client.completions.create(**arguments, extra_body={"excerpts": 128})
    assert answer.choices[0].text == lm.generate(DOCUMENTS["a"][:30], 5, excerpts=128)
    assert lm.excerpts(DOCUMENTS["a"][:30], 128)[0].document == "a.txt"


def test_passages_come_with_an_answer(client, lm, models):
    arguments = dict(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0)
    answer = client.completions.create(**arguments, extra_body={"retrieved": True})
    choice = answer.choices[0]
    assert choice.text == lm.generate(PROMPT, 5)
    assert 0 < len(choice.retrieved) <= 10
    shares = [passage["share"] for passage in choice.retrieved]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    joined = {
        name: lm.tokenizer.decode(document_tokens(lm.tokenizer, text)[0])
        for name, text in DOCUMENTS.items()
    }
    for passage in choice.retrieved:
        assert passage["document"] in ("a.txt", "b.txt")
        text = joined[passage["document"][0]]
        assert passage["before"] + passage["text"] in text or "\ufffd" in passage["text"]
    # for an answer of one token it is what the Python API says of that token
    answer = client.completions.create(
        **{**arguments, "max_tokens": 1}, extra_body={"retrieved": True}
    )
    (token,) = lm.retrieved(PROMPT + answer.choices[0].text)[-1:]
    share = {}
    for p in token.passages:
        place = (p.document, p.offset)
        share[place] = share.get(place, 0.0) + p.gate * p.weight / len(lm.decoder.gate)
    for passage in answer.choices[0].retrieved:
        place = (passage["document"], passage["offset"])
        assert passage["share"] == pytest.approx(share[place], abs=1e-5)
    assert not hasattr(client.completions.create(**arguments).choices[0], "retrieved")


def test_a_prompt_longer_than_the_window(client, lm):
    text = story(40, seed=7)
    answer = client.completions.create(model="tiny", prompt=text, max_tokens=20, temperature=0)
    assert answer.choices[0].text == lm.generate(text, 20)


def test_a_backbone_is_served_without_a_memory(models):
    lm = LongMem.from_pretrained(models["backbone"])
    with served(lm) as (url, _):
        body = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "retrieved": True}
        (choice,) = httpx.post(url + "/v1/completions", json=body, timeout=60).json()["choices"]
        assert choice["text"] == lm.generate(PROMPT, 5) and choice["retrieved"] == []
        answer = httpx.get(url + "/memory")
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("this model has no memory")


# --- chats ---

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "in the best of all worlds"},
    {"role": "user", "content": "the cat sat on"},
]


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """A converted model with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = make_tokenizer("llama3")
    make_model("llama", folder / "hf", tokenizer, vocab_size=tokenizer.get_vocab_size())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    convert.main(
        ["--model", str(folder / "hf"), "--dest", str(folder / "backbone"), "--search-tokens", "0"]
    )
    return LongMem.from_pretrained(folder / "backbone")


def test_a_chat_is_that_of_generate(chatting):
    lm = chatting
    with served(lm) as (url, _), openai.OpenAI(base_url=url + "/v1", api_key="any") as client:
        arguments = dict(model="tiny", messages=MESSAGES, max_completion_tokens=9, temperature=0)
        text = lm.generate(MESSAGES, 9, chat=True)
        answer = client.chat.completions.create(**arguments, logprobs=True, top_logprobs=2)
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content) == ("assistant", text)
        tokens = choice.logprobs.content
        assert "".join(token.token for token in tokens) == text
        for token in tokens:
            assert [top.logprob for top in token.top_logprobs][0] == token.logprob
            assert bytes(token.bytes).decode() == token.token and len(token.top_logprobs) == 2
        pieces = client.chat.completions.create(**arguments, stream=True)
        assert "".join(p.choices[0].delta.content for p in pieces) == text
        with pytest.raises(openai.BadRequestError, match="is not supported: leave it out"):
            client.chat.completions.create(**arguments, n=2)
