"""SIGTERM, as schedulers send it before they take a machine away: noted, and heeded between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Notice:
    """Whether the process has been asked to end."""

    given: bool = False


@contextmanager
def heeded(wanted: bool = True) -> Iterator[Notice]:
    """Turn SIGTERM into a notice for as long as the block lasts; the handler that was there comes back after it.

    Where it cannot be done nothing changes: outside the main thread, and where the program handles SIGTERM itself.
    """
    notice = Notice()
    main = threading.current_thread() is threading.main_thread()
    if not wanted or not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield notice
        return

    def note(number: int, frame: object) -> None:
        notice.given = True

    signal.signal(signal.SIGTERM, note)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
