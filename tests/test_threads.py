"""Threads of our own: each has a BLAS library that computes alone, and what they do is what one does."""

import sys
from contextlib import contextmanager
from threading import Event, Thread

import numpy as np
import pytest
import threadpoolctl
from strategies import integer_rows
from variants import assert_same

from la_core import kernels
from la_core.backends import host, threads


def blas():
    """How many threads NumPy's library has now."""
    return threads._count()


@pytest.fixture
def two():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert blas() == 2
        yield
        assert blas() == 2, "afterwards it has its own number again"


@pytest.mark.usefixtures("two")
def test_alone_numpy_has_one_thread():
    with threads.alone():
        assert blas() == 1
        with threads.alone():
            assert blas() == 1
        assert blas() == 1
    with pytest.raises(ZeroDivisionError), threads.alone():
        raise ZeroDivisionError


@pytest.mark.usefixtures("two")
def test_a_pool_has_as_many_threads_as_numpy_would_have_and_these_one_each():
    with threads.pool() as (count, each):
        assert count == 2
        assert list(each(lambda some: (some.start, blas()), [slice(3, 4), slice(5, 6)])) == [(3, 1), (5, 1)]
        with threads.pool() as inner:
            assert inner == (1, map)
    with threads.pool(pays=False) as given:
        assert given == (1, map)
        assert blas() == 2


@pytest.mark.usefixtures("two")
def test_where_another_thread_has_said_how_many_there_are_to_be_there_is_no_pool():
    """As threadpoolctl has it: the first thread that limits OpenBLAS is the one that may, until it lets go."""
    found, begun = [], Event()

    def other():
        with threads.pool() as given:
            found.append(given)
        begun.set()

    thread = Thread(target=other)
    thread.start()
    assert begun.wait(60)
    thread.join()
    assert found == [(1, map)]


def test_without_threadpoolctl_there_is_one_thread(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    threads._blas.cache_clear()
    try:
        with threads.alone(), threads.pool() as given:
            assert given == (1, map)
    finally:
        threads._blas.cache_clear()


@contextmanager
def several(pays):
    yield 3, lambda work, parts: [work(part) for part in reversed(parts)]


def law_the_parts_of_an_assignment_are_the_whole(budget):
    x, centroids = (integer_rows(seed, n, 5).astype(np.float32) for seed, n in ((0, 1001), (1, 40)))
    for ours, theirs in zip(host.assign(x, centroids, budget), kernels.assign.reference(x, centroids), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("budget", [1, 3 * 200 * 40 * 4, 2**20])
def test_the_parts_of_an_assignment_are_the_whole(budget, monkeypatch):
    monkeypatch.setattr(threads, "pool", several)
    monkeypatch.setattr(host, "SHARED", 1)
    law_the_parts_of_an_assignment_are_the_whole(budget)


def test_the_law_of_the_parts_can_fail(monkeypatch):
    monkeypatch.setattr(threads, "pool", several)
    monkeypatch.setattr(host, "SHARED", 1)
    monkeypatch.setattr(kernels, "blocks", lambda n, size: iter([slice(0, size), slice(size, n - 1)]))
    with pytest.raises(AssertionError):
        law_the_parts_of_an_assignment_are_the_whole(2**20)


def law_the_parts_of_a_weighted_sum_are_the_whole():
    bank, weights = (integer_rows(seed, *shape).astype(np.float32) for seed, shape in ((0, (50, 4)), (1, (11, 7))))
    indices = np.random.default_rng(2).integers(50, size=(11, 7))
    assert_same(host.weighted_rows(weights, bank, indices), kernels.weighted_rows.reference(weights, bank, indices))


def test_the_parts_of_a_weighted_sum_are_the_whole(monkeypatch):
    monkeypatch.setattr(threads, "pool", several)
    monkeypatch.setattr(host, "GATHERED", 1)
    for cache in (1, 3 * 7 * 4 * 4, kernels.CACHE):  # a row at a time, some, all of a part
        monkeypatch.setattr(kernels, "CACHE", cache)
        law_the_parts_of_a_weighted_sum_are_the_whole()


def test_the_law_of_the_parts_of_a_sum_can_fail(monkeypatch):
    @contextmanager
    def forgetful(pays):
        yield 3, lambda work, parts: [work(part) for part in (slice(part.start, part.stop - 1) for part in parts)]

    monkeypatch.setattr(threads, "pool", forgetful)
    monkeypatch.setattr(host, "GATHERED", 1)
    monkeypatch.setattr(np, "empty", np.zeros)  # else what is forgotten may be there from before
    with pytest.raises(AssertionError):
        law_the_parts_of_a_weighted_sum_are_the_whole()
