"""Weighted kNN against its definition and against scikit-learn, and the grid of it against one call for each cell."""

import sys
import tracemalloc
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from strategies import dyadic_rows
from variants import NUMPY, every_variant

from la_core import evaluate
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError
from la_core.evaluate.search import numbered
from la_core.spaces import device

module = sys.modules["la_core.evaluate.knn"]  # the package shows the function of that name

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
@pytest.mark.parametrize("labels", [[7], [3, 3, 3], [5, 0, 900, 5, 2, 0]], ids=str)
def test_classes_are_numbered_without_gaps_where_they_are(variant, labels):
    given = variant.asarray(np.array(labels))
    there, place = numbered(given)
    np.testing.assert_array_equal(variant.to_host(there), np.unique(labels))
    np.testing.assert_array_equal(variant.to_host(there)[variant.to_host(place)], labels)
    assert there.dtype == given.dtype
    assert device(there) == device(place) == device(given)


@every_variant
def test_classes_may_be_called_by_any_numbers(variant):
    """As those of ImageNet's synsets: the answer is the same, in no more memory."""
    rows, queries = RNG.standard_normal((41, 6)), RNG.standard_normal((19, 6))
    labels, called = RNG.integers(0, 3, 41), np.array([1440764, 2007558, 15075141])
    plain, gaps = (
        variant.to_host(evaluate.knn(*map(variant.asarray, (rows, y, queries)), k=7)) for y in (labels, called[labels])
    )
    np.testing.assert_array_equal(gaps, called[plain])
    truth = RNG.integers(0, 3, 19)
    plain, gaps = (
        evaluate.knn_grid(*map(variant.asarray, (rows, y, queries, t)), ks=(7,)).accuracy
        for y, t in ((labels, truth), (called[labels], called[truth]))
    )
    np.testing.assert_array_equal(gaps, plain)
    plain, gaps = (
        evaluate.gallery(*map(variant.asarray, (rows, y, queries, t)), k=3, n=4)
        for y, t in ((labels, truth), (called[labels], called[truth]))
    )
    assert gaps.kind == plain.kind
    np.testing.assert_array_equal(variant.to_host(gaps.predicted), called[variant.to_host(plain.predicted)])
    np.testing.assert_array_equal(variant.to_host(gaps.queries), variant.to_host(plain.queries))


@every_variant
def test_leave_one_out(variant):
    rows, labels, own = RNG.standard_normal((30, 5)), RNG.integers(0, 3, 30), np.array([3, 0, 29, 3])
    for queries in (rows[own], -rows[own]):  # itself the nearest, and itself the farthest
        got = evaluate.knn(
            variant.asarray(rows), variant.asarray(labels), variant.asarray(queries), k=4, own=variant.asarray(own)
        )
        np.testing.assert_array_equal(variant.to_host(got), by_definition(rows, labels, queries, 4, 0.07, own))


@every_variant
def test_of_equal_cosines_the_lowest_rows_vote(variant):
    """Rows of 0 and one power of two: many cosines tie, exactly; the query itself is often not among the nearest."""
    rng = np.random.default_rng(1)
    rows = dyadic_rows(rng, 40, 16)
    labels, own = rng.integers(0, 3, 40), rng.integers(0, 40, 25)
    for queries in (rows[own], -rows[own]):
        for k in (1, 5, 12):
            got = evaluate.knn(
                variant.asarray(rows), variant.asarray(labels), variant.asarray(queries), k=k, temperature=1.0,
                own=variant.asarray(own),
            )  # fmt: skip
            np.testing.assert_array_equal(variant.to_host(got), by_definition(rows, labels, queries, k, 1.0, own))


def test_knn_is_scikit_learns():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="test_knn_is_scikit_learns needs scikit-learn")
    rows, labels, queries = RNG.standard_normal((300, 8)), RNG.integers(0, 6, 300), RNG.standard_normal((200, 8))
    for k, temperature in ((1, 0.07), (20, 0.07), (200, 0.5)):
        theirs = neighbors.KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance, t=temperature: np.exp((1 - distance) / t)
        ).fit(rows, labels)
        np.testing.assert_array_equal(
            evaluate.knn(rows, labels, queries, k=k, temperature=temperature), theirs.predict(queries)
        )
        _, bank, lines = module.labelled("knn", rows, labels, queries, None)
        ((_, scores, found),) = module.search(lines, bank, k, None, 64 * (k + 1), 2**26)
        cast = module.votes(scores, found, labels, 6, temperature)
        np.testing.assert_allclose(cast / cast.sum(axis=1, keepdims=True), theirs.predict_proba(queries), atol=1e-6)


# The grid ------------------------------------------------------------------------------------------------------------

KS, TEMPERATURES = (1, 4, 20), (0.05, 0.2, 2.0)


