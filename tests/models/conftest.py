"""Models with ``--memory-search hidden``."""

import pytest


@pytest.fixture
def make(build):
    """Builds a model of search ``hidden`` with fitted search keys, as if it had been trained."""
    from tests.helpers.hidden_models import fitted

    return lambda **options: fitted(build, **options)
