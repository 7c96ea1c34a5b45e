"""A file that is replaced as a whole, by one that was written beside it.

Two processes that read a file, add to it and put theirs in place lose nothing: the second is refused.
"""

import fcntl
import os
import shutil
import stat
from contextlib import suppress
from typing import Optional, Tuple

Version = Tuple[int, ...]


def file_version(path: str) -> Version:
    """Differs after a file was written again; empty where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def replaced_mode(path: str) -> Optional[int]:
    """The permissions of the file that is to be replaced; None where there is none, or a link to one.

    Raises:
        OSError: it must not be replaced: its owner made it read-only, or it is no file
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode) and (os.path.isfile(path) or not os.path.exists(path)):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file: give another name")
    mode = stat.S_IMODE(status.st_mode)
    if not mode & stat.S_IWUSR:  # root may write it all the same
        raise OSError(f"it is read-only (mode {mode:o}): chmod u+w, or give another name")
    return mode


def give_usual_mode(path: str) -> None:
    """Gives a file the permissions of any new one: safetensors lets only its owner read it."""
    usual = f"{path}.usual"
    open(usual, "w").close()
    shutil.copymode(usual, path)
    os.remove(usual)


def put_in_place(part: str, path: str, replaces: Optional[Version] = None) -> Version:
    """Makes a staged file that of *path*, at once, and returns its version.

    Args:
        replaces: the version that is there (default: any, or none)

    Raises:
        OSError: another version is there, which is left as it is
    """
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # until it is closed, or the process dies
        if replaces is not None and file_version(path) != replaces:
            raise OSError(
                "another process saved it after it was read: read it again, or give another name"
            )
        version = file_version(part)  # which renaming does not change
        os.replace(part, path)
        os.fsync(descriptor)  # the new name too outlives a power cut
        return version
    finally:
        os.close(descriptor)
