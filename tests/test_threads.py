"""Threads of our own: each has a BLAS library that computes alone, and what they do is what one does."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier, Event, Thread, get_ident
from unittest import mock

import numpy as np
import pytest
import threadpoolctl

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strategies import Case, cases, integer_rows, unit_rows
from variants import ACROSS, EXACT, NUMPY, TORCH, assert_close, assert_same

from la_core import kernels, lists, objectives, tiles
from la_core.backends import host, threads
from la_core.backends.torch import kernels as torch_kernels
from la_core.bank import unit

HOSTS = pytest.mark.parametrize("variant", [NUMPY, TORCH], ids=str)


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


@pytest.fixture
def two_for_all():
    """And no thread of the program is the only one that may say how many there are to be."""
    openblas = threadpoolctl.ThreadpoolController().select(internal_api="openblas")
    limit = openblas.limit(limits=2)
    anyone()
    assert blas() == 2
    yield openblas.lib_controllers
    limit.restore_original_limits()
    anyone()


def anyone():
    threadpoolctl.OpenBLASController.clear_controlling_thread(force=True)


def law_numpy_has_its_threads_when_nobody_is_alone(turns):
    """Three threads; each comes in when it is its turn, and leaves at the next."""
    with ExitStack() as stack:
        workers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        inside = {}

        def turn(i):
            if i in inside:
                inside.pop(i).close()
                return
            inside[i] = ExitStack()
            inside[i].enter_context(threads.alone())

        for i in [*turns, *(i for i in range(3) if turns.count(i) % 2)]:
            workers[i].submit(turn, i).result(60)
            assert blas() == (1 if inside else 2)
            with threads.pool() as given:
                assert given[0] == (1 if inside else 2)


@pytest.mark.usefixtures("two_for_all")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.integers(0, 2), max_size=8))
@example(turns=[0, 1, 0, 1])
@example(turns=[0, 1, 1, 0])
def test_numpy_has_its_threads_when_nobody_is_alone(turns):
    law_numpy_has_its_threads_when_nobody_is_alone(turns)


def test_a_number_that_the_program_sets_meanwhile_stays(two_for_all):
    with threads.alone():
        for x in two_for_all:
            x.set_num_threads(3)
    assert blas() == 3


def test_without_threadpoolctl_there_is_one_thread(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    threads._blas.cache_clear()
    try:
        with threads.alone(), threads.pool() as given:
            assert given == (1, map)
    finally:
        threads._blas.cache_clear()


def parts_of(n):
    return [slice(i, i + 1) for i in range(n)]


@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_a_team_does_every_part_once_and_answers_in_their_order(count, n):
    done = []
    with threads.team(count) as each:
        for _ in range(3):
            found = each(lambda part: done.append(part.start) or -part.start, parts_of(n))
            assert found == [-i for i in range(n)]
    assert sorted(done) == sorted(3 * list(range(n)))


def test_who_calls_does_what_others_have_not_begun():
    """As where they have no core yet: here each waits, before its first part, until all is done."""
    done = Event()
    with threads.team(3, done.wait) as each:
        assert set(each(lambda _: get_ident(), parts_of(5))) == {get_ident()}
        done.set()


def test_all_of_a_team_take_part():
    """Each part waits for the others, so that one thread alone would never end."""
    meet = Barrier(3)
    with threads.team(3) as each:
        assert len(set(each(lambda _: (meet.wait(60), get_ident())[1], parts_of(3)))) == 3


@pytest.mark.parametrize("who", ["caller", "another"])
def test_an_error_is_raised_and_nobody_goes_on(who, monkeypatch):
    meet, failed, done = Barrier(2), Event(), []

    def drained(todo, _):
        list(todo)
        failed.set()

    def part(some):
        if some.start < 2:
            meet.wait(60)
            if (get_ident() == caller) is (who == "caller"):
                raise ZeroDivisionError
            assert failed.wait(60)
        done.append(some.start)

    caller = get_ident()
    monkeypatch.setattr(threads, "deque", drained)
    with threads.team(2) as each, pytest.raises(ZeroDivisionError):
        each(part, parts_of(50))
    assert len(done) == 1, "but for the part that was under way"


@contextmanager
def several(pays):
    yield 3, lambda work, parts: [work(part) for part in reversed(parts)][::-1]


def law_shares_of_a_batch_are_the_whole(variant, case, through_lists=False):
    """Of 2 or 3 rows each, by three threads."""
    there = case.on(variant)
    args = unit(there.z), there.state.bank, there.state.labels, there.indices
    settings = {**there.settings, "budget": kernels.BUDGET, "lists": None, "probes": 1, "batch": len(case.z)}
    if through_lists:
        settings["probes"] = m = int(case.labels.max()) + 1
        settings["lists"] = lists.lists(there.state.bank, there.state.labels, m)
    with mock.patch.multiple(host, SHARE=2, FEWEST=0):
        found = host.aggregate(several, *args, **settings)
    for ours, theirs in zip(found, objectives.aggregate.reference(*args, **settings), strict=True):
        assert_close(variant.to_host(ours), variant.to_host(theirs), EXACT, 1.0)


@HOSTS
@given(case=cases(batch=7))
def test_shares_of_a_batch_are_the_whole(variant, case):
    law_shares_of_a_batch_are_the_whole(variant, case)


@HOSTS
@given(case=cases(batch=7, n=33))
def test_shares_of_a_batch_through_lists_are_the_whole(variant, case):
    law_shares_of_a_batch_are_the_whole(variant, case, through_lists=True)


def law_shares_of_a_search_are_the_whole(variant, seed):
    """To the bit, for scores of whole numbers are exact however they are added."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 30))
    z, bank = (integer_rows(rng.integers(2**32), n, 3).astype(np.float64) for n in (7, 30))
    there = [variant.asarray(x) for x in (z, bank)]
    with (
        mock.patch.multiple(host, SHARE=2, FEWEST=0),
        mock.patch.object(threads, "pool", several),
        mock.patch.object(torch_kernels, "_threads", several),
    ):
        found = kernels.nearest(*there, k)
    for ours, theirs in zip(found, kernels.nearest.reference(z, bank, k), strict=True):
        assert_same(variant.to_host(ours), theirs)


