"""Requests that are refused, each with its reason, and clients that wait for one model."""

import json
import threading

import httpx
import openai
import pytest

from tests.helpers.model_folders import assert_same_memory, memory_state, story
from tests.helpers.servers import PROMPT, load_longmem, served


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": None}, "prompt (None) must be a text, or a list of texts"),
        ({"prompt": [1, 2]}, "prompt ([1, 2]) must be a text, or a list of texts"),
        ({"prompt": "\ud800"}, "prompt: the text holds half of a surrogate pair, which is no text"),
        ({"n": 2}, "n (2) is not supported: leave it out"),
        ({"max_tokens": 0}, "max_tokens (0) must be a whole number from 1 to 1000000"),
        ({"max_tokens": "9"}, "max_tokens (9) must be a whole number from 1 to 1000000"),
        ({"temperature": -1}, "temperature (-1.0) must be 0, or finite and at least 0.001"),
        ({"temperature": True}, "temperature (True) must be a number"),
        ({"temperature": 10**400}, "temperature (1" + "0" * 59 + "...) must be a smaller number"),
        ({"top_p": 0}, "top_p (0.0) must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p (1.5) must be above 0 and at most 1"),
        ({"seed": 1.5}, "seed (1.5) must be a whole number from "),
        ({"stop": [""]}, "stop holds an empty string, which every text contains"),
        ({"stop": 3}, "stop (3) must be a text, or a list of texts"),
        ({"logprobs": 21}, "logprobs (21) must be a whole number from 0 to 20"),
        ({"stream": "yes"}, "stream (yes) must be true or false"),
        ({"retrieved": 1}, "retrieved (1) must be true or false"),
        ({"excerpts": 127}, "excerpts (127) must be at least 128, tokens of one"),
        ({"excerpts": -1}, "excerpts (-1) must be a whole number from 0 to 1000000"),
        ({"logit_bias": {"5": 1}}, "logit_bias ({'5': 1}) is not supported: leave it out"),
        ({"top_k\n": 5}, "top_k is no field of a request: expected prompt, "),
        ({"stream_options": 1}, "stream_options (1) must be an object"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_fields(ask, fields, message, stream):
    answer = ask("/v1/completions", {"prompt": PROMPT, "stream": stream, **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["message"].startswith(message) and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the request is not JSON ("),
        (b"[" * 100_000, 400, "the request is not JSON ("),
        (b"\xff", 400, "the request is not JSON ("),
        (b"[]", 400, "the request must be a JSON object"),
        (b" " * (1 << 20) + b"{}", 413, "a request may have 1,048,576 bytes (--max-body)"),
        (b'{"prompt": "a", "model": "gpt"}', 404, "model ('gpt') is not served here: this is tiny"),
    ],
)
def test_bad_bodies(ask, body, status, message):
    answer = ask("/v1/completions", body)
    assert answer.status_code == status and answer.json()["error"]["message"].startswith(message)


def test_bad_chats(ask, client):
    for messages, message in (
        ([], "messages ([]) must be a list"),
        (["hi"], "messages: hi must be "),
        ([{"role": "user", "content": 3}], "messages: {'role': 'user', 'content': 3} must be "),
        ([{"role": "user", "content": "hi"}], "this model has no chat template"),
    ):
        answer = ask("/v1/chat/completions", {"messages": messages})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(message)
    with pytest.raises(openai.BadRequestError, match="this model has no chat template"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])


def test_bad_documents(ask, server):
    before = memory_state(server[1].lm)
    for body, message in (
        ({"name": "c"}, "text must be a text that is not empty"),
        ({"name": "", "text": "c"}, "name must be a text that is not empty"),
        ({"name": "c", "text": 5}, "text must be a text that is not empty"),
        ({"name": "\udc00", "text": "c"}, "name holds half of a surrogate pair"),
        ({"name": "c", "text": "c", "offset": 1}, "'offset' is no field of a document"),
    ):
        answer = ask("/memory", body)
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message)
    assert_same_memory(server[1].lm, before)


def test_what_a_page_in_a_browser_may_not_do(ask, server):
    """Other types of content need no permission there, and another name may lead to this machine."""
    answer = ask("/memory", {"name": "c", "text": "c"}, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    answer = httpx.get(server[0] + "/memory", headers={"Host": "evil.example:80"})
    assert answer.status_code == 400
    assert httpx.get(server[0] + "/nothing").json()["error"]["message"] == "GET /nothing: Not Found"
    assert httpx.get(server[0] + "/v1/completions").status_code == 405


def test_a_key_is_asked_for(models):
    with served(load_longmem(models), api_key="secret") as (url, _):
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            answer = httpx.get(url + "/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        with openai.OpenAI(base_url=url + "/v1", api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_request_has_its_time(models):
    with served(load_longmem(models), timeout=2) as (url, _):
        # greedily: a draw may end the document in time
        body = {"prompt": PROMPT, "max_tokens": 100_000, "temperature": 0}
        answer = httpx.post(url + "/v1/completions", json=body, timeout=60)
        error = answer.json()["error"]
        assert answer.status_code == 503 and error["code"] == "timeout"
        assert error["message"].startswith("no answer within 2 seconds (--timeout)")
        lines = httpx.post(url + "/v1/completions", json={**body, "stream": True}, timeout=60).text
        assert json.loads(lines.split("data: ")[-1])["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_lets_others_in(server, ask, stream):
    """Long before the time of a request is over."""
    body = {"prompt": PROMPT, "max_tokens": 1_000_000, "stream": stream}
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=1) as client:
        with client.stream("POST", server[0] + "/v1/completions", json=body) as answer:
            for _ in zip(range(3), answer.iter_lines(), strict=False):
                pass
            raise httpx.ReadTimeout("enough")
    answer = ask("/v1/completions", {"prompt": PROMPT, "max_tokens": 2})
    assert answer.status_code == 200


def test_clients_at_once_do_not_read_each_other(server, lm):
    """Each has a text of its own, longer than the window; some add a document of theirs."""
    texts = [story(30, seed=100 + i) for i in range(6)]
    expected, found = [lm.generate(text, 8) for text in texts], [None] * len(texts)
    assert len(set(expected)) > 3

    def work(i):
        body = {"prompt": texts[i], "max_tokens": 8, "temperature": 0}
        found[i] = httpx.post(server[0] + "/v1/completions", json=body, timeout=120).json()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["choices"][0]["text"] for answer in found] == expected
