"""Models with ``--memory-search hidden``."""

import pytest

from longmem_fairseq.modules import places


@pytest.fixture(autouse=True)
def near_places(monkeypatch):
    """The segments of these models are shorter than a pointer's least distance."""
    monkeypatch.setattr(places, "NEAREST", 1)


@pytest.fixture
def make(build):
    """Builds a model of search ``hidden`` with fitted search keys, as if it had been trained."""
    from tests.helpers.hidden_models import fitted

    return lambda **options: fitted(build, **options)
