"""The code and the files that a result came from."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

import longmem_fairseq
from longmem_fairseq.utils.file_hash import file_hash

ROOT = Path(__file__).resolve().parent.parent.parent


@cache  # asked for every result
def commit() -> str:
    """The checkout's commit, "-dirty" after it if a tracked file was changed; "unknown" outside git."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(
            [*describe, "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


@cache  # the code that this process runs, even if it is edited meanwhile
def code_hash() -> str:
    """SHA-256 of the Python files of the package and of eval/, committed or not."""
    digest = hashlib.sha256()
    for folder in (Path(longmem_fairseq.__file__).parent, ROOT / "eval"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return digest.hexdigest()
