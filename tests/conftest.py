"""Fixtures and settings of all tests.

``@pytest.mark.gpu`` marks a test that needs a CUDA GPU; it is skipped where there is none.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Programs that our tests start print hydra's deprecations too; the filters of pyproject.toml
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

# tests/run.sh runs a test on every core, and no test computes enough to gain from more than one.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session", autouse=True)
def _patched_fairseq():
    """As for --user-dir, which fairseq skips where the package is imported already."""
    from longmem_fairseq.fairseq_patches import install

    install()


# the models of small_models.py, imported where they are used: fairseq takes seconds to import


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    from tests.helpers.small_models import make_task

    return make_task(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def backbone_path(tmp_path_factory, task):
    """A backbone's checkpoint."""
    from tests.helpers.small_models import save_backbone

    path = tmp_path_factory.mktemp("backbone") / "checkpoint.pt"
    return save_backbone(path, task.source_dictionary, seed=1, smeared_key_layers=[3])


@pytest.fixture(scope="session")
def backbone(backbone_path, task):
    from tests.helpers.small_models import load_backbone

    return load_backbone(backbone_path, task)


@pytest.fixture
def build(task, backbone_path):
    """Builds a longmem or memtrm on the backbone, with options; see ``build_model``."""
    from tests.helpers.small_models import build_model

    return lambda *arguments, path=backbone_path, **options: build_model(
        task, path, *arguments, **options
    )


# what several files of tests work with; it is made once


@pytest.fixture(scope="session")
def bad_inputs(tmp_path_factory, root):
    """Data folders and checkpoints, good and bad, by name; see ``tests/helpers/bad_inputs.py``."""
    from tests.helpers.bad_inputs import make

    return make(tmp_path_factory.mktemp("bad_input"), root)


@pytest.fixture
def check_bad_input(bad_inputs, root, tmp_path, monkeypatch, capsys, request):
    """Checks the one line that a command prints, and that it leaves everything as it was."""
    from tests.helpers.bad_inputs import WORDS_OF_CASES, last_line, write_texts

    def check(command, expected, programs=None):
        names = {**bad_inputs, **WORDS_OF_CASES}
        if "{models}" in command:
            names["models"] = request.getfixturevalue("models")["longmem"].parent
        monkeypatch.chdir(tmp_path)
        write_texts(tmp_path)
        before = sorted(tmp_path.iterdir())
        command, expected = command.format(**names), expected.format(**names)
        line = last_line(command, programs or {}, bad_inputs, root, monkeypatch, capsys)
        if expected.endswith("..."):
            line = line[: len(expected) - 3] + "..."
        assert line == expected
        assert not bad_inputs["executed"].exists() and not bad_inputs["scratch"].exists()
        assert sorted(tmp_path.iterdir()) == before

    return check


@pytest.fixture(scope="session")
def odd_corpus(tmp_path_factory):
    """A source with odd texts, the corpus prepared from it, and its manifest."""
    from tests.helpers.corpora import ODD_TEXTS, PLAIN, prepare, write_splits

    folder = tmp_path_factory.mktemp("odd")
    source = write_splits(folder / "source", {"plain": PLAIN}, {"plain": PLAIN}, ODD_TEXTS)
    return source, folder / "corpus", prepare(source, folder / "corpus")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, root):
    """A folder with data1, data2 (another corpus) and backbone.pt."""
    from tests.helpers.training_runs import make_runs

    return make_runs(tmp_path_factory.mktemp("runs"), root)


@pytest.fixture
def fit_here(root, monkeypatch):
    """``fit`` of ``tests/helpers/training_runs.py`` from the checkout's folder."""
    from tests.helpers.training_runs import fit

    monkeypatch.chdir(root)
    return lambda *arguments: fit(monkeypatch, *arguments)


@pytest.fixture(scope="session")
def models(tmp_path_factory, root):
    """Folders of tiny models, by name; see ``tests/helpers/model_folders.py``."""
    from tests.helpers.model_folders import make

    return make(tmp_path_factory.mktemp("models"), root)


@pytest.fixture
def load_lm(models):
    """Loads one of these models by name, with overrides."""
    from longmem_fairseq import LongMem

    return lambda name="longmem", **overrides: LongMem.from_pretrained(models[name], **overrides)
