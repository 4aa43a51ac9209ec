"""Weighted kNN, against its definition."""

import numpy as np
import pytest
from variants import every_variant

from la_core import evaluate
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError

RNG = np.random.default_rng(0)


def by_definition(rows, labels, queries, k, temperature, own=None):
    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    cosine = unit(queries) @ unit(rows).T
    if own is not None:
        cosine[np.arange(len(queries)), own] = -np.inf
    votes = np.zeros((len(queries), labels.max() + 1))
    for q in range(len(queries)):
        for j in np.argsort(-cosine[q], kind="stable")[:k]:
            votes[q, labels[j]] += np.exp(cosine[q, j] / temperature)
    return votes.argmax(axis=1)


@every_variant
@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("budget", [2**26, 3000])
def test_knn_is_its_definition(variant, k, budget):
    rows, queries = RNG.standard_normal((41, 6)), RNG.standard_normal((19, 6))
    labels = RNG.integers(0, 5, 41)
    got = evaluate.knn(
        variant.asarray(rows), variant.asarray(labels), variant.asarray(queries), k=k, temperature=0.3, budget=budget
    )
    np.testing.assert_array_equal(variant.to_host(got), by_definition(rows, labels, queries, k, 0.3))


@every_variant
def test_leave_one_out(variant):
    rows, labels, own = RNG.standard_normal((30, 5)), RNG.integers(0, 3, 30), np.array([3, 0, 29, 3])
    for queries in (rows[own], -rows[own]):  # itself the nearest, and itself the farthest
        got = evaluate.knn(
            variant.asarray(rows), variant.asarray(labels), variant.asarray(queries), k=4, own=variant.asarray(own)
        )
        np.testing.assert_array_equal(variant.to_host(got), by_definition(rows, labels, queries, 4, 0.07, own))


def test_a_temperature_near_zero_is_the_nearest_neighbour():
    rows, queries = RNG.standard_normal((50, 4)), RNG.standard_normal((20, 4))
    labels = RNG.integers(0, 4, 50)
    np.testing.assert_array_equal(
        evaluate.knn(rows, labels, queries, k=50, temperature=1e-3), evaluate.knn(rows, labels, queries, k=1)
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"k": 42}, RangeError),
        ({"k": 0}, RangeError),
        ({"temperature": 0.0}, RangeError),
        ({"labels": np.zeros(40, int)}, ShapeError),
        ({"labels": np.zeros(41)}, KindError),
        ({"labels": np.full(41, -1)}, RangeError),
        ({"queries": np.zeros((3, 5))}, ShapeError),
        ({"queries": np.full((3, 6), np.nan)}, NotFiniteError),
        ({"rows": np.full((41, 6), np.inf)}, NotFiniteError),
        ({"own": np.array([0, 1, 41])}, RangeError),
        ({"own": np.array([0, 1, 2]), "k": 41}, RangeError),
    ],
)
def test_bad_input(change, error):
    arguments = {"rows": np.ones((41, 6)), "labels": np.zeros(41, int), "queries": np.ones((3, 6)), "k": 3, **change}
    rows, labels, queries = (arguments.pop(name) for name in ("rows", "labels", "queries"))
    with pytest.raises(error):
        evaluate.knn(rows, labels, queries, **arguments)
