"""A folder that is complete or absent: written beside its destination, then renamed into place."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator

from longmem_fairseq.utils.argument_error import ArgumentError
from longmem_fairseq.utils.text_files import parse_json


def check_new(dest: Path) -> None:
    """Raises ValueError unless *dest* is absent or an empty folder: its content would be deleted."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ArgumentError("{dest} ({}) is not empty: give a new or empty folder", dest)


def is_up_to_date(dest: Path, marker: str, wanted: Dict[str, Any], overwrite: bool) -> bool:
    """True where *dest* is this very result: the JSON file *marker* in it holds all of *wanted*.

    Raises:
        ValueError: *dest* holds anything else, unless it is an older result (it has a *marker* that
            names its format, as all of ours do) and *overwrite* is set: a folder that is not ours is
            never replaced
    """
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return False
    path = dest / marker
    try:
        content = parse_json(path.read_bytes()) if path.is_file() else None
    except ValueError:
        content = None
    if not isinstance(content, dict) or "format" not in content:
        message = "{dest} ({}) holds something else (no {} of ours): give a new or empty folder"
        raise ArgumentError(message, dest, marker)
    if all(content.get(key) == value for key, value in wanted.items()):
        return True
    if not overwrite:
        raise ArgumentError(
            "{dest} ({}) was made from other input or options: give another folder or {overwrite} to "
            "replace it",
            dest,
        )
    return False


@contextlib.contextmanager
def replaced_folder(dest: Path) -> Iterator[Path]:
    """A new folder beside *dest*, which takes its place when the block ends well.

    The old content of *dest* is deleted: :func:`check_new` or :func:`is_up_to_date` comes first.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    work = scratch / "new"
    work.mkdir()  # with the user's own permissions, which mkdtemp does not give
    try:
        yield work
        if dest.exists():
            dest.rename(scratch / "old")
        work.rename(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
