"""Names in README and docs: every path, script and option they mention exists."""

import re
import subprocess
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "longmem_fairseq|preprocess|train_scripts|eval|tests|docs"


def tracked_text() -> str:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w/?)", text))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert missing == []


def test_the_way_of_one_key_and_value_is_short_and_true():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## The way of one key and value\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| `([\w/]+)\.py` \| `([\w.]+)` \|", section)
    assert 5 < len(rows) < 10
    for file, function in rows:
        assert callable(resolve_name(f"longmem_fairseq.{file.replace('/', '.')}:{function}"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page):
    import fairseq

    code = tracked_text()
    fairseq_code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (Path(fairseq.__file__).parent / "dataclass").glob("*.py")
    )
    fairseq_code += (Path(fairseq.__file__).parent / "options.py").read_text(encoding="utf-8")
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8")))
    unknown = []
    for option in sorted(options - {"--help"}):
        field = option[2:].replace("-", "_")
        if not re.search(rf'(?m)"{option}"|^    {field}: ', code + "\n" + fairseq_code):
            unknown.append(option)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
