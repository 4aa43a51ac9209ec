"""Background search through the clusters that are there already: faster than the exact search, and not exact.

A clustering is an index: its *lists* hold the rows of each cluster. A query reads the lists of the ``probes`` clusters
whose centroids are nearest to it in each of the H clusterings, and takes the best of the rows that it finds there, by
their scores as they are now. What it misses is reported as :func:`recall`. (Sivic and Zisserman 2003; Jegou et al.
2011.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

from la_core import check, kernels
from la_core.errors import RangeError
from la_core.kernels import Array, blocks, itemsize
from la_core.spaces import array_namespace, device

LONGEST = 2.0
"""Length at which lists are cut off, in mean lengths: all have one shape, so that a step compiles once."""


def list_length(n: int, n_clusters: int) -> int:
    """Of every list: L."""
    return min(n, math.ceil(LONGEST * n / n_clusters))


class Lists(NamedTuple):
    """The rows of every cluster of H clusterings, by cluster."""

    centroids: Array
    """(H, m, D) mean row of each cluster."""
    rows: Array
    """(H, m, L) bank rows; -1 where a list is shorter, and all -1 for a cluster without rows."""


class Found(NamedTuple):
    """What a query met in its lists."""

    scores: Array
    """(B, k)"""
    indices: Array
    """(B, k) bank rows, each at most once."""
    valid: Array
    """(B, k) bool: fewer than k rows were met where it is false."""


def lists(bank: Array, labels: Array, n_clusters: int) -> Lists:
    """The lists of a clustering of this bank.

    Parameters
    ----------
    bank
        (N, D)
    labels
        (H, N) integers below ``n_clusters``; a row with a negative label is in no list of that clustering.
    n_clusters
        m, the most of any clustering.

    Raises
    ------
    ShapeError, KindError, RangeError
    """
    xp = check.together(bank=bank, labels=labels)
    check.bank(bank)
    n = bank.shape[0]
    check.labels(labels, n)
    check.count("n_clusters", n_clusters, n, "the rows of the bank")
    if int(xp.max(labels)) >= n_clusters:
        raise RangeError(f"labels must be below n_clusters, {n_clusters}; got {int(xp.max(labels))}")
    length = list_length(n, n_clusters)
    places = xp.arange(length, device=device(bank))[None, :]
    centroids, rows = [], []
    for h in range(labels.shape[0]):
        label = xp.astype(labels[h, :], places.dtype)  # which holds n_clusters
        cluster = xp.where(label < 0, xp.full_like(label, n_clusters), label)
        means, counts = kernels.segment_mean(bank, cluster, n_clusters + 1)
        size = xp.astype(counts[:n_clusters, :], places.dtype)
        first = xp.cumulative_sum(size, axis=0) - size
        members = xp.take(xp.argsort(cluster, stable=True), xp.reshape(xp.clip(first + places, max=n - 1), (-1,)))
        listed = xp.where(places < size, xp.reshape(members, (n_clusters, length)), -1)
        centroids.append(means[:n_clusters, :])
        rows.append(xp.astype(listed, places.dtype))
    return Lists(xp.stack(centroids), xp.stack(rows))


def nearest(z: Array, bank: Array, among: Lists, k: int, probes: int, budget: int = kernels.BUDGET) -> Found:
    """The k best rows in the lists of the ``probes`` nearest clusters of each clustering; (B, D), (N, D) unit rows.

    Raises
    ------
    RangeError
        These lists do not hold k rows even where they are full.
    """
    xp = array_namespace(z, bank)
    n_clusterings, m, length = among.rows.shape
    probes = min(probes, m)
    if n_clusterings * probes * length < k:
        raise RangeError(
            f"probes must be at least {math.ceil(k / (n_clusterings * length))} for {k} neighbours from lists of "
            f"{length} rows; got {probes}"
        )
    per_query = n_clusterings * (m * itemsize(z) + probes * length * (4 * 8 + 2 * itemsize(z)))
    parts = []
    for some in blocks(z.shape[0], budget // per_query):
        query = z[some, :]
        read = []
        for h in range(n_clusterings):
            centroids, rows = among.centroids[h, ...], among.rows[h, ...]
            # Euclidean, as the clusters are; a cluster without rows is nobody's nearest
            score = query @ xp.matrix_transpose(centroids) - 0.5 * xp.vecdot(centroids, centroids)
            score = xp.where(rows[:, 0] < 0, -xp.inf, score)
            _, chosen = kernels.top_k(score, probes)
            read.append(xp.reshape(xp.take(rows, xp.reshape(chosen, (-1,)), axis=0), (query.shape[0], -1)))
        rows = xp.sort(xp.concat(read, axis=1), axis=1)
        new = xp.concat([rows[:, :1] >= 0, rows[:, 1:] > xp.clip(rows[:, :-1], min=-1)], axis=1)
        scores = kernels.scores_at(query, bank, xp.clip(rows, min=0))
        best, columns = kernels.top_k(xp.where(new, scores, -xp.inf), k)
        valid = xp.take_along_axis(new, columns, axis=1)
        indices = xp.clip(xp.take_along_axis(rows, columns, axis=1), min=0)
        parts.append(Found(xp.where(valid, best, xp.zeros_like(best)), indices, valid))
    return Found(*(xp.concat(part, axis=0) for part in zip(*parts, strict=True)))


def recall(z: Array, bank: Array, among: Lists, k: int, probes: int) -> float:
    """Share of the k nearest rows that are met in the lists: 1 where nothing is missed."""
    xp, z = array_namespace(z, bank), kernels.like(z, bank)
    scores, _ = kernels.nearest(z, bank, k)
    least = xp.min(scores, axis=1, keepdims=True)
    found = nearest(z, bank, among, k, probes)
    return float(xp.mean(xp.astype(found.valid & (found.scores >= least - 1e-6), scores.dtype)))
