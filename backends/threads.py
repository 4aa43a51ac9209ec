"""Threads of one's own on a CPU, each with a BLAS library that computes alone: where threadpoolctl is there to say so.

Threads that share a product wait for each other after every block, and all but one wait while its result is looked at.
They also stay at work for a while after each call, in wait for the next, and keep a core from whoever computes then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeAlias

from la_core import kernels

Map: TypeAlias = Callable[[Callable[[slice], Any], list[slice]], Iterable[Any]]
"""``map``, or that of a pool of threads."""


def alone() -> AbstractContextManager[Any]:
    """In which NumPy's BLAS library has one thread."""
    blas = _blas()
    return nullcontext() if blas is None else blas.limit(limits=1)


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
        with ThreadPoolExecutor(count) as threads:
            yield count, threads.map


def shares(n: int, count: int) -> list[slice]:
    """About equal parts of ``range(n)``, one for each thread."""
    return list(kernels.blocks(n, -(-n // count)))


def _count() -> int:
    """Threads that the library has now: 1 too where they are OpenMP's, whose number each thread has for itself."""
    found = [] if _blas() is None else _blas().lib_controllers
    return max((x.num_threads if x.threading_layer == "pthreads" else 1 for x in found), default=1)


@cache
def _blas() -> Any:
    """What says how many threads OpenBLAS has; None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(internal_api="openblas")
