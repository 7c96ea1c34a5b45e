"""How threads wait: briefly, unless the environment says how, and for PyTorch from the start."""

import os
import subprocess
import sys

import pytest

from longmem_fairseq.utils.threads import ROUNDS, wait_briefly


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, str(ROUNDS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    ],
)
def test_the_environment_comes_first(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


@pytest.mark.parametrize("module", ["eval", "longmem_fairseq.commands.options"])
def test_commands_and_benchmarks_set_it_before_torch_is_imported(module):
    check = (
        f"import os, sys; import {module}; "
        "assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    output = subprocess.run(
        [sys.executable, "-c", check], env=clean, check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == str(ROUNDS)
