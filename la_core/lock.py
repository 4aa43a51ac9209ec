"""One run at a time in a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from la_core.errors import RunFolderError

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no flock: there nothing is refused
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"


class Lock:
    """Holds ``run.lock`` in a folder, in which it says who it is.

    The lock is the kernel's (``flock``), so that it ends with the process, however that ends: the file that a killed
    run leaves behind locks nothing. It reaches as far as the file system carries it, on NFS between hosts.

    Raises
    ------
    RunFolderError
        Another process holds it: names that process. The file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._file = -1
        while self._file < 0:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise RunFolderError(f"the run folder {folder} cannot be written: {error}") from error
            self._file = self._held(file)
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _held(self, file: int) -> int:
        """The file if it is locked now and still the one of that name, otherwise -1."""
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), self._path.stat()):
                return file
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise RunFolderError(
                f"a run is at work in {self._path.parent} ({holder}): wait for it, or name another folder"
            ) from None
        except FileNotFoundError:  # the other one has just ended, and taken the file away
            pass
        os.close(file)
        return -1

    def release(self) -> None:
        """Give the folder free. To be called twice does no harm."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1
