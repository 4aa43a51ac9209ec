"""Nearest centroids without a look at all of them: tiles of rows that lie together, and the centroids near a tile.

Rows are put in an order in which neighbours lie together, and cut into tiles of a fixed size. All rows of a tile are
compared with the ``NEAR`` centroids nearest to its mean, in one dense product.

Why that can be trusted. For a row x of a tile with mean c, and any centroid j that was left out,
``|x - j| >= |c - j| - |x - c| >= far - |x - c|``, where ``far`` is the distance from c to the farthest centroid that
was compared. So if the nearest centroid found is nearer than ``far - |x - c|``, it is the nearest of all: the row is
*sure*. On data with structure most rows are; rows that are not are few enough to be compared with all centroids.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from la_core import kernels
from la_core.bank import inverse_norm
from la_core.kernels import BUDGET, Array, blocks, itemsize
from la_core.spaces import array_namespace, device

ROWS = 128
"""Of a tile."""
NEAR = 128
"""Centroids that a tile is compared with."""
MOSTLY = 0.15
"""Share of the rows that must be sure of what their tile found, or else tiles are no use."""
SLACK = 32
"""Units of rounding by which the square of a distance may be off."""


class Found(NamedTuple):
    """A centroid for each of some rows."""

    labels: Array
    squares: Array
    """Squared distances."""
    sure: Array
    """bool: it is the nearest of all."""


def pay(n: int, m: int) -> bool:
    """Whether tiles are worth it for n rows and m centroids."""
    return n >= 128 * ROWS and m >= 8 * NEAR


def order(x: Array, rng: np.random.Generator) -> Array:
    """An order of the rows (N,) in which neighbours lie together: by the nearest of some pivots, in a tree's order.

    Two rounds of k-means on a sample place the pivots: a power of two, ``1.5 sqrt(N)`` to ``3 sqrt(N)``.
    """
    xp = array_namespace(x)
    n = x.shape[0]
    depth = int(np.log2(min(n, 3 * np.sqrt(n))))
    drawn = rng.choice(n, size=min(n, 32 * 2**depth), replace=False)
    sample = kernels.wide(xp.take(x, xp.asarray(drawn, device=device(x)), axis=0))
    pivots = sample[: 2**depth, :]
    for _ in range(2):
        labels, _ = kernels.assign(sample, pivots)
        means, counts = kernels.segment_mean(sample, labels, 2**depth)
        pivots = xp.where(counts > 0, means, pivots)
    place = xp.argsort(tree_order(pivots))
    return xp.argsort(xp.take(place, kernels.assigned(x, pivots)[0]), stable=True)


def tree_order(x: Array) -> Array:
    """Rows (2^d, D) in the order of the leaves of a tree that halves them, each time along their principal axis."""
    xp = array_namespace(x)
    n, dim = x.shape
    leaves = xp.reshape(xp.arange(n, device=device(x)), (1, n))
    while leaves.shape[1] > 1:
        nodes = xp.reshape(xp.take(x, xp.reshape(leaves, (-1,)), axis=0), (*leaves.shape, dim))
        nodes = nodes - xp.mean(nodes, axis=1, keepdims=True)
        axis = nodes[:, :1, :]
        for _ in range(4):  # powers of the covariance turn any start towards its first eigenvector
            axis = (axis @ xp.matrix_transpose(nodes)) @ nodes
            axis = axis * inverse_norm(axis)
        along = xp.sum(nodes * axis, axis=2)
        halved = xp.take_along_axis(leaves, xp.argsort(along, axis=1, stable=True), axis=1)
        leaves = xp.reshape(halved, (2 * leaves.shape[0], -1))
    return xp.reshape(leaves, (-1,))


def near(x: Array, rows: Array, centroids: Array, candidates: int, budget: int = BUDGET) -> Found:
    """The nearest of the centroids near a row's tile: ``(N, D), (R,) rows by locality, (m, D) -> (R,)``."""
    xp = array_namespace(x)
    dim, m = centroids.shape[1], centroids.shape[0]
    squared = xp.vecdot(centroids, centroids)
    rounding = SLACK * float(xp.finfo(centroids.dtype).eps)
    filled = xp.concat([rows, xp.broadcast_to(rows[-1:], (-rows.shape[0] % ROWS,))])  # to whole tiles
    per_tile = itemsize(centroids) * (2 * ROWS * (dim + candidates) + candidates * dim + 4 * m)
    parts: list[Found] = []
    for some in blocks(filled.shape[0] // ROWS, budget // (4 * per_tile)):
        chosen = filled[some.start * ROWS : some.stop * ROWS]
        tile = xp.reshape(kernels.wide(xp.take(x, chosen, axis=0)), (-1, ROWS, dim))
        mean = xp.mean(tile, axis=1)
        closeness, near = kernels.top_k(2.0 * mean @ xp.matrix_transpose(centroids) - squared, candidates)
        size = xp.vecdot(mean, mean)[:, None]
        far = size - xp.min(closeness, axis=1, keepdims=True)  # squared, as all distances here

        flat = xp.reshape(near, (-1,))
        compared = xp.reshape(xp.take(centroids, flat, axis=0), (-1, candidates, dim))
        score = tile @ xp.matrix_transpose(compared) - 0.5 * xp.reshape(xp.take(squared, flat), (-1, 1, candidates))
        first = xp.argmax(score, axis=2, keepdims=True)
        best = xp.take_along_axis(score, first, axis=2)[:, :, 0]
        label = xp.take_along_axis(near, first[:, :, 0], axis=1)

        own = xp.vecdot(tile, tile)
        square = xp.clip(own - 2.0 * best, min=0.0)
        apart = xp.clip(own - 2.0 * (tile @ mean[:, :, None])[:, :, 0] + size, min=0.0)
        off = rounding * (xp.max(own, axis=1, keepdims=True) + xp.max(squared))
        sure = xp.sqrt(square + off) + xp.sqrt(apart + off) < xp.sqrt(xp.clip(far - off, min=0.0))
        parts.append(Found(*(xp.reshape(part, (-1,)) for part in (label, square, sure))))
    return Found(*(xp.concat(part)[: rows.shape[0]] for part in zip(*parts, strict=True)))


def assign(x: Array, rows: Array, centroids: Array) -> tuple[Array, Array, float]:
    """The nearest centroid of each of the rows, the square of the distance, and the share of rows that tiles found.

    A row that is not sure of the best in its tile is compared with every centroid.
    """
    xp = array_namespace(x)
    labels, squares, sure = near(x, rows, centroids, min(NEAR, centroids.shape[0]))
    unsure = rows.shape[0] - int(xp.sum(xp.astype(sure, xp.int32)))
    if unsure:
        again = xp.argsort(xp.astype(sure, xp.int8), stable=True)[:unsure]
        for some in kernels.read_in_blocks(x) if kernels.apart(x) else (slice(0, unsure),):
            part = again[some]
            if part.shape[0]:
                found = kernels.assign(kernels.wide(xp.take(x, xp.take(rows, part), axis=0)), centroids)
                labels = kernels.put_rows(labels[:, None], part, xp.astype(found[0], labels.dtype)[:, None])[:, 0]
                squares = kernels.put_rows(squares[:, None], part, found[1][:, None])[:, 0]
    return labels, squares, 1.0 - unsure / rows.shape[0]
