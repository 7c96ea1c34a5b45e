"""Errors name arguments, and in commands the options that set them."""

import pickle
import sys

import pytest

from longmem_fairseq.utils.argument_error import ArgumentError
from longmem_fairseq.utils.cli import option_names, run

TEXT = "{index} ({}) needs {:,} chunks, but {memory_size} holds {}"
ERROR = ArgumentError(TEXT, "{k}", 2000, 9)  # a value that looks like a name is a value


def fail():
    raise ERROR


def test_an_error_names_arguments():
    assert str(ERROR) == "index ({k}) needs 2,000 chunks, but memory_size holds 9"
    copied = pickle.loads(pickle.dumps(ERROR))
    assert type(copied) is ArgumentError and str(copied) == str(ERROR)


def test_options_with_names_of_their_own():
    with pytest.raises(ValueError) as error, option_names():
        fail()
    assert type(error.value) is ValueError
    assert str(error.value) == "--memory-index ({k}) needs 2,000 chunks, but --memory-size holds 9"


def test_a_command_names_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["folder/command"])
    with pytest.raises(SystemExit) as error:
        run(fail)
    assert error.value.code == 2
    expected = "--memory-index ({k}) needs 2,000 chunks, but --memory-size holds 9"
    assert capsys.readouterr().err == f"command: error: {expected}\n"
