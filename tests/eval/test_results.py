"""results.py and provenance.py: lines appended to a file of results, and the code of a run."""

import shutil
from pathlib import Path

import pytest

from eval.common import provenance, results
from longmem_fairseq.utils.text_files import chance_of
from tests.helpers.benchmark_runs import lines


@pytest.mark.parametrize("torn", [b"", b"{", b'{"name": "b", "tex'])
def test_half_a_line_is_taken_away(tmp_path, torn):
    """As a full disk leaves one behind; what comes next would be lost with it."""
    path = tmp_path / "more" / "results.jsonl"
    results.append_result(path, {"name": "a"})
    with open(path, "ab") as file:
        file.write(torn)
    results.append_result(path, {"name": "b", "text": "\u4e2d"})
    assert lines(path) == [{"name": "a"}, {"name": "b", "text": "\u4e2d"}]
    before = path.read_bytes()
    results.append_result(path, {"name": "a"})  # is there
    assert path.read_bytes() == before


def test_nothing_but_half_a_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"na')
    results.append_result(path, {"name": "a"})
    assert lines(path) == [{"name": "a"}]


def test_code_that_was_changed_is_other_code(tmp_path, monkeypatch):
    """Also in a checkout that was changed before, and outside of git."""
    for name in ("package", "eval"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    package = tmp_path / "package" / "__init__.py"
    monkeypatch.setattr(provenance.longmem_fairseq, "__file__", str(package))

    def code_hash():
        provenance.code_hash.cache_clear()
        return provenance.code_hash()

    found = [code_hash()]
    for name in ("package", "eval"):
        (tmp_path / name / "inner" / "a.py").write_text("2")
        found.append(code_hash())
    shutil.move(tmp_path / "eval" / "inner" / "a.py", tmp_path / "eval" / "a.py")
    found.append(code_hash())
    assert len(set(found)) == 4
    (tmp_path / "eval" / "a.md").write_text("text")
    assert code_hash() == found[-1]
    provenance.code_hash.cache_clear()


@pytest.mark.parametrize("content", [{}, {"chance": None}, {"chance": 0}, {"chance": 0.5}])
def test_a_chance(content):
    assert chance_of(content, Path("manifest.json")) == content.get("chance")
