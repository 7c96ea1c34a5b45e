"""Several writers of one memory file, and files that their owner has protected."""

import os
import signal
import stat
import subprocess
import sys

import pytest
import torch

from longmem_fairseq import LongMem
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.utils import replaced_file
from longmem_fairseq.utils.replaced_file import file_version
from tests.helpers.model_folders import DOCUMENTS

SIZES = {"memory_size": 8, "chunk_size": 2, "k": 4}
CHANGED = "cannot be written (another process saved it after it was read: read it again, or give"

# another process, which takes the lock of a folder or file and says so
LOCKS = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def bank_of(*keys):
    bank = MemoryBank(1, 1, 4, **SIZES)
    for number in keys:
        bank.write(*torch.full((2, 1, 1, 2, 4), float(number)))
    return bank


def held_by(path):
    bank = MemoryBank.load(str(path))
    return bank.ring.chunk_keys[0, 0, : bank.num_chunks[0], 0].tolist()


@pytest.fixture
def locked():
    """Starts a process that holds a lock; it is killed (SIGKILL) by ``kill``, or at the end."""
    processes = []

    def lock(path):
        command = [sys.executable, "-c", LOCKS, str(path)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b"locked\n"
        return processes[-1]

    yield lock
    for process in processes:
        process.kill()
        process.communicate()


def test_two_that_add_to_one_memory_lose_no_document(models, tmp_path):
    path = tmp_path / "memory"
    first, second = (LongMem.from_pretrained(models["longmem"]) for _ in range(2))
    first.memorize(DOCUMENTS["a"], "zero")
    first.save_memory(path)
    second.load_memory(path, memory_map=True)
    first.memorize(DOCUMENTS["a"], "first")
    first.save_memory(path)  # twice by the same one, which has read nothing in between
    second.memorize(DOCUMENTS["b"], "second")
    before = path.read_bytes()
    with pytest.raises(OSError) as error:
        second.save_memory(path)
    assert str(error.value).startswith(f"{path}: {CHANGED} another name")
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["memory"]
    second.save_memory(tmp_path / "other")  # nothing that was memorized is lost
    second.load_memory(path)
    second.memorize(DOCUMENTS["b"], "second")
    second.save_memory(path)
    first.load_memory(path)
    bank = first.memory.single_bank(first.device)
    assert [source.name for source in bank.sources[0]] == ["zero", "first", "second"]
    first.load_memory(tmp_path / "other")
    bank = first.memory.single_bank(first.device)
    assert [source.name for source in bank.sources[0]] == ["zero", "second"]


def test_a_file_that_appears_or_goes_in_the_meantime_is_noticed(models, tmp_path):
    path = tmp_path / "memory"
    lm = LongMem.from_pretrained(models["longmem"])
    lm.memorize(DOCUMENTS["a"])
    nothing = file_version(str(path))
    bank_of(1).save(str(path))
    with pytest.raises(OSError, match="another process saved it"):
        lm.save_memory(path, replaces=nothing)
    assert held_by(path) == [1]
    there = file_version(str(path))
    path.unlink()
    with pytest.raises(OSError, match="another process saved it"):
        lm.save_memory(path, replaces=there)
    assert not path.exists()
    lm.save_memory(path, replaces=nothing)
    assert MemoryBank.load(str(path)).num_chunks == lm.memory.single_bank(lm.device).num_chunks


def test_looking_and_putting_in_place_are_one_step(tmp_path, locked, monkeypatch):
    """A second process waits for the first; one that is killed holds up nobody."""
    path = tmp_path / "memory"
    version = bank_of(1).save(str(path))
    assert version == file_version(str(path))
    process = locked(tmp_path)
    waited = []

    def look(path):
        waited.append(process.poll() is not None)
        return file_version(path)

    monkeypatch.setattr(replaced_file, "file_version", look)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    bank_of(1, 2).save(str(path), version)
    killer.wait()
    assert process.wait() == -signal.SIGKILL
    assert len(waited) == 2 and held_by(path) == [1, 2]


# --- files that are protected ---


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "memory"
    bank_of(1).save(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()
    path.chmod(mode)
    bank_of(1, 2).save(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == mode and held_by(path) == [1, 2]


def current_umask():
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def test_a_read_only_file_is_left_as_it_is(tmp_path):
    path = tmp_path / "memory"
    bank_of(1).save(str(path))
    path.chmod(0o444)
    with pytest.raises(OSError) as error:
        bank_of(1, 2).save(str(path))
    assert str(error.value) == (
        f"{path}: cannot be written (it is read-only (mode 444): chmod u+w, or give another name)"
    )
    assert held_by(path) == [1] and stat.S_IMODE(path.stat().st_mode) == 0o444
    assert [file.name for file in tmp_path.iterdir()] == ["memory"]


def test_what_is_no_file_is_left_as_it_is(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match="it is no regular file: give another name"):
            bank_of(1).save(str(path))
    assert stat.S_ISFIFO(pipe.stat().st_mode) and link.is_symlink()
