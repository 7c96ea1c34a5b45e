"""The program of ``tests/serving_soak.sh``; see there."""

import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import openai

from longmem_fairseq import LongMem
from tests.helpers.model_folders import story
from tests.helpers.servers import server_process

CLIENTS, PROMPTS, KILLS = 8, 6, 10
TOKENS = 12


def expected_texts(folder: Path, memory: Path, num_documents: int) -> dict:
    """The model's answer to each prompt, by the memory: nothing, or the first documents."""
    lm, texts = LongMem.from_pretrained(folder), {}
    for count in range(num_documents + 1):
        if count:
            lm.memorize(document(count - 1), names=f"document {count - 1}", progress=False)
        for number in range(PROMPTS):
            texts[count, number] = lm.generate(prompt(number), TOKENS)
    lm.forget()
    return texts


def document(number: int) -> str:
    return story(5, seed=1000 + number)


def prompt(number: int) -> str:
    """Some are longer than a tiny model's window."""
    return story(4 + 8 * number, seed=number)


def ask(url: str, name: str, until: float, expected: dict, seen: Counter, faults: list, seed: int):
    """One client: asks until the time is over, and compares."""
    choose = random.Random(seed)
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        while time.monotonic() < until and not faults:
            number, stream = choose.randrange(PROMPTS), choose.random() < 0.5
            arguments = {"model": name, "prompt": prompt(number), "max_tokens": TOKENS}
            try:
                answer = client.completions.create(**arguments, temperature=0, stream=stream)
                pieces = answer if stream else [answer]
                text = "".join(choice.text for piece in pieces for choice in piece.choices)
            except openai.OpenAIError as error:
                faults.append(repr(error))
                return
            counts = [c for (c, n), wanted in expected.items() if n == number and wanted == text]
            if not counts:
                faults.append(f"prompt {number} was answered by {text!r}")
            seen["streams" if stream else "answers"] += 1


def load(folder: Path, memory: Path, seconds: float) -> None:
    """Clients at once, and one more that adds the documents one by one."""
    num_documents = 4
    expected = expected_texts(folder, memory, num_documents)
    with server_process(folder, "--memory", memory) as (url, _):
        name = httpx.get(url + "/v1/models").json()["data"][0]["id"]
        until, seen, faults = time.monotonic() + seconds, Counter(), []
        clients = [
            threading.Thread(target=ask, args=(url, name, until, expected, seen, faults, seed))
            for seed in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for number in range(num_documents):
            time.sleep(seconds / (num_documents + 1))
            body = {"name": f"document {number}", "text": document(number)}
            httpx.post(url + "/memory", json=body, timeout=120).raise_for_status()
        for client in clients:
            client.join()
        names = [entry["name"] for entry in httpx.get(url + "/memory", timeout=120).json()["data"]]
        assert names == [f"document {i}" for i in range(num_documents)], names
        # all documents are there now, and every prompt is answered with all of them
        last = Counter()
        for number in range(PROMPTS):
            body = {"prompt": prompt(number), "max_tokens": TOKENS, "temperature": 0}
            answer = httpx.post(url + "/v1/completions", json=body, timeout=120).json()
            last[answer["choices"][0]["text"] == expected[num_documents, number]] += 1
        assert last == {True: PROMPTS}, last
    assert not faults, faults
    print(
        f"{CLIENTS} clients, {seconds:g} s: {seen['answers']} answers, {seen['streams']} streams, "
        f"{num_documents} documents added meanwhile; no error, no mixed memories"
    )


def kill(folder: Path, memory: Path) -> None:
    """A server is killed while it adds documents, and the content of its file is compared."""
    found = Counter()
    for number in range(KILLS):
        memory.unlink(missing_ok=True)
        with server_process(folder, "--memory", memory) as (url, process):
            added = []

            def add(url=url, added=added):
                for i in range(1000):
                    body = {"name": f"document {i}", "text": document(i)}
                    try:
                        httpx.post(url + "/memory", json=body, timeout=120).raise_for_status()
                    except httpx.TransportError:
                        return
                    added.append(f"document {i}")

            adding = threading.Thread(target=add)
            adding.start()
            time.sleep(0.3 + 0.07 * number)
            process.kill()
            adding.join()
        found[which(folder, memory, len(added))] += 1
    print(f"{KILLS} kills: the file was always the old or the new one ({dict(found)})")


def which(folder: Path, memory: Path, added: int) -> str:
    """True for a file that holds the documents that were added, or the next one too."""
    lm, expected = LongMem.from_pretrained(folder), LongMem.from_pretrained(folder)
    if memory.exists():
        lm.load_memory(memory)
    for count in range(added + 2):
        if count:
            expected.memorize(document(count - 1), names=f"document {count - 1}", progress=False)
        banks = [used.memory.single_bank(used.device) for used in (lm, expected)]
        if count >= added and banks[0].header() == banks[1].header():
            first, second = (bank.state_dict() for bank in banks)
            assert all((first[name] == second[name]).all() for name in first)
            return "old" if count == added else "new"
    raise SystemExit(f"{added} documents were added, and the file holds {banks[0].header()}")


def main() -> None:
    logging.getLogger().setLevel(logging.WARNING)  # fairseq leaves it at DEBUG
    with tempfile.TemporaryDirectory() as scratch:
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
        else:
            import longmem_fairseq.tasks.user_dir  # noqa: F401, for fairseq-train
            from tests.helpers.model_folders import make

            folder = make(Path(scratch), Path(__file__).resolve().parents[2])["longmem"]
            logging.getLogger().setLevel(logging.WARNING)
        load(folder, Path(scratch) / "load.memory", float(os.environ["SECONDS_OF_LOAD"]))
        kill(folder, Path(scratch) / "kill.memory")


if __name__ == "__main__":
    main()
