"""Files given as checkpoints that are damaged, or would execute code: refused, and not executed."""

import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from tests.fuzz.watch import watched
from tests.helpers.malicious import Malicious


# PyTorch words its refusal in one way for modules that it blocks and in another for all others
@pytest.mark.parametrize("function", [os.mkdir, shutil.rmtree])
@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_checkpoints_are_refused_by_that_name(function, zipped, tmp_path):
    folder, path = tmp_path / "folder", tmp_path / "malicious.pt"
    attack = {"model": Malicious(function, str(folder))}
    torch.save(attack, path, _use_new_zipfile_serialization=zipped)
    existed = function is shutil.rmtree
    if existed:
        folder.mkdir()
    with pytest.raises(ValueError, match="refused, it would execute code"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert folder.exists() == existed
    torch.load(path, weights_only=False)  # it is an attack: without care it is executed
    assert folder.exists() != existed


def test_truncated_checkpoints_are_damaged(backbone_path, tmp_path):
    """Wherever the copy broke off: PyTorch has a different error for almost every place."""
    whole, path = Path(backbone_path).read_bytes(), tmp_path / "truncated.pt"
    for length in [0, 1, 3, 100, *range(1000, len(whole), len(whole) // 10), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a checkpoint, or a damaged one"):
            checkpoint_utils.load_checkpoint_to_cpu(str(path))


def test_a_pickle_whose_string_claims_more_than_there_is(tmp_path):
    """PyTorch asks for all of it before it reads; the limit is that of the fuzzing."""
    path = tmp_path / "strings.pt"
    path.write_bytes(b"X" + struct.pack("<I", 1 << 31) + b"short")  # BINUNICODE, no zip archive
    with watched(tmp_path), pytest.raises(ValueError, match="or takes more memory than there is"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_files_that_are_no_checkpoints(build, tmp_path, backbone_path, content):
    path = tmp_path / "damaged.pt"
    if content is None:
        with open(backbone_path, "rb") as file:
            content = file.read()[:-1000]
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        build(path=str(path))
    assert str(error.value) == f"{path} is not a checkpoint, or a damaged one"


def test_a_malicious_checkpoint_is_refused_not_executed(build, tmp_path):
    path = tmp_path / "malicious.pt"
    torch.save({"model": Malicious(os.mkdir, str(tmp_path / "executed"))}, path)
    with pytest.raises(ValueError) as error:
        build(path=str(path))
    assert str(error.value).startswith(f"{path}: refused, it would execute code when loaded")
    assert not (tmp_path / "executed").exists()
