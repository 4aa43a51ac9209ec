"""k-means over the bank, several times over: where close neighbours come from.

Lloyd's algorithm on the rows as they are, Euclidean, from random distinct rows, as in both published codes. On unit
rows the nearest centroid maximises ``x . c - ||c||^2 / 2``, which is not the largest cosine, since means are shorter
than 1. In a large bank with structure most rows find it without a look at all of them (:mod:`la_core.tiles`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from la_core import check, kernels, shards, tiles
from la_core.comm import part
from la_core.errors import RangeError, ShapeError
from la_core.kernels import Array
from la_core.randomness import generator
from la_core.spaces import array_namespace, device

TOLERANCE = 0.005
"""Share of the inertia by which a clustering may stay above full Lloyd."""


class Clustering(NamedTuple):
    """H clusterings of one bank."""

    labels: Array
    """(H, N) int32, the cluster of each row; comparable within one clustering only."""
    inertia: Array
    """(H,) sum of the squared distances to the centroids, in the bank's dtype, or float32 if that is stored in half."""
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
    tolerance: float = TOLERANCE,
    start: Array | None = None,
) -> Clustering:
    """Cluster the bank ``n_clusterings`` times, each from its own random rows.

    Parameters
    ----------
    bank
        (N, D) as in :class:`State`, finite. The N x m distances are never stored whole.
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
        Stop when the iterations that are left can be expected to lower the inertia by no more than this share of it.
        With 0, when it is lowered no more: Lloyd's algorithm in full.
    start
        (H, N) labels of an earlier clustering of these samples. Each clustering then goes on from its own earlier one,
        with the means of the rows as they are now, instead of from random rows.

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

    if start is not None:
        check.together(bank=bank, start=start)
        check.labels(start, bank.shape[0])
        if start.shape[0] != n_clusterings:
            raise ShapeError(f"start must have {n_clusterings} rows, one for each clustering; got {start.shape[0]}")
        for labels, m in zip((start[h, :] for h in range(n_clusterings)), sizes, strict=True):
            if int(xp.min(labels)) < 0 or int(xp.max(labels)) >= m:
                raise RangeError(f"start must hold labels from 0 to {m - 1}, one less than n_clusters")

    rows, comm = shards.held(bank)
    n, mine, dtype = rows.shape[0], part(bank.shape[0], comm), kernels.wide(rows[:1, :]).dtype
    tiled = shards.in_one_place(bank) and any(tiles.pay(n, m) for m in sizes)
    near = tiles.order(rows, generator(seed, "tiles")) if tiled else None
    runs = []
    for h, m in enumerate(sizes):
        if start is None:
            chosen = generator(seed, "clusters", h).choice(bank.shape[0], size=m, replace=False)
            centroids = kernels.wide(kernels.rows_at(bank, xp.asarray(chosen, device=device(bank))))
        else:
            centroids = means(bank, start[h, mine], xp.zeros(n, dtype=dtype, device=device(bank)), m)
        runs.append(lloyd(bank, centroids, n_iter, tolerance, near if tiles.pay(n, m) else None))
    return Clustering(
        labels=xp.stack([shards.entries(xp.astype(labels, xp.int32), bank) for labels, _, _ in runs]),
        inertia=xp.asarray([history[-1] for _, _, history in runs], dtype=dtype, device=device(bank)),
        centroids=tuple(centroids for _, centroids, _ in runs),
        history=tuple(tuple(history) for _, _, history in runs),
    )


def lloyd(
    x: Array, centroids: Array, n_iter: int, tolerance: float, near: Array | None = None
) -> tuple[Array, Array, list[float]]:
    """One k-means: labels (N,), centroids (m, D), and the inertia at the start and after every iteration.

    Of a :class:`la_core.shards.Dealt` labels are those of the rows at hand. ``near`` is an order of these in which
    neighbours lie together, for :mod:`la_core.tiles`. It is used as long as it saves work.
    """
    xp = array_namespace(x)
    rows, comm = shards.held(x)

    def assigned(centroids: Array) -> tuple[Array, Array]:
        nonlocal near
        if near is None:
            return shards.assigned(x, centroids)
        labels, squares, share = tiles.assign(rows, near, centroids)
        back = xp.argsort(near)
        near = near if share >= tiles.MOSTLY else None
        return xp.take(labels, back), xp.take(squares, back)

    labels, squares = assigned(centroids)
    history = [float(comm.all_sum(xp.sum(squares)))]
    for left in reversed(range(n_iter)):
        moved = means(x, labels, squares, centroids.shape[0])
        new_labels, new_squares = assigned(moved)
        inertia = float(comm.all_sum(xp.sum(new_squares)))
        if inertia > history[-1]:  # by rounding alone, at a fixed point
            break
        labels, squares, centroids = new_labels, new_squares, moved
        history.append(inertia)
        if to_come(history, left) <= tolerance * inertia:
            break
    return labels, centroids, history


def to_come(history: list[float], left: int) -> float:
    """What the iterations that are left may still take off the inertia.

    Each takes off a share of what the one before it took. That share rises slowly, so it is put half way between its
    last value and 1.
    """
    gain = history[-2] - history[-1]
    last = gain / (history[-3] - history[-2]) if len(history) > 2 and gain > 0.0 else 1.0
    share = (1.0 + min(last, 1.0)) / 2.0
    return gain * sum(share**i for i in range(1, left + 1))


def means(x: Array, labels: Array, squares: Array, m: int) -> Array:
    """The mean row of every cluster (m, D); a cluster without rows takes one of the rows farthest from its centroid."""
    xp = array_namespace(x)
    centroids, counts = shards.segment_mean(x, labels, m)
    n_empty = int(xp.sum(xp.astype(counts == 0, xp.int32)))
    if n_empty:
        empty = xp.argsort(counts[:, 0], stable=True)[:n_empty]
        far = shards.largest(squares, n_empty, x.shape[0], shards.held(x)[1])
        centroids = kernels.put_rows(centroids, empty, kernels.wide(kernels.rows_at(x, far)))
    return centroids
