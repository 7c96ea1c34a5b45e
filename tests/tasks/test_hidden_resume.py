"""Runs with search ``hidden`` and a pointer that were resumed end, bit for bit, as others end."""

import pytest

from tests.helpers.training_runs import ADAM, MEMORY, assert_same_state, memory_files

# fairseq's iterator asks for it everywhere
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

HIDDEN = "--memory-search hidden --pointer trained --search-dim 8"
MODELS = {
    "SideNet": "",
    "chunks of one token, no SideNet": "--chunk-size 1 --no-sidenet",
}


@pytest.mark.parametrize("model", MODELS)
def test_resumed_is_uninterrupted(fit_here, runs, tmp_path, model):
    """In the middle of the first epoch, and of the second, whose documents are others."""
    arguments = (
        f"{runs}/data1:{runs}/data2 --arch longmem {MEMORY} {HIDDEN} {MODELS[model]} {ADAM} "
    )
    arguments += f"--pretrained-model-path {runs}/backbone.pt --update-freq 2"
    expected = fit_here(arguments, tmp_path / "whole", 18)
    fit_here(arguments, tmp_path / "parts", 4)
    middle = fit_here(arguments, tmp_path / "parts", 16)["extra_state"]["train_iterator"]
    assert middle["epoch"] == 2 and middle["iterations_in_epoch"] > 0
    assert_same_state(fit_here(arguments, tmp_path / "parts", 18), expected)
    assert memory_files(tmp_path / "parts")
