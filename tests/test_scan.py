"""The scan finds what the reference finds: its laws are those of the search, at a size where every path is taken."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import integer_rows, searches, unit_rows
from test_neighbours import every_dtype, law_nearest_is_exact
from variants import NUMPY, TORCH, assert_same

from la_core import kernels
from la_core.backends import scan, threads
from la_core.backends.torch import kernels as torch_kernels
from la_core.errors import NotFiniteError

HOSTS = pytest.mark.parametrize("variant", [NUMPY, TORCH], ids=str)


@contextmanager
def small(parts=1):
    """Every search is a scan, in blocks of a few rows. Tells how often there was no room and a guess was too high."""
    seen = {"full": 0, "reference": 0}
    tighten, reference = scan._Candidates.tighten, kernels.nearest.reference

    def counting(name, call):
        def run(*args):
            seen[name] += 1
            return call(*args)

        return run

    @contextmanager
    def several(pays=True):
        with ThreadPoolExecutor(parts) as pool:
            yield parts, pool.map

    with (
        mock.patch.multiple(scan, LEAST=0, SHARE=1, STRIDES=(3, 3), SCORES=1, ROWS=3, FEW=0),
        mock.patch.object(kernels, "CACHE", 64),  # of each query apart
        mock.patch.object(scan._Candidates, "tighten", counting("full", tighten)),
        mock.patch.object(kernels.nearest, "reference", counting("reference", reference)),
        mock.patch.object(threads, "pool", several),
        mock.patch.object(torch_kernels, "_threads", several),
    ):
        yield seen


def law_a_scan_is_exact(variant, search, dtype=np.float64, parts=(1, 3)):
    for number in parts:
        with small(number):
            law_nearest_is_exact(variant, search, dtype)


@HOSTS
@pytest.mark.parametrize("parts", [2, 7, 50])
@given(search=searches())
def test_parts_do_not_change_the_answer(variant, parts, search):
    """More parts than rows, too. Some are full while others are not."""
    law_a_scan_is_exact(variant, search, parts=(parts,))


@HOSTS
@every_dtype
@given(search=searches())
def test_a_scan_is_exact(variant, dtype, search):
    """Integers from a small range: ties, duplicates and zero rows are the rule; 40 rows are no multiple of 3."""
    law_a_scan_is_exact(variant, search, dtype)


def best(variant, z, bank, k):
    found = kernels.nearest(variant.asarray(z), variant.asarray(bank), k)
    return tuple(variant.to_host(x) for x in found)


@HOSTS
@pytest.mark.parametrize("batch", [1, 5])
def test_equal_rows_leave_no_room_and_the_lowest_win(variant, batch):
    z, bank = np.ones((batch, 2)), np.ones((50, 2))
    with small() as seen:
        _, indices = best(variant, z, bank, 7)
    assert_same(indices, np.tile(np.arange(7), (batch, 1)))
    assert seen["full"] == 1, "raised once, the threshold keeps its equals out"


@HOSTS
def test_rising_scores_leave_no_room_again_and_again(variant):
    z, bank = np.ones((1, 1)), np.arange(60.0)[:, None]
    with small() as seen, mock.patch.object(scan, "_guess", return_value=np.full(1, -np.inf)):
        _, indices = best(variant, z, bank, 4)
    assert_same(indices, np.array([[56, 57, 58, 59]]))
    assert seen["full"] > 5


def law_a_guess_is_verified(variant):
    """Every third row is near, the others are not, and more are wanted than are near."""
    bank = np.where(np.arange(60)[:, None] % 3 == 0, 1.0, -1.0 - np.arange(60)[:, None] / 64)
    with small() as seen:
        scores, indices = best(variant, np.array([[1.0], [0.0]]), bank, 40)
    order = np.lexsort((np.arange(60), -bank[:, 0]))[:40]
    assert_same(indices[0], np.sort(order))
    assert_same(scores[0], bank[np.sort(order), 0])
    assert_same(indices[1], np.arange(40))
    assert seen["reference"] == 1


@HOSTS
def test_a_guess_that_was_too_high_is_found_out(variant):
    law_a_guess_is_verified(variant)


@HOSTS
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("row", [0, 31, 59])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_nan_is_named(variant, row, k, parts):
    bank = integer_rows(0, 60, 3).astype(np.float64)
    bank[row, 1] = np.nan
    with small(parts), pytest.raises(NotFiniteError, match="bank must be finite"):
        best(variant, np.ones((2, 3)), bank, k)


def law_ties_do_not_make_up_for_a_nan(variant, seed):
    """A row that reaches too few and one that reaches as many too many: in all there are as many as are wanted.

    Also where both are one row, and of those that exceed a guess.
    """
    rng = np.random.default_rng(seed)
    n, k = 9, int(rng.integers(2, 4))
    x = np.tile(np.arange(n, dtype=np.float64), (3, 1))
    few, many = rng.permutation(3)[:2]
    x[few, int(rng.integers(n - k))] = np.nan
    if rng.random() < 0.5:
        x[few, -k:] = 9.0  # one of them too many, for NaN takes a place
    else:
        x[many] = -x[many]
        x[many, : k + 1] = 1.0
    raised = False
    with mock.patch.multiple(scan, LONG=n + int(rng.integers(2)), DENSE=3, STRIDES=(1, 1)):
        try:
            kernels.top_k(variant.asarray(x), k)
        except NotFiniteError:
            raised = True
    assert raised


@HOSTS
@pytest.mark.parametrize("seed", range(12))
def test_ties_do_not_make_up_for_a_nan(variant, seed):
    law_ties_do_not_make_up_for_a_nan(variant, seed)


def law_memory_stays_within_the_budget(k, parts, budget):
    """Beside it there are the answer and, for each part, what is selected from while it is in the cache."""
    rng = np.random.default_rng(0)
    z, bank = (unit_rows(rng, n, 8).astype(np.float32) for n in (200, 40_000))
    task = scan.Task(lambda q, rows, out: np.matmul(z[q], bank[rows].T, out=out), 200, 40_000, k, z.dtype, True)
    with ThreadPoolExecutor(parts) as pool:
        tracemalloc.start()
        scan.scan(task, lambda few: pytest.fail("searched again"), budget, parts, pool.map)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < budget + 200 * k * 12 + parts * kernels.CACHE


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("k", [50, 1000, 5000])
@pytest.mark.parametrize("budget", [2**22, 2**24, 2**26])
def test_memory_stays_within_the_budget(k, parts, budget):
    law_memory_stays_within_the_budget(k, parts, budget)


def test_memory_that_is_short_takes_queries_from_a_pass_first():
    """Blocks of a thousand rows are slow, and so are products of a few queries."""
    task = scan.Task(lambda *_: None, 128, 1_000_000, 4096, np.float32)
    assert scan._cut(task, kernels.BUDGET, 2) == (128, 4096, 2)
    assert scan._cut(task, kernels.BUDGET // 2, 2) == (64, 8192, 2)
    together, rows, parts = scan._cut(task, kernels.BUDGET // 8, 2)
    assert (together < 64, rows, parts) == (True, 1024, 2)
    assert scan._cut(task, 1, 2) == (0, 1024, 1), "one query at a time, whatever it takes"


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


TOLD = {
    "each thread by itself": lambda: nullcontext(),
    "all, for want of threadpoolctl": lambda: mock.patch.object(torch_kernels, "openmp_alone", return_value=None),
    "all, for want of MKL's function": lambda: mock.patch.object(torch_kernels, "_mkl", return_value=None),
}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("how", TOLD)
def test_torch_keeps_its_threads(how):
    """Also what a new thread starts with; and one that searches has one."""
    told = []
    with TOLD[how]():
        for _ in range(2):
            with torch_kernels._threads() as (count, each):
                told += each(lambda _: torch.get_num_threads(), [slice(i, i + 1) for i in range(4)])
                assert count == 2
            with pytest.raises(ZeroDivisionError), torch_kernels._threads():
                raise ZeroDivisionError
    thread = threading.Thread(target=lambda: told.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert told == 8 * [1] + [2]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
def test_a_search_tells_torch_nothing_for_good():
    """After ``set_num_threads`` MKL wakes all threads for a root of a single number, anywhere in the program."""
    rng = np.random.default_rng(0)
    z, bank = (TORCH.asarray(unit_rows(rng, n, 8).astype(np.float32)) for n in (3, 70_000))
    with mock.patch.object(torch, "set_num_threads", side_effect=AssertionError):
        kernels.nearest(z, bank, 10)
        with mock.patch.object(torch_kernels, "_mkl", return_value=None), pytest.raises(AssertionError):
            kernels.nearest(z, bank, 10)


@HOSTS
@pytest.mark.parametrize(("n", "k"), [(65_536, 100), (65_543, 4_096)])
def test_at_its_own_size_it_agrees_with_the_reference(variant, n, k):
    rng = np.random.default_rng(0)
    z, bank = unit_rows(rng, 70, 16).astype(np.float32), unit_rows(rng, n, 16).astype(np.float32)
    assert scan.pays(n, k)
    found = best(variant, z, bank, k)
    want = kernels.nearest.reference(z, bank, k)
    same = (found[1] == want[1]).mean()
    assert same > 0.999, f"rounding alone may order a pair otherwise; {same:.4f} are equal"
    np.testing.assert_allclose(found[0], np.take_along_axis(z @ bank.T, found[1], 1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sort(found[0]), np.sort(want[0]), rtol=0, atol=1e-6)


@given(budget=st.sampled_from([1, 10_000, 2**20]), batch=st.sampled_from([1, 2, 300]))
def test_the_budget_does_not_change_the_answer(budget, batch):
    z, bank = integer_rows(1, batch, 3).astype(np.float64), integer_rows(2, 50, 3).astype(np.float64)
    with small():
        want = best(NUMPY, z, bank, 6)
        found = kernels.nearest(z, bank, 6, budget)
    for ours, theirs in zip(found, want, strict=True):
        assert_same(ours, theirs)
