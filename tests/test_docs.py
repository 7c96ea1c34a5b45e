"""README and docs: every path, script and option they mention exists, and lines are short."""

import re
import subprocess
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LONGEST_LINE = 120
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


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    missing = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_lines_are_short(page):
    """Except rows of tables, and output of programs, which are as long as they are."""
    long, fence = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip("` ")
        elif len(line) > LONGEST_LINE and fence != "text" and not line.startswith("|"):
            long.append(number)
    assert long == []


def test_settings_of_scripts_are_in_the_table():
    scripts = [*(ROOT / "train_scripts").glob("*.sh"), *(ROOT / "eval").glob("*.sh")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    settings = set(re.findall(r"\$\{([A-Z][A-Z_]+)[:?+-]", text))
    settings -= {"PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV", "BASH_SOURCE", "BENCHMARK"}
    rows = re.findall(r"(?m)^\| (`.*?) \|", (ROOT / "docs" / "running.md").read_text("utf-8"))
    documented = set(re.findall(r"`([A-Z_]+)`", "\n".join(rows)))
    slurm = {name for name in settings if name.startswith("SLURM_")}
    assert settings - slurm == documented


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
