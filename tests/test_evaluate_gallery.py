"""The gallery: who is chosen, and which neighbours are shown."""

import sys

import numpy as np
import pytest
from variants import EXACT, NUMPY, assert_close, every_variant

from la_core import evaluate
from la_core.errors import RangeError, ShapeError

module = sys.modules["la_core.evaluate.gallery"]
K, N, VOTERS, TEMPERATURE = 5, 4, 12, 0.2


def crowd():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 5))
    labels, truth = rng.integers(0, 3, 50), rng.integers(0, 3, 30)
    own = rng.integers(0, 50, 30)
    return (
        centres[labels] + rng.standard_normal((50, 5)),
        labels,
        centres[truth] + rng.standard_normal((30, 5)),
        truth,
        own,
    )


def by_definition(rows, labels, queries, truth, own):
    """Sorted by loops: (kind, query, predicted, confidence, neighbours, cosines) of each that is shown."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    cosine = unit(queries) @ unit(rows).T
    if own is not None:
        cosine[np.arange(len(queries)), own] = -np.inf
    every = []
    for q in range(len(queries)):
        near = np.argsort(-cosine[q], kind="stable")
        cast = np.zeros(labels.max() + 1)
        for j in near[:VOTERS]:
            cast[labels[j]] += np.exp(cosine[q, j] / TEMPERATURE)
        won = int(cast.argmax())
        every.append((won == truth[q], q, won, cast[won] / cast.sum(), near[:K], cosine[q, near[:K]]))
    good = sorted((e for e in every if e[0]), key=lambda e: (-e[3], e[1]))[:N]
    poor = sorted((e for e in every if not e[0]), key=lambda e: (e[3], e[1]))[:N]
    return good + poor


def law_gallery_is_its_definition(variant, own, budget=2**26):
    *given, mine = crowd()
    got = evaluate.gallery(
        *(variant.asarray(x) for x in given),
        k=K,
        n=N,
        voters=VOTERS,
        temperature=TEMPERATURE,
        own=variant.asarray(mine) if own else None,
        budget=budget,
    )
    right, query, predicted, confidence, neighbours, cosines = zip(
        *by_definition(*given, mine if own else None), strict=True
    )
    assert got.kind == tuple("success" if r else "failure" for r in right)
    assert got.kind.count("success") == got.kind.count("failure") == N
    np.testing.assert_array_equal(variant.to_host(got.queries), query)
    np.testing.assert_array_equal(variant.to_host(got.predicted), predicted)
    np.testing.assert_array_equal(variant.to_host(got.neighbours), neighbours)
    assert_close(variant.to_host(got.confidence), confidence, EXACT)
    assert_close(variant.to_host(got.cosines), cosines, EXACT, 1.0)


@every_variant
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("budget", [2**26, 5000])
def test_gallery_is_its_definition(variant, own, budget):
    law_gallery_is_its_definition(variant, own, budget)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("votes", lambda *args, right=module.votes: -right(*args)),  # the loser wins
        ("search", lambda *args, right=module.search: right(*args[:3], None, *args[4:])),  # the query shows itself
    ],
)
def test_the_law_sees_a_planted_bug(monkeypatch, name, wrong):
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        law_gallery_is_its_definition(NUMPY, own=True)


def test_predictions_are_those_of_knn():
    rows, labels, queries, truth, _ = crowd()
    got = evaluate.gallery(rows, labels, queries, truth, n=30)
    np.testing.assert_array_equal(got.predicted, evaluate.knn(rows, labels, queries, k=50)[got.queries])
    assert sorted(got.queries) == list(range(30))  # where there are fewer than n of a kind, all of them
    np.testing.assert_array_equal(got.predicted == truth[got.queries], np.array(got.kind) == "success")


def test_where_nothing_fails_there_are_no_failures():
    x, labels = np.eye(4), np.arange(4)
    got = evaluate.gallery(x, labels, x, labels, k=1, n=2)
    assert got.kind == ("success", "success")
    np.testing.assert_array_equal(got.queries, [0, 1])  # of equal confidence the lowest index
    np.testing.assert_array_equal(got.neighbours, [[0], [1]])
    np.testing.assert_array_equal(got.cosines, [[1.0], [1.0]])


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"k": 51}, RangeError, "k must be"),
        ({"voters": 0}, RangeError, "voters"),
        ({"n": 0}, RangeError, "n must be"),
        ({"temperature": 0.0}, RangeError, "temperature"),
        ({"query_labels": np.zeros(29, int)}, ShapeError, "query_labels"),
        ({"own": np.full(30, 50)}, RangeError, "own"),
        ({"budget": 0}, RangeError, "budget"),
    ],
)
def test_bad_input(change, error, told):
    given = dict(zip(("embeddings", "labels", "queries", "query_labels"), crowd(), strict=False))
    with pytest.raises(error, match=told):
        evaluate.gallery(**{**given, **change})
