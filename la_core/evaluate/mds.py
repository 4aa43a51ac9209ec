"""A map of embeddings: classical multidimensional scaling (Torgerson 1952), and by landmarks for many points.

Distances are Euclidean. Between unit rows their square is 2 - 2 cos, so for a map of cosines give unit rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from la_core import check, kernels
from la_core.evaluate.host import matrix
from la_core.kernels import BUDGET
from la_core.randomness import generator


class Map(NamedTuple):
    """Points in few dimensions. The coordinate of largest size on each axis is positive, which settles the signs."""

    points: np.ndarray
    """(N, dim) float64."""
    share: np.ndarray
    """(dim,) part of the spread that each axis carries, falling: its eigenvalue over the sum of all positive ones."""


def mds(x: Any, dim: int = 2) -> Map:
    """Classical MDS: the ``dim`` leading axes of B = -1/2 J D2 J, with D2 the squared distances and J the centring.

    Between vectors, as here, it is their PCA. Time N^3 and memory N^2: for many points :func:`landmark_mds`.

    Parameters
    ----------
    x
        (N, F) float, on the host.
    dim
        1 to N. Axes beyond the rank of the points are 0.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    x = matrix("x", x)
    dim = check.count("dim", dim, len(x), "the points")
    x = x - x.mean(axis=0, dtype=np.float64)  # far from the origin, distances would cancel
    values, axes, share = _principal(_squares(x, x), dim)
    return Map(_signed(axes * np.sqrt(values)), share)


def landmark_mds(x: Any, n_landmarks: int, *, dim: int = 2, seed: int = 0, budget: int = BUDGET) -> Map:
    """Landmark MDS (de Silva and Tenenbaum 2004): classical MDS of a few points, the others placed by their distances.

    A point whose squared distances to the landmarks are d goes to -1/2 L (d - mean of the landmarks' d), where L is
    the pseudo-inverse of the landmarks' map. Every point a landmark is :func:`mds`.

    Parameters
    ----------
    x
        (N, F) float, on the host.
    n_landmarks
        ``dim`` to N, drawn without replacement from ``seed``. Time n_landmarks^3 + N n_landmarks F.
    dim
        At least 1. Axes beyond the rank of the landmarks are 0.
    seed
        Of the draw.
    budget
        Bytes for the distances of the points that are placed at a time.

    Returns
    -------
    Map
        Of all points, in their order. ``share`` is that of the landmarks.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    x = matrix("x", x)
    dim = check.count("dim", dim, len(x), "the points")
    n_landmarks = check.count("n_landmarks", n_landmarks, len(x), "dim and the points", least=dim)
    check.count("seed", seed, least=0)
    check.count("budget", budget)
    landmarks = x[generator(seed, "landmarks").permutation(len(x))[:n_landmarks]]
    origin = landmarks.mean(axis=0, dtype=np.float64)  # far from it, distances would cancel
    landmarks = landmarks - origin
    squares = _squares(landmarks, landmarks)
    values, axes, share = _principal(squares, dim)
    rank = values > n_landmarks * np.finfo(np.float64).eps * values[0]
    inverse = np.divide(axes, np.sqrt(values), where=rank, out=np.zeros_like(axes))  # (n_landmarks, dim)
    mean = squares.mean(axis=0)
    points = np.empty((len(x), dim))
    for some in kernels.blocks(len(x), budget // (8 * (3 * n_landmarks + 2 * x.shape[1]))):
        points[some] = -0.5 * (_squares(x[some] - origin, landmarks) - mean) @ inverse
    return Map(_signed(points), share)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances: (N, F), (M, F) -> (N, M)."""
    squares: np.ndarray = -2.0 * x @ y.T
    squares += np.sum(x * x, axis=1)[:, None]
    squares += np.sum(y * y, axis=1)
    np.maximum(squares, 0.0, out=squares)
    return squares


def _principal(squares: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of -1/2 J D2 J: the ``dim`` largest eigenvalues, none below 0, their unit vectors (N, dim), and their shares."""
    centred = squares - squares.mean(axis=0)
    centred -= centred.mean(axis=1)[:, None]
    values, vectors = np.linalg.eigh(-0.5 * centred)
    values = np.maximum(values[::-1], 0.0)
    total = values.sum()
    leading = values[:dim]
    return leading, vectors[:, : -dim - 1 : -1], leading / total if total else leading


def _signed(points: np.ndarray) -> np.ndarray:
    """In place: each axis turned so that its coordinate of largest size is positive."""
    extreme = points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])]
    points[:, extreme < 0] *= -1.0
    return points
