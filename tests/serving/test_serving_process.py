"""longmem-serve as a process: its command line, SIGTERM, and SIGKILL while a document is added."""

import signal
import sys
import threading
import time

import httpx
import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.commands import serve
from tests.helpers.model_folders import memory_state, story
from tests.helpers.servers import server_process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "{longmem} --host 0.0.0.0",
            "--host (0.0.0.0) can be reached from other machines: give an",
        ),
        ("{longmem} --host example.org", "--host (example.org) can be reached from other machines"),
        ("{longmem} --host 127.0.0.1 --port 70000", "--port (70000) must be from 0 to 65535"),
        ("{longmem} --timeout 0", "--timeout (0) must be above 0"),
        ("{longmem} --timeout nan", "--timeout (nan) must be above 0"),
        ("{longmem} --max-body 0", "--max-body (0) must be from 1 to 1024"),
        ("{longmem} --api-key é", "--api-key must be of printable ASCII characters"),
        ("{longmem} --memory nowhere/m", "--memory (nowhere/m): there is no folder "),
        ("{longmem} --memory .", "--memory (.) is a folder: give a file to write"),
        ("{longmem} --memory-map", "--memory-map needs --memory, the file that is to be mapped"),
        (
            "{longmem} --memory {longmem}/dict.txt",
            "dict.txt is not a memory file, or a damaged one",
        ),
        ("{backbone} --memory m", "this model has no memory: it is a backbone"),
        ("nowhere", "nowhere: no such model"),
        ("{longmem} --host ::2 --api-key k", "--host (::2) and --port (0) cannot be served: "),
    ],
)
def test_bad_options_are_one_line(models, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    if "--port" not in arguments:
        arguments += " --port 0"
    command = ["longmem-serve", *arguments.format(**models).split()]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exited:
        serve.cli()
    error = capsys.readouterr().err
    assert exited.value.code == 2 and error.count("\n") == 1
    assert error.startswith("longmem-serve: error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_sigterm_ends_it_and_kill_leaves_the_old_or_the_new_memory(models, tmp_path):
    path, text = tmp_path / "m", story(10, seed=8)
    with server_process(models["longmem"], "--memory", path) as (url, process):
        body = {"name": "a", "text": text}
        assert httpx.post(url + "/memory", json=body, timeout=60).status_code == 201
        request = {"prompt": text, "max_tokens": 60, "temperature": 0, "stream": True}
        with httpx.stream("POST", url + "/v1/completions", json=request, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)  # what is being answered is answered
        assert process.wait(60) == -signal.SIGTERM
        assert process.stderr.read() == ""
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    with server_process(models["longmem"], "--memory", path) as (url, process):
        assert [d["name"] for d in httpx.get(url + "/memory").json()["data"]] == ["a"]
        adding = threading.Thread(target=add_until_gone, args=(url,))
        adding.start()
        time.sleep(0.7)
        process.kill()
        adding.join()
    saved = LongMem.from_pretrained(models["longmem"])
    saved.load_memory(path)
    names = [source.name for source in saved.memory.single_bank(saved.device).logs[0].sources]
    expected = LongMem.from_pretrained(models["longmem"])
    expected.memorize([text] * len(names), names=names, progress=False)
    assert names == ["a", *(f"document {i}" for i in range(len(names) - 1))]
    (header, tensors), (other, others) = memory_state(saved), memory_state(expected)
    assert header == other and all((tensors[name] == others[name]).all() for name in tensors)


def add_until_gone(url):
    for i in range(10_000):
        try:
            body = {"name": f"document {i}", "text": story(10, seed=8)}
            httpx.post(url + "/memory", json=body, timeout=60)
        except httpx.TransportError:
            return
