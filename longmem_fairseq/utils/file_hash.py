"""SHA-256 of files."""

import hashlib
from pathlib import Path
from typing import Union


def file_hash(path: Union[str, Path]) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        FileNotFoundError: there is none
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
