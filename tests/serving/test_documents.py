"""The documents of a served memory, and the file that it is saved in."""

import httpx

from longmem_fairseq import LongMem
from longmem_fairseq.api.prompts import document_tokens
from tests.helpers.model_folders import DOCUMENTS, assert_same_memory, memory_state
from tests.helpers.servers import load_longmem, served


def test_documents_are_added_and_saved(models, tmp_path):
    path = tmp_path / "m"
    with served(load_longmem(models, memorized=False), str(path)) as (url, service):
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
        assert_same_memory(service.lm, memory_state(load_longmem(models)))
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
    with served(load_longmem(models), str(path)) as (url, service):
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
    with served(load_longmem(models), str(folder / "m")) as (url, service):
        before = memory_state(service.lm)
        folder.rmdir()
        answer = httpx.post(url + "/memory", json={"name": "c", "text": "house"}, timeout=60)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 500 and message.startswith("the memory was left as it was: ")
        assert_same_memory(service.lm, before)


def test_a_file_that_another_process_has_saved_is_left_to_it(models, tmp_path):
    path = tmp_path / "m"
    other = load_longmem(models)
    with served(load_longmem(models, memorized=False), str(path)) as (url, service):
        other.save_memory(path)  # it was not there when the server began
        answer = httpx.post(url + "/memory", json={"name": "c", "text": "house"}, timeout=60)
        assert answer.status_code == 500
        assert httpx.get(url + "/memory").json()["data"] == []
    saved = load_longmem(models, memorized=False)
    saved.load_memory(path)
    assert_same_memory(saved, memory_state(other))