@HOSTS
@given(seed=st.integers(0, 2**32 - 1))
def test_shares_of_a_search_are_the_whole(variant, seed):
    law_shares_of_a_search_are_the_whole(variant, seed)


@HOSTS
def test_at_its_own_size_a_step_is_made_in_shares(variant):
    """Whichever way it is taken, the numbers are those of the other."""
    rng, k, taken = np.random.default_rng(0), 300, []
    bank, z = (unit_rows(rng, n, 16).astype(np.float32) for n in (20_000, 200))
    there = Case(bank, rng.integers(0, 50, (3, 20_000)), rng.permutation(200), z, None, k, 0.1, "union", 0.5).on(
        variant
    )
    whole = objectives.aggregate.reference

    def counting(v, *args, **settings):
        taken.append(v.shape[0])
        return whole(v, *args, **settings)

    def terms():
        found = objectives.local_aggregation_terms(there.z, there.state, there.indices, **there.settings)
        return [variant.to_host(x) for x in found]

    with (
        threadpoolctl.threadpool_limits(2, user_api="blas"),
        two_of_torch(),
        mock.patch.object(objectives.aggregate, "reference", counting),
    ):
        shared = terms()
        with mock.patch.object(host, "SHARE", 200):
            together = terms()
    assert sorted(taken) == [100, 100, 200]
    for ours, theirs in zip(shared, together, strict=True):
        assert_close(ours, theirs, ACROSS[np.dtype(np.float32)], 1.0)


@contextmanager
def two_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def law_lists_of_shares_are_the_whole(variant):
    centroids = integer_rows(0, 40, 5).astype(np.float32)
    with mock.patch.object(threads, "pool", several), mock.patch.object(host, "SHARED", 1):
        found = host.neighbours(centroids[:31], centroids, 7)
    for ours, theirs in zip(found, tiles.neighbours.reference(centroids[:31], centroids, 7), strict=True):
        assert_same(ours, theirs)


def test_lists_of_shares_are_the_whole():
    law_lists_of_shares_are_the_whole(NUMPY)


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
