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
    runs = []
    for h, m in enumerate(sizes):
        if start is None:
            chosen = generator(seed, "clusters", h).choice(bank.shape[0], size=m, replace=False)
            centroids = kernels.wide(kernels.rows_at(bank, xp.asarray(chosen, device=device(bank))))
            before = None
        else:
            labels = start[h, mine]
            centroids, counts = means(bank, labels, xp.zeros(n, dtype=dtype, device=device(bank)), m)
            before = Before(labels, about_means(bank, centroids, counts))
        runs.append(lloyd(bank, centroids, n_iter, tolerance, before))
    return Clustering(
        labels=xp.stack([shards.entries(xp.astype(labels, xp.int32), bank) for labels, _, _ in runs]),
        inertia=xp.asarray([history[-1] for _, _, history in runs], dtype=dtype, device=device(bank)),
        centroids=tuple(centroids for _, centroids, _ in runs),
        history=tuple(tuple(history) for _, _, history in runs),
    )


class Before(NamedTuple):
    """What a clustering goes on from."""

    labels: Array
    """(N,)"""
    inertia: float
    """About the means of the rows with each label, to a few units of rounding of the rows' squares."""


@kernels.Kernel
def lloyd(
    x: Array, centroids: Array, n_iter: int, tolerance: float, before: Before | None = None
) -> tuple[Array, Array, list[float]]:
    """One k-means: labels (N,), centroids (m, D), and the inertia at the start and after every iteration.

    Of a :class:`la_core.shards.Dealt` labels are those of the rows at hand. What there is ``before`` has the centroids
    for its means.
    """
    xp = array_namespace(x)
    rows, comm = shards.held(x)
    tiled = shards.in_one_place(x) and tiles.pay(rows.shape[0], centroids.shape[0])

    def assigned(centroids: Array, labels: Array | None) -> tuple[Array, Array]:
        found = tiles.assign(rows, labels, centroids) if tiled and labels is not None else None
        return shards.assigned(x, centroids) if found is None else found

    labels, squares = assigned(centroids, before.labels if before else None)
    history = [float(comm.all_sum(xp.sum(squares)))]
    # About the means of its own rows a clustering is better than ``history`` says: known before the next assignment.
    own = [before.inertia] if before and tolerance else []
    for left in reversed(range(n_iter)):
        moved, counts = means(x, labels, squares, centroids.shape[0])
        by = moved - centroids
        own.append(history[-1] - float(xp.sum(counts[:, 0] * xp.vecdot(by, by))))
        # What a cluster without rows gains where it is put is not known so early.
        known = history if bool(xp.any(counts == 0.0)) else own
        if len(known) > 1 and to_come(known, left + 1) <= tolerance * known[-1]:
            break
        new_labels, new_squares = assigned(moved, labels)
        inertia = float(comm.all_sum(xp.sum(new_squares)))
        if inertia > history[-1]:  # by rounding alone, at a fixed point
            break
        labels, squares, centroids = new_labels, new_squares, moved
        history.append(inertia)
    return labels, centroids, history


def about_means(x: Array, centroids: Array, counts: Array) -> float:
    """The inertia about centroids that are means of so many rows each."""
    xp = array_namespace(x)
    (whole,) = shards.sums(_squares, x)
    return float(whole - xp.sum(counts[:, 0] * xp.vecdot(centroids, centroids)))


def _squares(rows: Array) -> tuple[Array]:
    """The sum of all squares; one function, so that a library that compiles does so once."""
    xp = array_namespace(rows)
    return (sum(xp.sum(kernels.wide(rows[some, :]) ** 2) for some in kernels.read_in_blocks(rows)),)


def to_come(history: list[float], left: int) -> float:
    """What the iterations that are left may still take off the inertia.

    Each takes off a share of what the one before it took. That share rises slowly, so it is put half way between its
    last value and 1.
    """
    gain = history[-2] - history[-1]
    before = history[-3] - history[-2] if len(history) > 2 else 0.0
    last = min(max(gain / before, 0.0), 1.0) if before > 0.0 else 1.0
    share = (1.0 + last) / 2.0
    return gain * sum(share**i for i in range(1, left + 1))


def means(x: Array, labels: Array, squares: Array, m: int) -> tuple[Array, Array]:
    """The mean row of every cluster (m, D), and how many rows it has (m, 1).

    A cluster without rows takes one of the rows farthest from its centroid.
    """
    xp = array_namespace(x)
    centroids, counts = shards.segment_mean(x, labels, m)
    n_empty = int(xp.sum(xp.astype(counts == 0, xp.int32)))
    if n_empty:
        empty = xp.argsort(counts[:, 0], stable=True)[:n_empty]
        far = shards.largest(squares, n_empty, x.shape[0], shards.held(x)[1])
        centroids = kernels.put_rows(centroids, empty, kernels.wide(kernels.rows_at(x, far)))
    return centroids, counts
