"""The extras of setup.py."""

import runpy
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
    others = {"hf", "serve", "harness", "ruler", "fuzz", "peers"}
    assert set(setup_arguments["extras_require"]) == {*WITH_FAISS, *others}


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
