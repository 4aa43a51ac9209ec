"""Threads of one's own on a CPU, each with a BLAS library that computes alone: where threadpoolctl is there to say so.

Threads that share a product wait for each other after every block, and all but one wait while its result is looked at.
They also stay at work for a while after each call, in wait for the next, and keep a core from whoever computes then. So
the thread that calls takes part, and does what another, that got no core yet, has not begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Lock
from typing import Any, NamedTuple, TypeAlias, TypeVar

from la_core import kernels

_T = TypeVar("_T")
Map: TypeAlias = Callable[[Callable[[slice], Any], list[slice]], Iterable[Any]]
"""``map``, or that of a pool of threads."""


@contextmanager
def alone() -> Iterator[None]:
    """In which NumPy's BLAS library has one thread.

    Its number is one for the whole program: it comes back when the last of all threads that are in here leaves.
    """
    global _inside
    blas = _blas()
    if blas is None:
        yield
        return
    with _lock:
        own = blas.own.limit(limits=1).__enter__()
        _inside += 1
        for x in blas.shared:
            if (threads := x.num_threads) > 1:
                _before.setdefault(x, threads)
                x.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for x, threads in _before.items():
                    if x.num_threads == 1:  # else somebody has set it since
                        x.set_num_threads(threads)
                _before.clear()
            # Also lets go of what threadpoolctl leaves to the first thread that sets a number, so that the last may.
            own.__exit__(None, None, None)


@contextmanager
def pool(pays: bool = True) -> Iterator[tuple[int, Map]]:
    """As many threads as NumPy's BLAS library would have; one, which leaves it as it is, where it cannot be told.

    One also where more would not pay.
    """
    count = _count() if pays else 1
    if count == 1:
        yield 1, map
        return
    with alone():
        if _count() > 1:  # another thread of the program has said how many there are to be
            yield 1, map
            return
        with team(count) as each:
            yield count, each


@contextmanager
def team(count: int, begin: Callable[[], object] | None = None) -> Iterator[Map]:
    """A ``map`` by ``count`` threads: the one that calls, and others that ``begin`` with what is to be set for each."""
    with ThreadPoolExecutor(count - 1, initializer=begin) as others:

        def each(function: Callable[[slice], _T], parts: Sequence[slice]) -> list[_T]:
            results: dict[int, _T] = {}
            todo = iter(range(len(parts)))  # one at a time to whoever asks: the next of a range is taken at once

            def work() -> None:
                try:
                    for i in todo:
                        results[i] = function(parts[i])
                finally:
                    deque(todo, 0)  # after an error nobody goes on

            helpers = [others.submit(work) for _ in parts[1:count]]
            try:
                work()
            finally:
                for helper in helpers:
                    helper.cancel()  # what has not begun
            for helper in helpers:
                if not helper.cancelled():
                    helper.result()
            return [results[i] for i in range(len(parts))]

        yield each


def openmp_alone() -> AbstractContextManager[Any] | None:
    """In which OpenMP has one thread for this one, from now on; None without threadpoolctl."""
    openmp = _openmp()
    return None if openmp is None else openmp.limit(limits=1)


def shares(n: int, count: int) -> list[slice]:
    """About equal parts of ``range(n)``, one for each thread."""
    return list(kernels.blocks(n, -(-n // count)))


def _count() -> int:
    """Threads that the library has now: 1 too where they are OpenMP's, whose number each thread has for itself."""
    blas = _blas()
    return 1 if blas is None else max((x.num_threads for x in blas.shared), default=1)


class _Blas(NamedTuple):
    """What says how many threads OpenBLAS has."""

    own: Any
    """Of libraries whose number each thread has for itself."""
    shared: list[Any]
    """Those with one number for all."""


_lock = Lock()
_inside = 0
"""How many are in :func:`alone`, of all threads."""
_before: dict[Any, int] = {}
"""How many threads the shared libraries had when the first came in."""


@cache
def _blas() -> _Blas | None:
    """None without threadpoolctl."""
    found = _libraries()
    if found is None:
        return None
    found = found.select(internal_api="openblas")
    own = found.select(threading_layer=["openmp", "disabled", "unknown"])
    return _Blas(own, found.select(threading_layer="pthreads").lib_controllers)


@cache
def _openmp() -> Any:
    """The same of the libraries of OpenMP."""
    found = _libraries()
    return None if found is None else found.select(user_api="openmp")


def _libraries() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
