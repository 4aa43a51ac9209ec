"""A search in bfloat16 loses nothing and finds nothing else, on any CPU: the laws do not ask whether it is faster."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import integer_rows, searches, unit_rows
from test_neighbours import law_nearest_is_exact
from test_scan import small
from variants import TORCH, assert_same

import la_core
from la_core import kernels
from la_core.backends import low, scan
from la_core.backends.torch import screen
from la_core.errors import NotFiniteError


@contextmanager
def screened(parts=1):
    """Every search is a scan with a screen, however much passes. Counts the blocks that it saw, and those in vain."""
    seen = {"blocks": 0, "in vain": 0}
    candidates = screen.Screen._candidates

    def counting(*args):
        flat = candidates(*args)
        seen["blocks"] += 1
        seen["in vain"] += flat is None
        return flat

    with (
        small(parts),
        mock.patch.multiple(screen, pays=lambda *_: True, MANY=1),
        mock.patch.object(screen.Screen, "_candidates", counting),
    ):
        yield seen


def exactly(z, bank, rows, threshold):
    """Each pair by itself."""
    scores = np.vecdot(z[:, None], bank[None, rows])
    flat = np.flatnonzero(scores > threshold)
    return flat, np.take(scores, flat)


def screen_of(z, bank, size):
    there = torch.from_numpy(z), torch.from_numpy(bank)
    return screen.Screen(*there, partial(exactly, z, bank), size)


def against_the_queries(rng, batch, n, dim):
    """Queries and rows of which bfloat16 takes all that it may, from every number, and nothing cancels."""
    just_below = 1.0 + 2.0**-8 - 2.0**-20  # half-way to the next number, and so rounded down
    x = rng.choice([-1.0, 1.0], dim) * 2.0 ** rng.integers(-3, 3, dim) * just_below
    return ((x * 2.0 ** rng.integers(-20, 20, (count, 1))).astype(np.float32) for count in (batch, n))


def law_nothing_is_lost(seed):
    """The margin holds where every rounding goes the wrong way; rows just above the threshold are found."""
    rng = np.random.default_rng(seed)
    batch, n = rng.integers(1, (2, 2) if seed % 2 else (40, 300))
    z, bank = against_the_queries(rng, batch, n, int(2.0 ** rng.uniform(0, 11)))
    there = torch.from_numpy(z), torch.from_numpy(bank)
    exact = np.vecdot(z[:, None], bank[None])
    rough = (there[0].bfloat16() @ there[1].bfloat16().T).double().numpy()
    slope, constant = screen.margin(there[0])
    margin = slope * np.linalg.norm(bank.astype(np.float64), axis=1) + constant + low.BFLOAT16.roundoff * np.abs(rough)
    assert (exact.astype(np.float64) - rough <= margin).all()
    least = exact.min(axis=1, keepdims=True)
    with mock.patch.object(screen, "MANY", 1):
        flat, scores = screen_of(z, bank, int(n))(slice(0, int(n)), np.nextafter(least, -np.inf))
    assert_same(flat, np.arange(exact.size))
    assert_same(scores, exact.reshape(-1))


def law_what_passes_exceeds_the_threshold(seed):
    rng = np.random.default_rng(seed)
    dim, size = int(rng.integers(8, 100)), int(rng.integers(1, 60))
    z, bank = (unit_rows(rng, n, dim).astype(np.float32) * 2.0 ** float(rng.integers(-9, 9)) for n in (5, size))
    threshold = np.quantile(np.vecdot(z[:, None], bank[None]), 0.9, axis=1, keepdims=True)
    with mock.patch.object(screen, "MANY", 1):
        found = screen_of(z, bank, size + 3)(slice(0, size), threshold)
    for ours, theirs in zip(found, exactly(z, bank, slice(0, size), threshold), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost(seed):
    law_nothing_is_lost(seed)


@pytest.mark.parametrize("seed", range(40))
def test_what_passes_exceeds_the_threshold(seed):
    law_what_passes_exceeds_the_threshold(seed)


def law_a_screened_scan_is_exact(search, parts=(1, 3)):
    for number in parts:
        with screened(number):
            law_nearest_is_exact(TORCH, search, np.float32)


@given(search=searches())
def test_a_screened_scan_is_exact(search):
    """Integers from a small range: ties, duplicates and zero rows are the rule; 40 rows are no multiple of 3."""
    law_a_screened_scan_is_exact(search)


def law_equal_rows_are_ordered_by_number(seed):
    """Of real numbers, each row there some times: all of a row or the first of it, at whichever places of a block."""
    rng = np.random.default_rng(seed)
    z, rows = (unit_rows(rng, n, 24).astype(np.float32) for n in (3, 60))
    bank = rows[rng.permutation(np.repeat(np.arange(60), 4))]
    k = int(rng.integers(1, 25))
    with screened() as seen:
        _, found = kernels.nearest(torch.from_numpy(z), torch.from_numpy(bank), k)
    scores = np.vecdot(z[:, None], bank[None])
    assert seen["blocks"] > 5, "the screen was given up"
    assert_same(np.sort(found.numpy()), np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k]))


@pytest.mark.parametrize("seed", range(12))
def test_equal_rows_are_ordered_by_number(seed):
    law_equal_rows_are_ordered_by_number(seed)


HOSTILE = {
    "zero rows": lambda z, bank: (z, 0 * bank),
    "zero queries": lambda z, bank: (0 * z, bank),
    "scores near the largest number": lambda z, bank: (z * 1e19, bank * 1e19),
    "numbers that overflow in bfloat16 alone": lambda z, bank: (
        np.full_like(z, np.finfo(np.float32).max),
        bank * 1e-30,
    ),
    "squares that vanish": lambda z, bank: (z * 1e25, bank * 1e-25),
    "numbers below the normal ones": lambda z, bank: (z * 1e30, bank * 1e-39),
    "one row that is far larger": lambda z, bank: (z, bank * np.where(np.arange(len(bank)) == 7, 1e15, 1.0)[:, None]),
    "scores of which none is positive": lambda z, bank: (np.abs(z), -np.abs(bank)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_numbers(kind):
    """Near the ends of what a float32 holds, or a bfloat16."""
    rng = np.random.default_rng(0)
    z, bank = (x.astype(np.float32) for x in HOSTILE[kind](unit_rows(rng, 4, 9), unit_rows(rng, 50, 9)))
    with screened():
        scores, found = kernels.nearest(torch.from_numpy(z), torch.from_numpy(bank), 6)
    z, bank = z.astype(np.float64), bank.astype(np.float64)
    products = np.vecdot(z[:, None], bank[None])
    tolerance = 1e-6 * np.linalg.norm(z, axis=1, keepdims=True) * np.linalg.norm(bank, axis=1).max()
    assert (np.abs(np.take_along_axis(products, found.numpy(), axis=1) - scores.numpy()) <= tolerance).all()
    assert (np.abs(np.sort(scores.numpy()) - np.sort(products)[:, -6:]) <= tolerance).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 31, 59])
def test_nan_is_named(row, value):
    bank = integer_rows(0, 60, 3).astype(np.float32) + 5.0
    bank[row, 1] = value
    z = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], np.float32)
    with screened(), pytest.raises(NotFiniteError, match="bank must be finite"):
        kernels.nearest(torch.from_numpy(z), torch.from_numpy(bank), 5)


def test_where_most_passes_it_is_given_up():
    rng = np.random.default_rng(0)
    z, bank = (unit_rows(rng, n, 24).astype(np.float32) for n in (3, 300))
    with screened() as seen, mock.patch.object(screen, "MANY", 32):
        _, found = kernels.nearest(torch.from_numpy(z), torch.from_numpy(bank), 90)
    assert seen == {"blocks": seen["in vain"], "in vain": 1}
    assert_same(found.numpy(), kernels.nearest.reference(torch.from_numpy(z), torch.from_numpy(bank), 90)[1].numpy())


@given(budget=st.sampled_from([1, 10_000, 2**20, 2**26]))
def test_the_budget_does_not_change_the_answer(budget):
    z, bank = (torch.from_numpy(integer_rows(i, n, 3).astype(np.float32)) for i, n in ((1, 40), (2, 50)))
    with screened():
        found = kernels.nearest(z, bank, 6, budget)
    for ours, theirs in zip(found, kernels.nearest.reference(z, bank, 6), strict=True):
        assert_same(ours.numpy(), theirs.numpy())


@contextmanager
def cpu(name, bfloat16=True, amx=False):
    """PyTorch takes it for the CPU that it runs on."""
    with (
        mock.patch.object(torch.cpu, "_is_avx512_bf16_supported", return_value=bfloat16),
        mock.patch.object(torch.cpu, "_is_amx_tile_supported", return_value=amx),
        mock.patch.object(torch.cpu, "get_capabilities", create=True, return_value={"cpu_name": name}),
    ):
        yield


@pytest.mark.parametrize(
    ("name", "bfloat16", "amx", "pays"),
    [
        ("AMD EPYC", True, False, True),
        ("AMD EPYC", False, False, False),
        ("Intel Xeon", True, False, False),
        ("Intel Xeon", True, True, True),
    ],
)
def test_on_which_cpu_it_pays(name, bfloat16, amx, pays):
    with cpu(name, bfloat16, amx):
        assert screen.pays(torch.ones((64, 2)), torch.ones((20_000, 2)), 10) == pays


def test_at_its_own_size_it_agrees_with_the_reference():
    """Where the CPU has the instructions; elsewhere the same in longer time. Without a screen no scan would pay."""
    rng = np.random.default_rng(0)
    z, bank = (torch.from_numpy(unit_rows(rng, n, 64).astype(np.float32)) for n in (70, 60_000))
    k, looked = 300, []
    call = screen.Screen.__call__

    def counting(self, *args):
        found = call(self, *args)
        looked.append(not self._in_vain)
        return found

    with cpu("AMD"), mock.patch.object(screen.Screen, "__call__", counting):
        assert screen.pays(z, bank, k)
        assert not scan.pays(len(bank), k)
        scores, found = la_core.nearest(z, bank, k)
    want = kernels.nearest.reference(z, bank, k)
    assert all(looked)
    assert len(looked) >= 60_000 // max(scan.ROWS, scan.SCORES // 70)
    assert (np.sort(found.numpy()) == np.sort(want[1].numpy())).mean() > 0.999, (
        "rounding alone may order a pair otherwise"
    )
    np.testing.assert_allclose(-np.sort(-scores.numpy()), -np.sort(-want[0].numpy()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "queries", "k"), [(torch.float64, 64, 10), (torch.float32, 31, 10), (torch.float32, 64, 1_000)]
)
def test_where_it_does_not_pay(dtype, queries, k, monkeypatch):
    z, bank = torch.ones((queries, 2), dtype=dtype), torch.ones((20_000, 2), dtype=dtype)
    with cpu("AMD"):
        assert not screen.pays(z, bank, k)
        assert screen.pays(torch.ones((64, 2)), torch.ones((20_000, 2)), 10)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # what is left is slower than float32
        assert not screen.pays(torch.ones((64, 2)), torch.ones((20_000, 2)), 10)
