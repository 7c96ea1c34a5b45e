"""Prints, a line each, what ``pip install -e ROOT[EXTRA]`` would still have to install.

Called by environment.sh: asking the metadata takes a tenth of a second, asking pip some seconds.

    python -I train_scripts/missing_requirements.py ROOT EXTRA
"""

import json
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

PROJECT = "longmem-fairseq"


def installed(name: str) -> bool:
    """Whether the distribution *name* is in this environment."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def is_current(project: Distribution, root: Path) -> bool:
    """Whether *project* is an editable install of *root*, newer than its setup.py."""
    source = json.loads(project.read_text("direct_url.json") or "{}")
    if source.get("url") != root.as_uri() or not source.get("dir_info", {}).get("editable"):
        return False
    metadata = next(file for file in project.files or () if file.name == "METADATA")
    return metadata.locate().stat().st_mtime >= (root / "setup.py").stat().st_mtime


def missing_requirements(root: Path, extra: str) -> list[str]:
    """The project itself, or those of its direct requirements that are absent or too old or new."""
    try:
        from packaging.requirements import Requirement  # comes with fairseq

        project = distribution(PROJECT)
    except (ImportError, PackageNotFoundError):
        return [PROJECT]
    if not is_current(project, root):
        return [PROJECT]
    missing = []
    for requirement in map(Requirement, project.requires or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if not installed(requirement.name) or not requirement.specifier.contains(
            version(requirement.name), prereleases=True
        ):
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def main() -> None:
    root, extra = Path(sys.argv[1]).resolve(), sys.argv[2]
    if installed("faiss-cpu") and installed("faiss-gpu"):
        sys.stderr.write(
            "missing_requirements.py: error: faiss-cpu and faiss-gpu are both installed and "
            "overwrite each other: pip uninstall -y faiss-cpu faiss-gpu, then install one of them\n"
        )
        sys.exit(2)
    for requirement in missing_requirements(root, extra):
        sys.stdout.write(requirement + "\n")


if __name__ == "__main__":
    main()
