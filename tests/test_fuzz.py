"""Every reader on its good files and on damaged ones; ``tests/fuzz.sh`` goes on for hours."""

import os
import random
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

import pytest
import torch

from longmem_fairseq.tokenizers import load_tokenizer
from tests.fuzz.harness import Format
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import Forbidden, watched
from tests.helpers.malicious import Malicious

MUTATIONS = 30


@pytest.mark.parametrize("name", TARGETS)
def test_good_files_are_read_and_damaged_ones_refused(name, tmp_path):
    if name in ("tokenizer_json", "ids_json", "gguf") or name.startswith("hf_"):
        pytest.importorskip("tokenizers", reason="needs the extra hf")
    found, rng = Format(name, tmp_path), random.Random(zlib.crc32(name.encode()))
    assert found.read(found.good) == ""
    errors = [found.read(mutate(found.good, rng)) for _ in range(MUTATIONS)]
    assert any(errors) or name in (
        "latex",
        "manifest",
    )  # any text is LaTeX; a damaged manifest is old


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_executes_is_a_finding(zipped, tmp_path):
    """The watch sees what it has to see: with torch's protection off, the attack."""
    found = Format("checkpoint", tmp_path)
    attack, executed = tmp_path / "attack", tmp_path / "executed"
    made = Malicious(os.mkdir, str(executed))
    torch.save({"model": made}, attack, _use_new_zipfile_serialization=zipped)
    assert "refused, it would execute code" in found.read(attack.read_bytes())
    assert not executed.exists()
    with watched(tmp_path / "elsewhere"), pytest.raises(Forbidden, match="pickle.find_class"):
        torch.load(attack, weights_only=False)


def test_what_the_watch_forbids(tmp_path):
    with watched(tmp_path), pytest.raises(Forbidden, match="subprocess"):
        subprocess.run(["true"])
    with watched(tmp_path), pytest.raises(Forbidden, match="open"):
        open("/usr/longmem", "w")
    with watched(tmp_path), pytest.raises(MemoryError):
        bytearray(1 << 34)
    with watched(tmp_path):
        open(tmp_path / "inside", "w").close()


@pytest.mark.parametrize(
    "path", ["{folder}/../evil", "{elsewhere}/evil", "{link}/evil", "/dev/shm/longmem-evil"]
)
@pytest.mark.parametrize(
    "write",
    [
        lambda path, inside: open(path, "w"),
        lambda path, inside: os.mkdir(path),
        lambda path, inside: os.rename(inside, path),
        lambda path, inside: os.remove(path),
        lambda path, inside: shutil.rmtree(path),
    ],
)
def test_the_watch_sees_what_leaves_the_folder(write, path, tmp_path):
    """Also where temporary files usually are, which is where the folder itself is."""
    folder, elsewhere, link = tmp_path / "folder", tmp_path / "elsewhere", tmp_path / "folder/link"
    for made in (folder, elsewhere):
        made.mkdir()
    link.symlink_to(elsewhere)
    (folder / "inside").write_text("a")
    path = path.format(folder=folder, elsewhere=elsewhere, link=link)
    with watched(folder), pytest.raises(Forbidden, match="evil"):
        write(path, folder / "inside")
    assert (folder / "inside").read_text() == "a" and not os.path.exists(path)


def test_temporary_files_are_made_in_the_watched_folder(tmp_path):
    made, usual = [], tempfile.gettempdir()

    def read(folder):
        with tempfile.TemporaryDirectory() as temporary:
            made.append(Path(temporary))
            open(Path(temporary) / "a", "w").close()
        open(os.devnull, "w").close()

    found = Format("jsonl", tmp_path)
    found.target = found.target._replace(read=read)
    assert found.read(found.good) == "" and made[0].parent == tmp_path / "tmp"
    assert tempfile.gettempdir() == usual and not any((tmp_path / "tmp").iterdir())


def test_nothing_is_left_over(tmp_path):
    """A format's good files stay good after damaged ones were read."""
    found = Format("sentencepiece", tmp_path)
    found.read(b"damaged")
    found.path.write_bytes(found.good)
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).indices("a")) == "a"
