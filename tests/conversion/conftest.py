"""A Hugging Face model that a test may damage."""

import sys

import pytest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A LLaMA in three shards, without a tokenizer."""
    from tests.helpers.hf_models import make_model

    folder = tmp_path_factory.mktemp("llama")
    make_model("llama", folder, saving={"max_shard_size": "40KB"})
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def model(saved, tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "hf"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def refused(model, tmp_path, monkeypatch, capsys):
    """Runs the program; returns its one line of errors."""

    from longmem_fairseq.commands.convert import main as convert_checkpoint
    from longmem_fairseq.utils.cli import run

    def call(*options, folder=model):
        arguments = ["convert_checkpoint.py", "--model", str(folder), *options]
        monkeypatch.setattr(sys, "argv", [*arguments, "--dest", str(tmp_path / "dest")])
        with pytest.raises(SystemExit) as exited:
            run(convert_checkpoint)
        assert exited.value.code == 2 and not (tmp_path / "dest").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("convert_checkpoint.py: error: ")

    return call
