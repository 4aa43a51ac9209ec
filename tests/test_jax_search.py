"""JAX's search of a large bank on a CPU, with its constants made small; and that its laws fail on planted bugs."""

# ruff: noqa: E501  (one line for each bug)

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from strategies import integer_rows, make_search, unit_rows
from test_planted_bugs import mutated
from variants import assert_same

import la_core
from la_core import kernels
from la_core.errors import NotFiniteError

la_core.backend("jax")

from la_core.backends.jax import kernels as jax_kernels
from la_core.backends.jax import scan as ours

SHAPES = {
    "the last block overlaps": (40, 3, 12),
    "one block": (32, 3, 5),
    "many blocks": (333, 2, 9),
    "one query": (100, 1, 30),
    "everything": (70, 2, 70),
    "the best alone": (333, 4, 1),
}
"""n, batch, k"""
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@contextmanager
def small():
    """Every search is a scan, in blocks of 32 rows."""
    with mock.patch.multiple(ours, LEAST=0, PART=1, SAMPLE=32, SHARE=1, SCORES=1, ROWS=32, SLOTS=16):
        yield


def compiled(k, budget=2**20):
    """The search of k, to be traced anew: what was compiled before knows other constants."""
    return jax.jit(lambda z, bank: jax_kernels._nearest(z, bank, k, budget))


def expected(z, bank, k):
    """Of integer vectors."""
    products = z @ bank.T
    order = np.stack([np.sort(np.lexsort((np.arange(len(bank)), -row))[:k]) for row in products])
    return np.take_along_axis(products, order, axis=1), order


def law_a_search_is_exact(shape=SHAPES["many blocks"], dtype=np.float32, budget=2**20):
    """Integers from a small range: ties, copies and zero rows are the rule."""
    n, batch, k = shape
    with small(), jax.enable_x64(dtype == np.float64):
        search = compiled(k, budget)
        for seed in range(6):
            drawn = make_search(seed, n=n, batch=batch)
            found = search(*(jnp.asarray(x.astype(dtype)) for x in (drawn.z, drawn.bank)))
            for got, want in zip(found, expected(drawn.z, drawn.bank, k), strict=True):
                np.testing.assert_array_equal(np.asarray(got), want)


