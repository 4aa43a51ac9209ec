"""Local and background density: their definition, and laws. Functions named ``law_`` are shown to fail on a bug."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import unit_rows
from variants import EXACT, NUMPY, assert_close, every_variant

from la_core import evaluate
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError

module = sys.modules["la_core.evaluate.density"]
SEEDS = st.integers(0, 2**32 - 1)


def measured(variant, x, **options):
    return [variant.to_host(d) for d in evaluate.densities(variant.asarray(x), **options)]


def by_definition(x, k, own):
    v = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = v @ v.T
    if own:
        cosine[np.diag_indices(len(x))] = -np.inf
    return np.mean(-np.sort(-cosine, axis=1)[:, :k], axis=1)


def law_densities_are_their_definition(variant, x, k_local=3, k_background=9, own=True, budget=2**26):
    got = measured(variant, x, k_local=k_local, k_background=k_background, own=own, budget=budget)
    for density, k in zip(got, (k_local, k_background), strict=True):
        assert_close(density, by_definition(x, k, own), EXACT, 1.0)


@every_variant
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("budget", [2**26, 5000])
def test_densities_are_their_definition(variant, own, budget):
    law_densities_are_their_definition(
        variant, np.random.default_rng(0).standard_normal((23, 5)), own=own, budget=budget
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda *args, right=module.search: right(*args[:3], None, *args[4:]),  # each row is its own neighbour
        lambda *args, right=module.search: right(args[0], -args[1], *args[2:]),  # the farthest
    ],
)
def test_the_law_sees_a_planted_bug(monkeypatch, wrong):
    monkeypatch.setattr(module, "search", wrong)
    with pytest.raises(AssertionError):
        law_densities_are_their_definition(NUMPY, np.random.default_rng(0).standard_normal((23, 5)))


@every_variant
@given(seed=SEEDS, n=st.integers(2, 20))
def test_bounds_and_order(variant, seed, n):
    x = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    local, background = measured(variant, x, k_local=min(4, n - 1))
    assert local.dtype == background.dtype == np.float32
    assert local.shape == background.shape == (n,)
    assert np.all(local >= background - 1e-6)
    assert np.all((background >= -1.0 - 1e-6) & (local <= 1.0 + 1e-6))


@given(seed=SEEDS)
def test_rotation_and_length_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((15, 4))
    rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    turned = 10.0 ** rng.uniform(-3, 3, (15, 1)) * (x @ rotation)
    for a, b in zip(measured(NUMPY, x, k_local=3), measured(NUMPY, turned, k_local=3), strict=True):
        assert_close(a, b, EXACT, 1.0)


@given(seed=SEEDS)
def test_permuting_the_samples_permutes_the_densities(seed):
    rng = np.random.default_rng(seed)
    x, order = rng.standard_normal((15, 4)), rng.permutation(15)
    for a, b in zip(measured(NUMPY, x, k_local=3), measured(NUMPY, x[order], k_local=3), strict=True):
        assert_close(a[order], b, EXACT, 1.0)


@every_variant
def test_equal_rows_are_as_dense_as_can_be(variant):
    row = unit_rows(np.random.default_rng(0), 1, 6)
    for density in measured(variant, np.repeat(row, 12, axis=0), k_local=4):
        assert_close(density, np.ones(12), EXACT)


def test_a_duplicate_is_a_neighbour_and_the_row_itself_is_not():
    x = np.eye(6)
    x[1] = x[0]
    local, background = measured(NUMPY, x, k_local=1, k_background=5)
    np.testing.assert_array_equal(local, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(background, [0.2, 0.2, 0, 0, 0, 0])
    np.testing.assert_array_equal(measured(NUMPY, x, k_local=1, own=False)[0], np.ones(6))


@every_variant
def test_of_some_samples(variant):
    x, some = np.random.default_rng(0).standard_normal((17, 4)), np.array([3, 16, 3])
    for part, whole in zip(
        measured(variant, x, k_local=2, indices=variant.asarray(some)), measured(variant, x, k_local=2), strict=True
    ):
        assert_close(part, whole[some], EXACT, 1.0)


def test_the_background_is_clamped_to_the_samples_there_are():
    x = np.random.default_rng(0).standard_normal((10, 4))
    for own, most in ((True, 9), (False, 10)):
        clamped, exact = (measured(NUMPY, x, k_local=2, k_background=k, own=own) for k in (4096, most))
        np.testing.assert_array_equal(clamped, exact)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"embeddings": np.ones((1, 4))}, RangeError, "at least 2 rows"),
        ({"embeddings": np.ones(4)}, ShapeError, "embeddings"),
        ({"embeddings": np.ones((9, 4), int)}, KindError, "embeddings"),
        ({"embeddings": np.full((9, 4), np.inf)}, NotFiniteError, "embeddings"),
        ({"k_local": 9}, RangeError, "k_local"),
        ({"k_local": 0}, RangeError, "k_local"),
        ({"k_local": 4, "k_background": 3}, RangeError, "k_local"),
        ({"k_background": 0}, RangeError, "k_background"),
        ({"indices": np.array([9])}, RangeError, "indices"),
        ({"budget": 0}, RangeError, "budget"),
    ],
)
def test_bad_input(change, error, told):
    with pytest.raises(error, match=told):
        evaluate.densities(**{"embeddings": np.ones((9, 4)), "k_local": 2, **change})
