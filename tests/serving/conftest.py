"""A server of a tiny model, and its clients."""

import json

import httpx
import openai
import pytest

from tests.helpers.servers import load_longmem, served


@pytest.fixture(scope="module")
def lm(models):
    """The same model as the server's, for what is expected."""
    return load_longmem(models)


@pytest.fixture(scope="module")
def server(models):
    with served(load_longmem(models)) as (url, service):
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
