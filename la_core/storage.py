"""The disk as a checkpoint sees it: a dozen small operations, each of which can fail, or be lost when the power goes.

Nothing else in la_core decides what is durable, so a test that puts another class in this one's place can let any one
operation fail, or forget what was never synced (``tests/storages.py``).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


def memory() -> int:
    """Bytes of the memory of this machine; more than any file where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**62


class Storage:
    """The file system. Every method raises ``OSError`` as the system does; no link is ever followed to a file."""

    def make_folder(self, path: Path) -> None:
        """A new folder in one that is there."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """A new, empty file, open for writing: its descriptor. Never one that is there already."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, file: int, data: bytes | memoryview) -> None:
        """All of ``data``, at the end of what was written before."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(file, rest) :]

    def sync(self, file: int) -> None:
        """Return when the content of the file is on the disk."""
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's cache
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
        else:
            os.fsync(file)

    def close(self, file: int) -> None:
        """The descriptor is of no use from now on."""
        os.close(file)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in the folder are on the disk."""
        if os.name == "nt":  # a folder cannot be opened there; renames are journalled
            return
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rename(self, old: Path, new: Path) -> None:
        """In one instant, within one file system."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """One file."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """One folder, which must be empty."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """What is in a folder, in order; nothing where there is no such folder."""
        return sorted(os.listdir(path)) if self.is_folder(path) else []  # noqa: PTH208  (names, not paths)

    def is_folder(self, path: Path) -> bool:
        """Whether there is a folder by that name: the folder itself, not a link to one."""
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            return False

    def read(self, path: Path, most: int) -> bytearray:
        """The content of a regular file of at most ``most`` bytes. Refused before anything is allocated otherwise."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.open(path, flags)  # not blocking: a pipe would wait for a writer
        with os.fdopen(file, "rb", buffering=0) as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            if status.st_size > most:
                raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, more than {most}", str(path))
            if status.st_size > memory():  # a file of holes takes no disk
                raise OSError(errno.ENOMEM, f"it has {status.st_size} bytes, and this machine {memory()}", str(path))
            content = bytearray(status.st_size)
            rest = memoryview(content)
            while rest and (n := stream.readinto(rest)):
                rest = rest[n:]
            if rest:
                raise OSError(errno.EIO, "it became shorter while it was read", str(path))
        return content