def crowd():
    """Classes that overlap: no cell of the grid is all right or all wrong. Query 0 is row 0, and so on."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    rows = rng.standard_normal((4, 6))[labels] + rng.standard_normal((60, 6))
    return rows, labels, rows[:40], labels[:40], np.arange(40)


def law_grid_is_knn_cell_by_cell(variant, own, budget=2**26):
    rows, labels, queries, truth, mine = (variant.asarray(x) for x in crowd())
    options = {"own": mine, "budget": budget} if own else {"budget": budget}
    grid = evaluate.knn_grid(rows, labels, queries, truth, ks=KS, temperatures=TEMPERATURES, **options)
    want = [
        [
            np.mean(variant.to_host(evaluate.knn(rows, labels, queries, k=k, temperature=t, **options)) == crowd()[3])
            for t in TEMPERATURES
        ]
        for k in KS
    ]
    np.testing.assert_array_equal(grid.accuracy, want)
    assert len(np.unique(grid.accuracy)) > 3
    assert (grid.n_embeddings, grid.n_queries, grid.leave_one_out) == (60, 40, own)


@every_variant
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("budget", [2**26, 20_000])
def test_grid_is_knn_cell_by_cell(variant, own, budget):
    law_grid_is_knn_cell_by_cell(variant, own, budget)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("best", lambda scores, indices, k: (scores[:, :k], indices[:, :k])),  # the lowest rows, not the nearest
        ("votes", lambda *args, right=module.votes: right(*args[:-1], 1.0)),  # the temperature ignored
        ("search", lambda *args, right=module.search: right(args[0], args[1], args[2], None, *args[4:])),  # own votes
    ],
)
def test_the_law_of_the_grid_sees_a_planted_bug(monkeypatch, name, wrong):
    single = evaluate.knn
    truth = {(k, t, own): single(*crowd()[:3], k=k, temperature=t, own=crowd()[4] if own else None)
             for k in KS for t in TEMPERATURES for own in (False, True)}  # fmt: skip
    monkeypatch.setattr(
        evaluate, "knn", lambda *_, k, temperature, own=None, **__: truth[k, temperature, own is not None]
    )
    law_grid_is_knn_cell_by_cell(NUMPY, own=True)
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        law_grid_is_knn_cell_by_cell(NUMPY, own=True)


def test_grid_shows_its_protocol():
    *given, _ = crowd()
    grid = evaluate.knn_grid(
        *given, ks=KS, temperatures=TEMPERATURES, source="running bank", layer="embedding", crop="centre"
    )
    text = str(grid)
    assert "embeddings: running bank; layer: embedding; crop: centre" in text
    assert "40 queries against 60 embeddings" in text
    assert f"{grid.accuracy[1, 2]:.1%}" in text.splitlines()[-2]
    assert len(text.splitlines()) == 4 + len(KS)
    with pytest.raises(FrozenInstanceError):
        grid.crop = "ten"


@pytest.mark.parametrize("budget", [2**20, 2**22])
def test_the_search_keeps_to_its_budget(budget):
    """Beside the unit-length copies, whatever the sizes: here (Q, N) alone would be 24 MB."""
    rng = np.random.default_rng(0)
    rows, queries = (rng.standard_normal((n, 16), dtype=np.float32) for n in (20_000, 300))
    labels, truth = rng.integers(0, 10, 20_000), rng.integers(0, 10, 300)
    run = {
        "knn": lambda: evaluate.knn(rows, labels, queries, k=50, budget=budget),
        "knn_grid": lambda: evaluate.knn_grid(rows, labels, queries, truth, ks=(1, 50), budget=budget),
        "gallery": lambda: evaluate.gallery(rows, labels, queries, truth, voters=50, budget=budget),
        "densities": lambda: evaluate.densities(rows, k_background=50, indices=np.arange(300), budget=budget),
    }
    for name, call in run.items():
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        copies = rows.nbytes + queries.nbytes
        assert peak < copies + budget + 64 * 1024, f"{name}: {peak - copies} bytes beside the copies"


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"ks": ()}, ShapeError, "ks and temperatures"),
        ({"ks": (1, 61)}, RangeError, "each of ks"),
        ({"temperatures": (0.1, -1.0)}, RangeError, "each of temperatures"),
        ({"truth": np.zeros(39, int)}, ShapeError, "truth"),
        ({"truth": np.full(40, -1)}, RangeError, "truth"),
        ({"truth": np.zeros(40)}, KindError, "truth"),
        ({"queries": np.ones((40, 5))}, ShapeError, "queries"),
        ({"embeddings": np.ones((60, 6), np.float16)}, KindError, "embeddings"),
        ({"embeddings": np.full((60, 6), np.nan)}, NotFiniteError, "embeddings"),
        ({"budget": 0}, RangeError, "budget"),
    ],
)
def test_bad_input_of_the_grid(change, error, told):
    given = dict(zip(("embeddings", "labels", "queries", "truth"), crowd(), strict=False))
    with pytest.raises(error, match=told):
        evaluate.knn_grid(**{**given, "ks": (1, 5), **change})


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
