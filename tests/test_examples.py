"""$LONGMEM_HYPOTHESIS_EXAMPLES sets how many examples every property is tried with."""

import re

from tests.helpers.examples import examples


def test_the_variable_replaces_the_usual_number(monkeypatch):
    monkeypatch.delenv("LONGMEM_HYPOTHESIS_EXAMPLES", raising=False)
    assert examples(40) == 40
    monkeypatch.setenv("LONGMEM_HYPOTHESIS_EXAMPLES", "1000")
    assert examples(40) == 1000


def test_every_property_takes_it(root):
    """No test file has properties whose number of examples is fixed, or hypothesis' own."""
    for path in (root / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        properties = len(re.findall(r"^@given\(|= \w+\.TestCase$", text, re.MULTILINE))
        assert len(re.findall(r"settings\(max_examples=examples\(", text)) == properties, path.name
