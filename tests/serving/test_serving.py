"""longmem-serve, asked by the package openai and by httpx, against the Python API."""

import json
import threading

import httpx
import openai
import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.commands import convert
from tests.helpers.hf_models import make_model
from tests.helpers.hf_tokenizers import make_tokenizer
from tests.helpers.model_folders import DOCUMENTS, assert_same_memory, memory_state, story
from tests.helpers.servers import served

PROMPT = "Ann saw the"
DRAWN = {"temperature": 0.8, "top_p": 0.9, "seed": 3}


def load(models, memorized=True):
    lm = LongMem.from_pretrained(models["longmem"])
    if memorized:
        lm.memorize(DOCUMENTS.values(), names=["a.txt", "b.txt"], progress=False)
    return lm


@pytest.fixture(scope="module")
def lm(models):
    """The same model as the server's, for what is expected."""
    return load(models)


@pytest.fixture(scope="module")
def server(models):
    with served(load(models)) as (url, service):
        yield url, service


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server[0] + "/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(server):
    """Posts a JSON body, or bytes; the response."""

    def post(path, body, **options):
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return httpx.post(server[0] + path, content=content, headers=headers, timeout=60, **options)

    return post


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


# --- the memory ---


def test_documents_are_added_and_saved(models, tmp_path):
    path = tmp_path / "m"
    with served(load(models, memorized=False), str(path)) as (url, service):
        assert httpx.get(url + "/memory").json() == {
            "object": "list",
            "data": [],
            "tokens": 0,
            "memory_size": 128,
        }
        for name, text in (("a.txt", DOCUMENTS["a"]), ("b.txt", DOCUMENTS["b"])):
            answer = httpx.post(url + "/memory", json={"name": name, "text": text}, timeout=60)
            tokens = len(document_tokens(service.lm.tokenizer, text)[0])
            assert (answer.status_code, answer.json()) == (201, {"name": name, "tokens": tokens})
            saved = LongMem.from_pretrained(models["longmem"])
            saved.load_memory(path)
            assert_same_memory(saved, memory_state(service.lm))
        assert_same_memory(service.lm, memory_state(load(models)))
        listed = httpx.get(url + "/memory").json()
        assert [entry["name"] for entry in listed["data"]] == ["a.txt", "b.txt"]
        assert sum(entry["tokens"] for entry in listed["data"]) == listed["tokens"]
        before = memory_state(service.lm)
        answer = httpx.post(url + "/memory", json={"name": "a.txt", "text": "other"})
        assert answer.status_code == 409 and answer.json()["error"]["code"] == "document_exists"
        assert_same_memory(service.lm, before)


def test_a_document_is_forgotten(models, tmp_path):
    """Also in the file, and one whose name is a path."""
    path = tmp_path / "m"
    with served(load(models), str(path)) as (url, service):
        body = {"name": "notes/c d.txt", "text": "house"}
        assert httpx.post(url + "/memory", json=body, timeout=60).status_code == 201
        for name in ("a.txt", "notes/c%20d.txt"):
            answer = httpx.delete(f"{url}/memory/{name}", timeout=60)
            plain = name.replace("%20", " ")
            assert (answer.status_code, answer.json()) == (200, {"name": plain, "deleted": True})
        assert [entry["name"] for entry in httpx.get(url + "/memory").json()["data"]] == ["b.txt"]
        answer = httpx.delete(url + "/memory/a.txt")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "document_not_found"
        saved = LongMem.from_pretrained(models["longmem"])
        saved.load_memory(path)
        assert_same_memory(saved, memory_state(service.lm))


def test_a_memory_that_cannot_be_saved_is_left_as_it_was(models, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with served(load(models), str(folder / "m")) as (url, service):
        before = memory_state(service.lm)
        folder.rmdir()
        answer = httpx.post(url + "/memory", json={"name": "c", "text": "house"}, timeout=60)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 500 and message.startswith("the memory was left as it was: ")
        assert_same_memory(service.lm, before)


def test_a_file_that_another_process_has_saved_is_left_to_it(models, tmp_path):
    path = tmp_path / "m"
    other = load(models)
    with served(load(models, memorized=False), str(path)) as (url, service):
        other.save_memory(path)  # it was not there when the server began
        answer = httpx.post(url + "/memory", json={"name": "c", "text": "house"}, timeout=60)
        assert answer.status_code == 500
        assert httpx.get(url + "/memory").json()["data"] == []
    saved = load(models, memorized=False)
    saved.load_memory(path)
    assert_same_memory(saved, memory_state(other))


# --- bad input ---


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
    with served(load(models), api_key="secret") as (url, _):
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            answer = httpx.get(url + "/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        with openai.OpenAI(base_url=url + "/v1", api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["tiny"]


# --- one model for all ---


def test_a_request_has_its_time(models):
    with served(load(models), timeout=2) as (url, _):
        body = {"prompt": PROMPT, "max_tokens": 100_000}
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
