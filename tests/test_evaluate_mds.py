"""Classical MDS and its landmark form: scikit-learn's points, PCA, and laws."""

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from la_core import evaluate
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError

module = sys.modules["la_core.evaluate.mds"]
SEEDS = st.integers(0, 2**32 - 1)


def cloud(seed, n=25, width=6):
    """Points whose spreads along the axes differ, so that every axis is determined."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return (rng.standard_normal((n, width)) * 2.0 ** -np.arange(width)) @ rotation + 3.0


def assert_up_to_signs(got, want, tolerance):
    sign = np.sign(np.sum(got * want, axis=0))
    np.testing.assert_allclose(got * sign, want, rtol=0, atol=tolerance)


def law_mds_is_pca(x, dim):
    centred = x - x.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    got = evaluate.mds(x, dim)
    assert_up_to_signs(got.points, (left * values)[:, :dim], 1e-6)
    np.testing.assert_allclose(got.share, (values**2)[:dim] / np.sum(values**2), rtol=0, atol=1e-9)


@given(seed=SEEDS, dim=st.integers(1, 4))
def test_mds_is_pca(seed, dim):
    law_mds_is_pca(cloud(seed), dim)


def test_the_law_sees_a_planted_bug(monkeypatch):
    right = module._squares
    monkeypatch.setattr(module, "_squares", lambda x, y: np.sqrt(right(x, y)))  # distances that were not squared
    with pytest.raises(AssertionError):
        law_mds_is_pca(cloud(0), 2)


def test_mds_is_scikit_learns():
    manifold = pytest.importorskip("sklearn.manifold", reason="test_mds_is_scikit_learns needs scikit-learn")
    if not hasattr(manifold, "ClassicalMDS"):
        pytest.skip("scikit-learn before 1.8 has no ClassicalMDS; test_mds_is_pca holds the same points")
    for seed in range(3):
        x = cloud(seed, n=40)
        assert_up_to_signs(evaluate.mds(x, 3).points, manifold.ClassicalMDS(n_components=3).fit_transform(x), 1e-6)


@given(seed=SEEDS)
def test_in_enough_dimensions_every_distance_is_kept(seed):
    x = cloud(seed, n=12, width=3)
    points = evaluate.mds(x, 3).points
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - points, axis=2), np.linalg.norm(x[:, None] - x, axis=2), atol=1e-6
    )


def law_landmarks_are_pca_of_landmarks(x, n_landmarks, dim, seed, **options):
    """A point goes where the principal axes of the landmarks send it."""
    chosen = module.generator(seed, "landmarks").permutation(len(x))[:n_landmarks]
    mean = x[chosen].mean(axis=0)
    _, _, axes = np.linalg.svd(x[chosen] - mean, full_matrices=False)
    got = evaluate.landmark_mds(x, n_landmarks, dim=dim, seed=seed, **options)
    assert_up_to_signs(got.points, (x - mean) @ axes[:dim].T, 1e-6)


@given(seed=SEEDS, n_landmarks=st.integers(8, 25), budget=st.sampled_from([1, 3000, 2**26]))
def test_landmarks_are_pca_of_landmarks(seed, n_landmarks, budget):
    law_landmarks_are_pca_of_landmarks(cloud(seed), n_landmarks, 2, seed, budget=budget)


def test_the_law_of_landmarks_sees_a_planted_bug(monkeypatch):
    right = module._principal
    monkeypatch.setattr(module, "_principal", lambda squares, dim: (np.sqrt((r := right(squares, dim))[0]), *r[1:]))
    with pytest.raises(AssertionError):
        law_landmarks_are_pca_of_landmarks(cloud(0), 10, 2, 0)


@given(seed=SEEDS, dim=st.integers(1, 4))
def test_every_point_a_landmark_is_classical(seed, dim):
    x = cloud(seed)
    classical, landmark = evaluate.mds(x, dim), evaluate.landmark_mds(x, len(x), dim=dim, seed=seed % 100)
    np.testing.assert_allclose(landmark.points, classical.points, atol=1e-6)
    np.testing.assert_allclose(landmark.share, classical.share, atol=1e-9)


def test_the_signs_are_settled_and_a_seed_repeats():
    x = cloud(0, n=60)
    for points in (evaluate.mds(x).points, evaluate.mds(-x[::-1]).points, evaluate.landmark_mds(x, 20).points):
        assert np.all(points[np.abs(points).argmax(axis=0), [0, 1]] > 0)
    np.testing.assert_array_equal(
        evaluate.landmark_mds(x, 20, seed=3).points, evaluate.landmark_mds(x, 20, seed=3).points
    )
    assert not np.allclose(evaluate.landmark_mds(x, 20, seed=3).points, evaluate.landmark_mds(x, 20, seed=4).points)


def test_unit_rows_are_mapped_by_their_cosines():
    x = cloud(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    points = evaluate.mds(x.astype(np.float32), 6).points
    squares = np.sum((points[:, None] - points) ** 2, axis=2)
    np.testing.assert_allclose(squares, 2 - 2 * x @ x.T, atol=1e-6)


def test_points_of_low_rank():
    """A line, and one point many times: the other axes are 0 and nothing is divided by it."""
    line = np.linspace(-1, 2, 10)[:, None] * np.array([[1.0, 2.0, 2.0]])
    for x in (line, np.full((10, 3), 1e9)):
        for found in (evaluate.mds(x, 3), evaluate.landmark_mds(x, 6, dim=3)):
            assert np.all(np.isfinite(found.points))
            np.testing.assert_allclose(found.points[:, 1:], 0.0, atol=1e-6)
    assert evaluate.mds(line).share[0] == pytest.approx(1.0)


def test_bad_input():
    x = cloud(0)
    with pytest.raises(ShapeError, match="x must have shape"):
        evaluate.mds(x[0])
    with pytest.raises(NotFiniteError, match="x must be finite"):
        evaluate.mds(np.full((5, 2), np.nan))
    with pytest.raises(RangeError, match="dim must be"):
        evaluate.mds(x, 26)
    for n_landmarks in (1, 26):
        with pytest.raises(RangeError, match="n_landmarks must be"):
            evaluate.landmark_mds(x, n_landmarks, dim=2)
    with pytest.raises(RangeError, match="budget must be"):
        evaluate.landmark_mds(x, 10, budget=0)


def test_placing_keeps_to_its_budget():
    x = np.random.default_rng(0).standard_normal((20_000, 8))
    tracemalloc.start()
    evaluate.landmark_mds(x, 100, budget=2**20)  # the distances are 16 MB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 + 6 * 20_000 * 8 * 2


def test_tensors_on_the_host_are_taken_and_what_numpy_lacks_is_refused_by_name():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(cloud(0)).requires_grad_()
    np.testing.assert_array_equal(evaluate.mds(x, 2).points, evaluate.mds(cloud(0), 2).points)
    jax = pytest.importorskip("jax")
    for half in (x.bfloat16(), jax.numpy.asarray(cloud(0)).astype("bfloat16")):
        with pytest.raises(KindError, match="dtype"):
            evaluate.mds(half, 2)
