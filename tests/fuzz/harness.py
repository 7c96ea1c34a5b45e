"""Reading a damaged file, and checking the promises that hold for any content."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from unittest import mock

from tests.fuzz.targets import DECLARED, TARGETS
from tests.fuzz.watch import watched


class Format:
    """A target with its folder of good files.

    Args:
        name: of a target
        folder: empty
    """

    def __init__(self, name: str, folder: Path):
        self.target, self.folder = TARGETS[name], folder
        self.target.make(folder)
        # in the folder, because nothing may be written elsewhere
        self.temporary = folder.absolute() / "tmp"
        self.temporary.mkdir()
        self.path = folder / self.target.file
        self.good = self.path.read_bytes()

    def read(self, content: bytes) -> str:
        """Reads the folder with *content* as its file; returns the error, "" for none.

        Raises:
            Forbidden, MemoryError, or whatever else is no declared error: a finding
        """
        self.path.write_bytes(content)
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),  # bars of progress
            warnings.catch_warnings(),
            mock.patch("tempfile.tempdir", str(self.temporary)),
        ):
            warnings.simplefilter("ignore")
            with watched(self.folder):
                try:
                    self.target.read(self.folder)
                except DECLARED as error:
                    return str(error) or "(no message)"
        return ""


def quiet() -> None:
    logging.disable(logging.CRITICAL)
