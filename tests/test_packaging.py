"""The extras of setup.py, and the script that finds out what is missing from an environment."""

import importlib.util
import json
import os
import runpy
from importlib.metadata import Distribution, PackageNotFoundError
from unittest import mock

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

WITH_FAISS = {"cpu", "gpu", "test", "test-gpu", "dev", "dev-gpu"}


@pytest.fixture(scope="module")
def setup_arguments(root):
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(root / "setup.py"))
    return setup.call_args.kwargs


def faiss_wheels(requirements):
    return {
        name for name in (Requirement(r).name for r in requirements) if name.startswith("faiss")
    }


def test_extras_are_the_documented_ones(setup_arguments):
    assert set(setup_arguments["extras_require"]) == {*WITH_FAISS, "hf", "serve", "harness", "fuzz"}


@pytest.mark.parametrize("extra", sorted(WITH_FAISS))
def test_an_extra_installs_one_faiss_wheel(setup_arguments, extra):
    wheels = faiss_wheels(setup_arguments["extras_require"][extra])
    assert wheels == {"faiss-gpu" if extra.endswith("gpu") else "faiss-cpu"}


def test_core_installs_no_faiss(setup_arguments):
    assert faiss_wheels(setup_arguments["install_requires"]) == set()


def test_ci_installs_a_torch_that_setup_accepts(setup_arguments, root):
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = next(Requirement(line) for line in lines if line.startswith("torch=="))
    torch = next(
        r for r in map(Requirement, setup_arguments["install_requires"]) if r.name == "torch"
    )
    (specifier,) = pinned.specifier
    assert torch.specifier.contains(specifier.version)


def test_the_supported_pythons_are_those_of_the_readme(setup_arguments, root):
    named = [text.rpartition(" ")[2] for text in setup_arguments["classifiers"]]
    assert named == ["3.11", "3.12", "3.13"]
    assert "Python {}, {} or {} and".format(*named) in (root / "README.md").read_text()
    assert all(Version(name) in SpecifierSet(setup_arguments["python_requires"]) for name in named)


@pytest.fixture
def script(root):
    path = root / "train_scripts" / "missing_requirements.py"
    spec = importlib.util.spec_from_file_location("missing_requirements", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeProject(Distribution):
    """An editable install of a checkout with the given requirements."""

    def __init__(self, checkout, requires):
        self.checkout = checkout
        self.texts = {
            "METADATA": "".join(f"Requires-Dist: {line}\n" for line in requires),
            "direct_url.json": json.dumps(
                {"url": checkout.as_uri(), "dir_info": {"editable": True}}
            ),
            "RECORD": "METADATA,,\n",
        }
        (checkout / "METADATA").touch()

    def read_text(self, filename):
        return self.texts.get(filename)

    def locate_file(self, path):
        return self.checkout / path


@pytest.fixture
def environment(script, tmp_path, monkeypatch):
    """Makes an environment of the given packages and a project with the given requirements."""

    def make(requires, versions):
        (tmp_path / "setup.py").touch()
        project = FakeProject(tmp_path, requires)

        def version(name):
            if name not in versions:
                raise PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(
            script, "distribution", lambda n: project if n == script.PROJECT else version(n)
        )
        monkeypatch.setattr(script, "version", version)
        return tmp_path

    return make


def test_missing_requirements(script, environment):
    checkout = environment(
        [
            "torch<3,>=2.6",
            "numpy",
            "tqdm>=4.66",
            'faiss-cpu; extra == "cpu"',
            'ruff; extra == "dev"',
        ],
        {"torch": "2.13.0+cpu", "tqdm": "4.0"},
    )
    assert script.missing_requirements(checkout, "cpu") == ["numpy", "tqdm>=4.66", "faiss-cpu"]


def test_nothing_is_missing(script, environment):
    checkout = environment(["torch<3,>=2.6"], {"torch": "2.13.0+cpu"})
    assert script.missing_requirements(checkout, "cpu") == []


def test_a_changed_setup_is_installed_again(script, environment):
    checkout = environment(["torch"], {"torch": "2.13.0"})
    os.utime(checkout / "METADATA", (0, 0))
    assert script.missing_requirements(checkout, "cpu") == ["longmem-fairseq"]


def test_an_install_of_another_checkout_does_not_count(script, environment, tmp_path):
    environment(["torch"], {"torch": "2.13.0"})
    assert script.missing_requirements(tmp_path / "elsewhere", "cpu") == ["longmem-fairseq"]


def test_both_faiss_wheels_are_one_line(script, environment, monkeypatch, capsys):
    checkout = environment([], {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"})
    monkeypatch.setattr("sys.argv", ["missing_requirements.py", str(checkout), "cpu"])
    with pytest.raises(SystemExit) as exit_info:
        script.main()
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip uninstall -y faiss-cpu faiss-gpu" in error
