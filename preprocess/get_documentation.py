#!/usr/bin/env python3
"""Bring real text without a hub: Django's documentation, out of its source distribution.

Example:
    python -m preprocess.get_documentation --dest data/django

Downloads one file of the Python package index (11 MB, SHA-256 checked), of which nothing is installed
or executed, and writes the reStructuredText of docs/ (6 MB, BSD license, Django Software Foundation)
into --dest/{train,valid,test}: neighboring pages are one document of 150,000 characters or more. The
index is that of PIP_INDEX_URL, or https://pypi.org/simple.
"""

import hashlib
import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from longmem_fairseq.utils.cli import documented_parser, run
from longmem_fairseq.utils.output_folder import is_up_to_date, replaced_folder

PROJECT, FILE = "django", "django-5.2.10.tar.gz"
SHA256 = "74df100784c288c50a2b5cad59631d71214f40f72051d5af3fdf220c20bdbbbe"
CHARACTERS = 150_000  # of a document, at least
EVERY = 6  # documents: one for the test split, and another for valid
TIMEOUT = 60  # seconds without a byte


def download() -> bytes:
    """The source distribution.

    Raises:
        OSError: it cannot be had
        ValueError: its SHA-256 is not the expected one
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    page = urllib.request.Request(
        f"{index}/{PROJECT}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    try:
        with urllib.request.urlopen(page, timeout=TIMEOUT) as answer:
            files = json.load(answer)["files"]
        (url,) = [file["url"] for file in files if file["filename"] == FILE]
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OSError(
            f"{FILE} cannot be downloaded from {index} ({error}); set PIP_INDEX_URL, or give texts of "
            "your own (TEXT_DIR of train_scripts/quickstart.sh)"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{FILE} from {index} has the SHA-256 {digest}, expected {SHA256}")
    return content


def documents(archive: bytes) -> Iterator[str]:
    """The pages of docs/, in order of their names, as documents."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        names = sorted(name for name in files.getnames() if is_page(name))
        pages = [files.extractfile(name).read().decode() for name in names]
    document: List[str] = []
    for page in pages:
        document.append(page)
        if sum(map(len, document)) >= CHARACTERS:
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def is_page(name: str) -> bool:
    """Whether a file of the archive is a page: releases repeat each other, and are left out."""
    parts = name.split("/")
    return (
        parts[1:2] == ["docs"]
        and len(parts) > 3
        and "releases" not in parts
        and name.endswith(".txt")
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    parser = documented_parser(__doc__)
    parser.add_argument("--dest", type=Path, required=True, help="folder to write")
    dest = parser.parse_args(argv).dest
    made = {"format": 1, "file": FILE, "sha256": SHA256, "characters": CHARACTERS, "every": EVERY}
    if is_up_to_date(dest, "source.json", made, overwrite=False):
        return
    with replaced_folder(dest) as new:
        for number, text in enumerate(documents(download())):
            split = {1: "test", 2: "valid"}.get(number % EVERY, "train")
            (new / split).mkdir(exist_ok=True)
            (new / split / f"django-{number:02}.txt").write_text(text, encoding="utf-8")
        (new / "source.json").write_text(json.dumps(made))
    print(dest)


if __name__ == "__main__":
    run(main)
