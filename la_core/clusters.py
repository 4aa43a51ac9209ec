"""k-means over the bank, several times over: where close neighbours come from.

Lloyd's algorithm on the rows as they are, Euclidean, from random distinct rows, as in both published codes. On unit
rows the nearest centroid maximises ``x . c - ||c||^2 / 2``, which is not the largest cosine, since means are shorter
than 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from la_core import check, kernels
from la_core.errors import RangeError
from la_core.kernels import Array
from la_core.randomness import generator


class Clustering(NamedTuple):
    """H clusterings of one bank."""

    labels: Array
    """(H, N) int32, the cluster of each row; comparable within one clustering only."""
    inertia: Array
    """(H,) sum of the squared distances to the centroids, in the bank's dtype."""
    centroids: tuple[Array, ...]
    """H arrays (n_clusters[h], D)."""
    history: tuple[tuple[float, ...], ...]
    """For each clustering the inertia at the start and after every iteration; it never rises."""


def cluster(
    bank: Array,
    *,
    n_clusters: int | Sequence[int],
    n_clusterings: int = 1,
    seed: int,
    n_iter: int = 20,
    tolerance: float = 0.0,
) -> Clustering:
    """Cluster the bank ``n_clusterings`` times, each from its own random rows.

    Parameters
    ----------
    bank
        (N, D) float32 or float64, finite. The N x m distances are never stored whole.
    n_clusters
        m, 1 to N; or one number for each clustering.
    n_clusterings
        H, at least 1.
    seed
        Everything random follows from it and from the number of the clustering: the first of ten clusterings is the
        same as the only one of one.
    n_iter
        Most iterations, at least 1.
    tolerance
        Stop when an iteration lowers the inertia by no more than this share of it. With 0, when it is lowered no more.

    Returns
    -------
    Clustering
        A centroid that loses all its rows is put on the row farthest from its own centroid, a different row for each.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    xp = check.together(bank=bank)
    check.concrete("cluster", bank=bank)
    check.bank(bank)
    check.finite("bank", bank)
    n_clusterings = check.count("n_clusterings", n_clusterings)
    n_iter = check.count("n_iter", n_iter)
    seed = check.count("seed", seed, least=0)
    tolerance = check.number("tolerance", tolerance, 0.0)
    sizes = list(n_clusters) if isinstance(n_clusters, Iterable) else [n_clusters] * n_clusterings
    if len(sizes) != n_clusterings:
        raise RangeError(f"n_clusters must be one number or {n_clusterings}, one for each clustering; got {len(sizes)}")
    sizes = [check.count("n_clusters", m, bank.shape[0], "the rows of the bank") for m in sizes]

    runs = [lloyd(bank, m, generator(seed, "clusters", h), n_iter, tolerance) for h, m in enumerate(sizes)]
    return Clustering(
        labels=xp.stack([xp.astype(labels, xp.int32) for labels, _, _ in runs]),
        inertia=xp.asarray([history[-1] for _, _, history in runs], dtype=bank.dtype, device=device(bank)),
        centroids=tuple(centroids for _, centroids, _ in runs),
        history=tuple(tuple(history) for _, _, history in runs),
    )


def lloyd(
    x: Array, m: int, rng: np.random.Generator, n_iter: int, tolerance: float
) -> tuple[Array, Array, list[float]]:
    """One k-means: labels (N,), centroids (m, D), and the inertia at the start and after every iteration."""
    xp = array_namespace(x)
    start = rng.choice(x.shape[0], size=m, replace=False)
    centroids = xp.take(x, xp.asarray(start, device=device(x)), axis=0)
    labels, squares = kernels.assign(x, centroids)
    history = [float(xp.sum(squares))]
    for _ in range(n_iter):
        moved = means(x, labels, squares, centroids)
        new_labels, new_squares = kernels.assign(x, moved)
        inertia = float(xp.sum(new_squares))
        if inertia > history[-1]:  # by rounding alone, at a fixed point
            break
        labels, squares, centroids = new_labels, new_squares, moved
        history.append(inertia)
        if history[-2] - inertia <= tolerance * history[-2]:
            break
    return labels, centroids, history


def means(x: Array, labels: Array, squares: Array, centroids: Array) -> Array:
    """The mean row of every cluster (m, D); a cluster without rows takes one of the rows farthest from its centroid."""
    xp = array_namespace(x)
    m = centroids.shape[0]
    ones = xp.ones((x.shape[0], 1), dtype=x.dtype, device=device(x))
    counts = kernels.segment_sum(ones, labels, m)  # (m, 1)
    centroids = kernels.segment_sum(x, labels, m) / xp.clip(counts, min=1.0)

    n_empty = int(xp.sum(xp.astype(counts == 0, xp.int32)))
    if n_empty:
        empty = xp.argsort(counts[:, 0], stable=True)[:n_empty]
        _, far = kernels.top_k(squares[None, :], n_empty)
        centroids = kernels.put_rows(centroids, empty, xp.take(x, far[0, :], axis=0))
    return centroids