def law_a_guess_is_verified():
    """The rows of the sample are near, the others are not, and more are wanted than are near."""
    bank = np.full((320, 1), -1)
    bank[np.arange(32) * 320 // 32] = 1
    z = np.array([[1], [0], [-1]])
    with small():
        found = compiled(50)(jnp.asarray(z, jnp.float32), jnp.asarray(bank, jnp.float32))
    for got, want in zip(found, expected(z, bank, 50), strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)


def law_rising_scores_fill_the_table_again_and_again():
    """Without a guess every row is better than all before, or as good as one in three."""
    bank = np.stack([np.arange(400), np.arange(400) // 3 % 40], axis=1)
    z = np.array([[1, 0], [0, 1], [-1, 0]])
    with small(), mock.patch.object(ours, "_guess", lambda z, *_: jnp.full(len(z), np.iinfo(np.int32).min)):
        found = compiled(7)(jnp.asarray(z, jnp.float32), jnp.asarray(bank, jnp.float32))
    for got, want in zip(found, expected(z, bank, 7), strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)


@every_shape
def test_a_search_is_exact(shape):
    law_a_search_is_exact(shape)


def test_a_search_in_float64_is_exact():
    law_a_search_is_exact(dtype=np.float64)


def test_the_budget_does_not_change_the_answer():
    law_a_search_is_exact((100, 5, 9), budget=1)


def test_a_guess_that_was_too_high_is_found_out():
    law_a_guess_is_verified()


def test_rising_scores_fill_the_table_again_and_again():
    law_rising_scores_fill_the_table_again_and_again()


def test_infinite_scores_and_both_zeros_are_ranked():
    bank = np.array([-0.0, np.inf, -np.inf, 0.0, -0.0] * 20, np.float32)[:, None]
    with small():
        scores, indices = compiled(30)(jnp.ones((1, 1)), jnp.asarray(bank))
    want = np.sort(np.lexsort((np.arange(100), -bank[:, 0]))[:30])
    assert_same(np.asarray(indices)[0], want.astype(np.int32))
    np.testing.assert_array_equal(np.asarray(scores)[0], bank[want, 0])


@pytest.mark.parametrize("row", [0, 31, 99])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_found(row, sign):
    bank = integer_rows(0, 100, 3).astype(np.float32)
    bank[row, 1] = sign * np.nan
    with small():
        scores, indices = compiled(5)(jnp.ones((2, 3)), jnp.asarray(bank))
    assert (np.asarray(indices) == row).any(axis=1).all()
    assert np.isnan(np.asarray(scores)).any(axis=1).all()


def test_nan_in_a_large_bank_is_refused():
    bank = jnp.zeros((ours.LEAST, 2)).at[7, 1].set(jnp.nan)
    with pytest.raises(NotFiniteError, match="bank must be finite"):
        la_core.nearest(jnp.ones((2, 2)), bank, 5)


@pytest.mark.parametrize(("batch", "n", "k"), [(5, ours.LEAST + 77, 900), (55, ours.FEW + 777, 600)])
def test_at_its_own_size_it_agrees_with_the_reference(batch, n, k):
    assert ours.pays(batch, n, k)
    rng = np.random.default_rng(0)
    z, bank = (unit_rows(rng, rows, 16).astype(np.float32) for rows in (batch, n))
    want = kernels.nearest.reference(z, bank, k)
    weights = jnp.asarray(rng.standard_normal((batch, k)), jnp.float32)

    def loss(z, bank):
        scores, indices = kernels.nearest(z, bank, k)
        return (weights * scores).sum(), (scores, indices)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (scores, indices)), gradient = step(jnp.asarray(z), jnp.asarray(bank))
    same = (np.asarray(indices) == want[1]).mean()
    assert same > 0.999, f"rounding alone may order a pair otherwise; {same:.4f} are equal"
    np.testing.assert_allclose(np.sort(scores), np.sort(want[0]), rtol=0, atol=1e-6)
    rows = bank[np.asarray(indices)].astype(np.float64)
    np.testing.assert_allclose(gradient, np.einsum("bk,bkd->bd", weights, rows), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("batch", "n", "k"), [(8, 50_000, 2048), (128, 2048, 256), (128, 16_384, 4096)])
def test_where_it_does_not_pay(batch, n, k):
    """Little is wanted in all, the bank is small, or much of it is wanted."""
    assert not ours.pays(batch, n, k)


@pytest.mark.parametrize(
    ("batch", "n", "dim", "k", "budget"), [(64, 10**6, 128, 4096, 2**26), (300, 10**5, 512, 99, 2**24)]
)
def test_the_memory_stays_within_the_budget(batch, n, dim, k, budget):
    z, bank = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, dim), (n, dim)))
    used = compiled(k, budget).lower(z, bank).compile().memory_analysis().temp_size_in_bytes
    assert used < budget < 4 * batch * n


@pytest.mark.parametrize("n", [1, 63, 64, 65, 150])
def test_rows_are_assigned_block_by_block(n):
    x, centroids = integer_rows(n, n, 3).astype(np.float32), integer_rows(1, 20, 3).astype(np.float32)
    labels, squares = kernels.assign(jnp.asarray(x), jnp.asarray(centroids), 1)
    want_labels, want_squares = kernels.assign.reference(x, centroids)
    np.testing.assert_array_equal(np.asarray(labels), want_labels)
    np.testing.assert_array_equal(np.asarray(squares), want_squares)


BUGS = {
    "a guess that was too high is believed": (ours._scan, "any(last[0].filled < k)", "any(last[0].filled < 1)", law_a_guess_is_verified),
    "overlapping rows are added twice": (ours._scan, ">= first", ">= 0", law_a_search_is_exact),
    "blocks counted from their first row": (ours._extend, "first + found % size", "found % size", law_a_search_is_exact),
    "full tables lose what comes next": (ours._scan, "<= width - size", "<= width", law_rising_scores_fill_the_table_again_and_again),
    "a threshold is raised too far": (ours._tighten, "jnp.maximum(table.threshold, least[:, 0])", "jnp.maximum(table.threshold, keys.max(axis=1))", law_rising_scores_fill_the_table_again_and_again),
    "the last of equals win": (ours._tighten, "jnp.cumsum(equal, axis=1, dtype=jnp.int32)", "jnp.cumsum(equal[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]", law_a_search_is_exact),
    "marks within a word miscounted": (ours._locate, "before >= low", "before > low", law_a_search_is_exact),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(monkeypatch, bug):
    function, before, after, law = BUGS[bug]
    monkeypatch.setattr(function, "__code__", mutated(function, before, after))
    with pytest.raises(AssertionError):
        law()
