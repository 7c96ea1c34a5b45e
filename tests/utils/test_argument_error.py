"""Errors name arguments in Python and options on the command line."""

import pickle
from pathlib import Path

import pytest

from longmem_fairseq.utils.argument_error import ArgumentError, MissingFileError
from longmem_fairseq.utils.cli import as_option, option_names, run
from longmem_fairseq.utils.refusal import refused


def test_a_name_is_spelled_and_a_value_is_not():
    error = ArgumentError("{top_k} ({}) and {top_p} ({!r}) do not fit", 3, "{top_k}")
    assert str(error) == "top_k (3) and top_p ('{top_k}') do not fit"
    assert error.spelled(as_option) == "--top-k (3) and --top-p ('{top_k}') do not fit"
    assert error.argument == "top_k"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # from another process


def test_a_place_before_it_and_another_path_in_it():
    error = MissingFileError("{vocabulary} ({}) has no {}", Path("/tmp/x/a"), "dict.txt")
    assert str(error.within("m.gguf")) == "m.gguf: vocabulary (/tmp/x/a) has no dict.txt"
    assert str(error.replaced("/tmp/x/", "m: ")) == "vocabulary (m: a) has no dict.txt"
    assert isinstance(error.replaced("a", "b"), FileNotFoundError)


def test_options_with_names_of_their_own():
    error = ArgumentError(
        "{index} ({}) needs {:,} chunks, but {memory_size} holds {}", "{k}", 2000, 9
    )
    with pytest.raises(ValueError) as raised, option_names():
        raise error
    assert type(raised.value) is ValueError
    assert str(raised.value) == "--memory-index ({k}) needs 2,000 chunks, but --memory-size holds 9"


def test_a_command_names_options(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["longmem-generate"])

    def main():
        raise ArgumentError("{max_new_tokens} ({}) must be at least 1", 0)

    with pytest.raises(SystemExit) as exited:
        run(main)
    line = "longmem-generate: error: --max-new-tokens (0) must be at least 1\n"
    assert exited.value.code == 2 and capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("so\nand so"), "a is damaged (so)"),
        (KeyError("b"), "a is damaged (KeyError: 'b')"),
    ],
)
def test_whatever_a_reader_raises_is_a_refusal(error, expected):
    with pytest.raises(ValueError) as raised, refused("a is damaged"):
        raise error
    assert str(raised.value) == expected and raised.value.__cause__ is error


@pytest.mark.parametrize("error", [FileNotFoundError("a"), ImportError("b"), MemoryError()])
def test_a_missing_file_or_package_is_told_as_it_is(error):
    with pytest.raises(type(error)), refused("a is damaged"):
        raise error
