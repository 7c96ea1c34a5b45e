"""Fixtures and settings of all tests.

``@pytest.mark.gpu`` marks a test that needs a CUDA GPU; it is skipped where there is none.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# What our tests start as programs prints hydra's deprecations too; the filters of pyproject.toml
# hold for this process alone, and PYTHONWARNINGS wants full module names.
HYDRA_MODULES = (
    "hydra.compose",
    "hydra.core.default_element",
    "hydra.experimental.compose",
    "hydra.experimental.initialize",
    "sys",
)
os.environ.setdefault(
    "PYTHONWARNINGS", ",".join(f"ignore::UserWarning:{module}" for module in HYDRA_MODULES)
)

# CI has two cores, and no test computes enough to gain from more.
torch.set_num_threads(2)
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Timings on a shared machine say nothing about a test.
settings.register_profile("longmem", deadline=None)
settings.load_profile("longmem")


def pytest_collection_modifyitems(items):
    """Skips the tests marked ``gpu`` on a machine without one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Fixtures that are not in the repository: the folder $LONGMEM_SHARED, else ../shared."""
    path = Path(os.environ.get("LONGMEM_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        pytest.skip(f"no folder {path}: set LONGMEM_SHARED to the folder of shared fixtures")
    return path.resolve()
