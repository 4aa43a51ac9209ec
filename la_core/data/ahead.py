"""Work done one task ahead, in a thread beside the one that uses it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

TURN = 1e-4
"""Seconds for which one thread may keep the interpreter from another that waits for it."""


def one_ahead(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
    """``function(task)`` of each task, in order, the next one made while one is in use.

    At most one is there that was not asked for yet. An error is raised where its result is asked for. The thread ends
    with the generator, whether that is used up, closed, or left by an error; what it is at then is finished first.
    """
    waiting = iter(tasks)
    with short_turns(), ThreadPoolExecutor(1, "la-core-ahead", stand_back) as thread:
        for task in waiting:
            coming = thread.submit(function, task)
            break
        else:
            return
        for task in waiting:
            result = coming.result()
            coming = thread.submit(function, task)
            yield result
            del result  # while the next one is awaited, it would be one more
        yield coming.result()


def stand_back() -> None:
    """Let this thread push no other aside when it is woken, on Linux: it waits for its turn on a core.

    Where all cores are at work, the one that has just asked for the next batch would else lose its own to it, in the
    middle of a step.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(OSError):  # not everybody may
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


_lock = threading.Lock()
_before: list[float] = []
"""Python's turn as it was, once for each that is in :func:`short_turns`."""


@contextmanager
def short_turns() -> Iterator[None]:
    """In which a thread keeps the interpreter from one that waits for :data:`TURN` only, and not Python's 5e-3 seconds.

    A pass of a network is hundreds of calls that leave the interpreter while they compute; each would wait for a whole
    turn of the thread that loads, before the next may begin. The turn is one for the whole program: it comes back when
    the last of all threads that are in here leaves.
    """
    with _lock:
        _before.append(_before[0] if _before else sys.getswitchinterval())
        if sys.getswitchinterval() > TURN:
            sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        with _lock:
            before = _before.pop()
            if not _before and round(sys.getswitchinterval(), 6) == TURN:  # else somebody has set it since
                sys.setswitchinterval(before + 5e-7)  # of which Python cuts off what is below a microsecond
