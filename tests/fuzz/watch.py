"""The limits of every reader of a file: forbidden acts, and memory."""

import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

MEMORY = 1 << 30  # bytes that a reader may map on top of what the process has
# pickle.find_class: what Python's own unpickler looks up before it calls it
EXECUTION = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    "pickle.find_class",
)
NETWORK = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
REMOVAL = ("os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir", "os.rename")


class Forbidden(BaseException):
    """Not an Exception, so that no reader can take it for a damaged file."""


class _Watch:
    """Audit hooks stay for the life of a process: this one, while it has a folder."""

    def __init__(self):
        self.folder: Optional[Path] = None
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        if event in EXECUTION + NETWORK:
            self.stop(event, arguments)
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not self.is_inside(arguments[0]):
                self.stop(event, arguments)
        if event in REMOVAL:
            paths = arguments[: 2 if event == "os.rename" else 1]  # from, to; folders come last
            if not all(map(self.is_inside, paths, arguments[-len(paths) :])):
                self.stop(event, arguments)

    def is_inside(self, path, descriptor: object = None) -> bool:
        """Args: descriptor: of an open folder that *path* starts from, as shutil.rmtree has it."""
        is_open = type(descriptor) is int and descriptor >= 0
        start = os.readlink(f"/proc/self/fd/{descriptor}") if is_open else ""
        path = Path(start, os.fsdecode(path)).resolve()  # of folder/../other too
        return path == Path(os.devnull) or path.is_relative_to(self.folder)

    def stop(self, event: str, arguments: tuple) -> None:
        self.folder = None  # the report of it opens files
        raise Forbidden(f"{event} {arguments}")


_watch = _Watch()


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Inside, Forbidden is raised for what no reader of *folder* may do, and memory is limited."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, limits[1]))
    _watch.folder = folder.resolve()
    try:
        yield
    finally:
        _watch.folder = None
        resource.setrlimit(resource.RLIMIT_AS, limits)
