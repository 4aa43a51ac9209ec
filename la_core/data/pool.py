"""Processes that hold one object and work on it.

A process is started afresh ("spawn": no locks or GPU contexts are inherited), on every platform alike. It imports the
script that the run was started with, which must therefore keep its work under ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from la_core.errors import DataError, LaCoreError, SettingsError

Held = TypeVar("Held")
Task = TypeVar("Task")
Result = TypeVar("Result")


class Pool(Generic[Held]):
    """Processes that hold one object. Tasks go out, results come back in order.

    The processes start at the first task, serve every later :meth:`map`, and end with :meth:`close`, with the ``with``
    block, or with this process, however it ends. A closed pool works in this process.

    Parameters
    ----------
    count
        Processes. 0: everything happens in this process, when it is asked for.
    held
        What ``function`` is given with each task. Sent to each process once.
    ahead
        Most tasks that are under way or done and not fetched. By default 2 for each process.

    Raises
    ------
    SettingsError
        ``count`` or ``ahead`` is no such number.
    DataError
        ``held`` cannot be sent to another process.
    """

    def __init__(self, count: int, held: Held, *, ahead: int | None = None) -> None:
        for name, value, least in (("workers", count, 0), ("ahead", 1 if ahead is None else ahead, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingsError(f"{name} must be an integer of at least {least}; got {value!r}")
        self.count, self.held, self.ahead = count, held, 2 * count if ahead is None else ahead
        self._payload = _packed("the data set", held) if count else b""
        self._executor: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Held, Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """``function(held, task)`` of each task, in order. ``function`` belongs to a module, for it travels by name.

        Raises
        ------
        LaCoreError
            As ``function`` raises it. Any other exception in another process arrives as a DataError.
        DataError
            A process died.
        """
        if not self.count:
            yield from (function(self.held, task) for task in tasks)
            return
        waiting = iter(tasks)
        pending: deque[Future[Result]] = deque()
        try:
            for task in itertools.islice(waiting, self.ahead):
                pending.append(self._submit(function, task))
            while pending:
                result = pending.popleft().result()
                for task in itertools.islice(waiting, 1):
                    pending.append(self._submit(function, task))
                yield result
                del result  # while the next one is awaited, it would be one more than `ahead` says
        except BrokenProcessPool:
            self._stop()
            raise DataError(
                "a worker process died: it was killed, ran out of memory, or could not start. A script that uses "
                'workers keeps its work under `if __name__ == "__main__":`; workers=0 does without them'
            ) from None
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """End the processes, when each has finished the task that it is at. To be called twice does no harm."""
        self._stop()
        self.count, self._payload = 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _submit(self, function: Callable[[Held, Task], Result], task: Task) -> Future[Result]:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(self._payload,)
            )
        # Packed here: what cannot be packed, or unpacked over there, fails this task and leaves the pool whole.
        packed = _packed("the view", task)
        with _interrupts_later():  # a process may be started here, and inherits that it is not interrupted
            return self._executor.submit(_work, function, packed)

    def _stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the block is left. On Windows it does not, and a process that just starts may say so."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _packed(what: str, value: object) -> bytes:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise DataError(
            f"{what} cannot be sent to worker processes ({error}): define it at the top of a module and without "
            "lambdas or open files, or use workers=0"
        ) from error


# In the other process -------------------------------------------------------------------------------------------------

_held: Any = None
_error: DataError | None = None


def _begin(payload: bytes) -> None:
    global _held, _error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the rest
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _held = pickle.loads(payload)
    except Exception as error:  # raised here it would only be "broken pool" over there
        _error = DataError(f"the data set cannot be set up in a worker process ({type(error).__name__}: {error})")


def _end_with_parent() -> None:
    """A process pool waits for its parent for ever, even one that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(function: Callable[[Any, Any], Result], packed: bytes) -> Result:
    if _error is not None:
        raise _error
    try:
        return function(_held, pickle.loads(packed))
    except LaCoreError:
        raise
    except Exception as error:  # not every exception can be unpacked where it arrives, and that breaks the pool
        raise DataError(f"{type(error).__name__} in a worker process: {error}") from error
