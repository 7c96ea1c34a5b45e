"""Every reader on its good files and on damaged ones; ``tests/fuzz.sh`` goes on for hours."""

import os
import random
import subprocess
import zlib

import pytest
import torch

from longmem_fairseq.tokenizers import load_tokenizer
from tests.fuzz.harness import Format
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import Forbidden, watched
from tests.malicious import Malicious

MUTATIONS = 30


@pytest.mark.parametrize("name", TARGETS)
def test_good_files_are_read_and_damaged_ones_refused(name, tmp_path):
    if name in ("tokenizer_json", "ids_json") or name.startswith("hf_"):
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


def test_nothing_is_left_over(tmp_path):
    """A format's good files stay good after damaged ones were read."""
    found = Format("sentencepiece", tmp_path)
    found.read(b"damaged")
    found.path.write_bytes(found.good)
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).indices("a")) == "a"
