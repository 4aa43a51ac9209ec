"""NMI, ARI and purity: scikit-learn's numbers, and laws."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from la_core import evaluate
from la_core.errors import KindError, ShapeError

module = sys.modules["la_core.evaluate.agreement"]
EVERY = (evaluate.nmi, evaluate.ari, evaluate.purity)


@st.composite
def labellings(draw):
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return tuple(rng.integers(0, draw(st.integers(1, n)), n) for _ in range(2))


def law_scikit_learns_numbers(a, b):
    metrics = pytest.importorskip("sklearn.metrics", reason="law_scikit_learns_numbers needs scikit-learn")
    assert evaluate.nmi(a, b) == pytest.approx(metrics.normalized_mutual_info_score(a, b), abs=1e-6)
    assert evaluate.ari(a, b) == pytest.approx(metrics.adjusted_rand_score(a, b), abs=1e-6)
    table = metrics.cluster.contingency_matrix(a, b)
    assert evaluate.purity(a, b) == pytest.approx(table.max(axis=1).sum() / table.sum(), abs=1e-12)


# scikit-learn takes many integer classes for a regression
@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")
@given(both=labellings())
def test_scikit_learns_numbers(both):
    law_scikit_learns_numbers(*both)


@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")
@pytest.mark.parametrize("name", ["_entropy", "_pairs", "_contingency"])
def test_the_law_sees_a_planted_bug(monkeypatch, name):
    right = getattr(module, name)
    wrong = {
        "_entropy": lambda counts, n: right(counts, n + 1),
        "_pairs": lambda counts: int(np.sum(counts * counts)),
        "_contingency": lambda a, b: right(a, b)._replace(rows=right(a, b).columns),
    }[name]
    a, b = np.random.default_rng(0).integers(0, 4, (2, 30)) * np.array([[1], [2]])
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        law_scikit_learns_numbers(a, b % 5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", ">i2", "int64", "uint64"])
@pytest.mark.parametrize("low", ["least", "near 0", "most"])
@pytest.mark.parametrize("span", [1, 30, 256])
def test_close_integers_are_counted_to_what_sorting_gives(dtype, low, span):
    limits = np.iinfo(dtype)
    first = {"least": limits.min, "near 0": max(limits.min, -3), "most": max(limits.min, limits.max - span + 1)}[low]
    few = np.random.default_rng(0).integers(0, min(span, limits.max - first + 1), 70)
    ids = np.array([first + int(i) for i in few], dtype)
    for ours, theirs in zip(module._unique(ids), np.unique(ids, return_inverse=True, return_counts=True), strict=True):
        assert ours.tolist() == theirs.tolist()


@given(both=labellings(), seed=st.integers(0, 2**32 - 1))
def test_names_and_order_do_not_matter(both, seed):
    a, b = both
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(a))
    ids = rng.choice(np.array([-(2**62), -5, 0, 3, 2**62, *range(100, 140)]), 45, replace=False)
    for measure in EVERY:
        assert measure(ids[a][order], b[order].astype(np.uint8)) == pytest.approx(measure(a, b), abs=1e-12)


@given(both=labellings())
def test_bounds_and_symmetry(both):
    a, b = both
    for measure in (evaluate.nmi, evaluate.ari):
        assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-12)
        assert measure(a, a) == pytest.approx(1.0, abs=1e-12)
    assert 0.0 <= evaluate.nmi(a, b) <= 1.0
    assert -1.0 <= evaluate.ari(a, b) <= 1.0
    assert np.bincount(b).max() / len(b) <= evaluate.purity(a, b) <= 1.0
    assert evaluate.purity(np.arange(len(b)), b) == 1.0


def test_by_hand():
    a, b = [0, 0, 0, 1, 1, 1], [5, 5, 7, 7, 7, 7]
    assert evaluate.purity(a, b) == 5 / 6
    assert evaluate.ari(a, b) == pytest.approx((4 - 6 * 7 / 15) / (6.5 - 6 * 7 / 15))
    assert evaluate.nmi(np.repeat([0, 1], 8), np.tile([0, 1], 8)) == pytest.approx(0.0, abs=1e-12)


def test_no_overflow_at_the_size_of_imagenet():
    """Pairs of pairs, about 10^23, are beyond 64 bits; and a table of labels against labels would not fit in memory."""
    n = 1_281_167
    a = np.arange(n) // 2
    assert evaluate.ari(a, a) == 1.0
    assert evaluate.ari(np.zeros(n, int), a) == pytest.approx(0.0, abs=1e-12)
    assert evaluate.nmi(a, a) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", EVERY)
def test_bad_input(measure):
    for bad, error in (
        ([], ShapeError),
        ([[0, 1, 2]], ShapeError),
        ([0.0, 1.0, 2.0], KindError),
        ([True, False, True], KindError),
        ([[0], [1, 2], [3]], KindError),
    ):
        with pytest.raises(error, match="first labelling must"):
            measure(bad, [0, 1, 2])
        with pytest.raises(error, match="second labelling"):
            measure([0, 1, 2], bad)
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        measure([0, 1, 2], [0, 1])
