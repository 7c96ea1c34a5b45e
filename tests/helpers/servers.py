"""Servers of tests, on this machine alone."""

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx

from longmem_fairseq import LongMem
from tests.helpers.model_folders import DOCUMENTS

PROMPT = "Ann saw the"


def load_longmem(models, memorized=True):
    """The tiny longmem, with two documents in memory or none."""
    lm = LongMem.from_pretrained(models["longmem"])
    if memorized:
        lm.memorize(DOCUMENTS.values(), names=["a.txt", "b.txt"], progress=False)
    return lm


@contextmanager
def served(lm, memory_path=None, api_key=None, timeout=60.0, max_body=1 << 20):
    """Serves a model from a thread of this process; its address, and the service."""
    import uvicorn

    from longmem_fairseq.commands.serve import _listening
    from longmem_fairseq.serving.app import Service, make_app

    service = Service(lm, "tiny", memory_path, timeout, max_body)
    config = uvicorn.Config(make_app(service, api_key), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with _listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@contextmanager
def server_process(*arguments):
    """longmem-serve on a free port; its address, and the process, which is killed in the end."""
    command = [sys.executable, "-m", "longmem_fairseq.commands.serve", *map(str, arguments)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), process.stderr.read()
        address = line.split(" at ")[1].strip().removesuffix("/v1")
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(address + "/v1/models", timeout=10)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield address, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
