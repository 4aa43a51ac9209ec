"""Nearest centroids without a look at all of them: rows of one cluster, and the centroids near its own.

Between two iterations most rows stay where they are, or go to a cluster near by. So rows are put in *tiles*, each of
rows of one cluster, and all rows of a tile are compared with the centroids nearest to that of the cluster, in one dense
product: with as many as a sample of the rows says that it takes, or with all, where that is expected to take less time.

Why that can be trusted. For a row x of a cluster with centroid c, and any centroid j that was left out,
``|x - j| >= |c - j| - |x - c| >= far - |x - c|``, where ``far`` is the distance from c to the farthest centroid that
was compared. So if the nearest centroid found is nearer than ``far - |x - c|``, it is the nearest of all: the row is
*sure*. On data with structure most rows are; rows that are not are compared with all centroids. It does not matter
where the clusters come from: labels that fit badly leave more rows unsure.
"""

from __future__ import annotations

from typing import NamedTuple

from la_core import kernels
from la_core.kernels import CACHE, Array, blocks, entries, itemsize
from la_core.spaces import array_namespace, device

ROWS = 32
"""Of a tile."""
NEAR = 128
"""Centroids that a tile is compared with, at the least."""
WORK, LISTS = 6.5, 6.0
"""How much more work than a centroid in a product with all is one of a tile's own, and one to choose these from."""
SAMPLE = 512
"""Rows that are looked at to say how many it takes."""
SLACK = 32
"""Units of rounding by which the square of a distance may be off."""
SHAPES = 64
"""How many different numbers of rows may have to be compared with all centroids."""


class Found(NamedTuple):
    """A centroid for each row."""

    labels: Array
    squares: Array
    """Squared distances."""
    sure: Array
    """bool: it is the nearest of all."""


class Tiles(NamedTuple):
    """Where the rows of each cluster are."""

    rows: Array
    """(tiles, ROWS): a cluster that does not fill its last tile repeats a row."""
    cluster: Array
    """(tiles,)"""
    slots: Array
    """(N,) where each row is in the flat ``rows``."""


def pay(n: int, m: int) -> bool:
    """Whether tiles are worth it for n rows and m centroids."""
    return n >= 8 * m >= 64 * NEAR


def memory(n: int, m: int, word: int) -> int:
    """Bytes that :func:`near` takes at most beside copies of rows: for each row of a tile, each row, and each list."""
    lists = 2 * m * max(NEAR, int(m // WORK)) * 4
    return (n + (ROWS - 1) * m) * (16 + 8 * word) + n * (20 + 2 * word) + lists + 16 * CACHE


def enough(x: Array, labels: Array, centroids: Array) -> int:
    """Centroids that it is worth comparing a tile with, for rows with these labels; 0 where all are better.

    A row at distance d from its own centroid can only be nearer to one that is within 2 d of that.
    """
    xp, n, m = array_namespace(x), x.shape[0], centroids.shape[0]
    squared = xp.vecdot(centroids, centroids)
    chosen = xp.arange(0, n, max(1, n // SAMPLE), device=device(x))
    parts = []
    for some in blocks(chosen.shape[0], 8 * CACHE // (m * itemsize(centroids))):
        rows = chosen[some]
        mean = xp.take(centroids, xp.take(labels, rows), axis=0)
        by = kernels.wide(xp.take(x, rows, axis=0)) - mean
        reach = 4.0 * xp.vecdot(by, by) - xp.vecdot(mean, mean)
        within = squared - 2.0 * mean @ xp.matrix_transpose(centroids) <= reach[:, None]
        parts.append(xp.sum(xp.astype(within, xp.int32), axis=1))
    within = xp.concat(parts)
    work = WORK * (1.0 + 0.5 * ROWS * m / n)  # clusters leave half of their last tile unused
    costs, candidates = {0: float(m)}, NEAR
    while work * candidates < m:
        unsure = float(xp.mean(xp.astype(within > candidates, xp.float32)))
        costs[candidates] = work * candidates + LISTS * m * m / n + m * unsure
        candidates *= 2
    return min(costs, key=lambda candidates: costs[candidates])


def by_cluster(labels: Array, m: int, together: int = 1) -> Tiles:
    """Tiles of the rows with these labels (N,), their number filled up to a multiple of ``together``."""
    xp, at = array_namespace(labels), device(labels)
    n, order = labels.shape[0], xp.argsort(labels, stable=True)
    own = xp.take(labels, order)
    ends = xp.searchsorted(own, xp.arange(m, dtype=own.dtype, device=at), side="right")
    starts = xp.concat([xp.zeros_like(ends[:1]), ends[:-1]])
    last = xp.cumulative_sum((ends - starts + ROWS - 1) // ROWS)
    first = xp.concat([xp.zeros_like(last[:1]), last[:-1]])

    number = xp.arange(-(-int(last[-1]) // together) * together, dtype=last.dtype, device=at)
    cluster = xp.clip(xp.searchsorted(last, number, side="right"), max=m - 1)
    begin = xp.take(starts, cluster) + ROWS * (number - xp.take(first, cluster))
    ranks = begin[:, None] + xp.arange(ROWS, dtype=begin.dtype, device=at)
    ranks = xp.clip(xp.minimum(ranks, xp.take(ends, cluster)[:, None] - 1), min=0)
    slots = ROWS * xp.take(first, own) + xp.arange(n, dtype=first.dtype, device=at) - xp.take(starts, own)
    return Tiles(entries(order, ranks), cluster, xp.take(slots, xp.argsort(order)))


@kernels.Kernel
def neighbours(of: Array, centroids: Array, candidates: int, budget: int = 8 * CACHE) -> tuple[Array, Array]:
    """The centroids nearest to some of them, and the square of the farthest's distance.

    ``(k, D), (m, D) -> (k, candidates), (k, 1)``, by scores that take at most ``budget`` bytes. Each is near itself.
    """
    xp, m = array_namespace(of, centroids), centroids.shape[0]
    squared = xp.vecdot(centroids, centroids)
    near, far = [], []
    for some in blocks(of.shape[0], budget // (m * itemsize(centroids))):
        own = of[some, :]
        closeness, found = kernels.top_k(2.0 * own @ xp.matrix_transpose(centroids) - squared, candidates)
        near.append(xp.astype(found, xp.int32))
        far.append(xp.vecdot(own, own)[:, None] - xp.min(closeness, axis=1, keepdims=True))
    return xp.concat(near), xp.concat(far)


def near(x: Array, labels: Array, centroids: Array, candidates: int) -> Found:
    """The nearest of the centroids near a row's own: ``(N, D), (N,) in [0, m), (m, D)``."""
    xp = array_namespace(x)
    dim, m = centroids.shape[1], centroids.shape[0]
    squared = xp.vecdot(centroids, centroids)
    rounding = SLACK * float(xp.finfo(centroids.dtype).eps)
    near, far = neighbours(centroids, centroids, candidates)
    per_tile = itemsize(centroids) * (2 * ROWS * (dim + candidates) + candidates * dim)
    together = max(1, 4 * CACHE // per_tile)
    tiles = by_cluster(labels, m, together)
    parts = []
    for some in blocks(tiles.rows.shape[0], together):
        own, rows = tiles.cluster[some], xp.reshape(tiles.rows[some, :], (-1,))
        tile = xp.reshape(kernels.wide(xp.take(x, rows, axis=0)), (-1, ROWS, dim))
        mean = xp.take(centroids, own, axis=0)[:, None, :]
        listed = xp.take(near, own, axis=0)
        flat = xp.reshape(listed, (-1,))
        compared = xp.reshape(xp.take(centroids, flat, axis=0), (-1, candidates, dim))
        score = tile @ xp.matrix_transpose(compared) - 0.5 * xp.reshape(xp.take(squared, flat), (-1, 1, candidates))
        first = xp.argmax(score, axis=2, keepdims=True)
        label = xp.take_along_axis(listed, first[:, :, 0], axis=1)
        best = xp.take_along_axis(score, first, axis=2)[:, :, 0]
        parts.append((label, best, (mean @ xp.matrix_transpose(tile))[:, 0, :], xp.sum(tile * tile, axis=2)))
    label, best, with_mean, length = (xp.concat(part) for part in zip(*parts, strict=True))

    square = xp.clip(length - 2.0 * best, min=0.0)
    apart = xp.clip(length - 2.0 * with_mean + xp.take(squared, tiles.cluster)[:, None], min=0.0)
    off = rounding * (xp.max(length, axis=1, keepdims=True) + xp.max(squared))
    limit = xp.sqrt(xp.clip(xp.take(far, tiles.cluster, axis=0) - off, min=0.0))
    sure = xp.sqrt(square + off) + xp.sqrt(apart + off) < limit
    return Found(*(xp.take(xp.reshape(part, (-1,)), tiles.slots) for part in (label, square, sure)))


def assign(x: Array, labels: Array, centroids: Array) -> tuple[Array, Array] | None:
    """The nearest centroid of each row and the square of the distance; None where tiles are of no use.

    A row that is not sure of the best in its tile is compared with every centroid. ``labels`` (N,) in [0, m) are those
    of rows that were near to each other before, most likely to be near the same centroids now.
    """
    candidates = enough(x, labels, centroids)
    if not candidates:
        return None
    xp, n = array_namespace(x), x.shape[0]
    found, squares, sure = near(x, labels, centroids, candidates)
    unsure = n - int(xp.sum(xp.astype(sure, xp.int32)))
    if unsure:
        shape = -(-n // SHAPES)  # some that are sure come along, so that a library that compiles does so few times
        again = xp.argsort(xp.astype(sure, xp.int8), stable=True)[: min(n, -(-unsure // shape) * shape)]
        for some in kernels.read_in_blocks(x) if kernels.apart(x) else (slice(0, again.shape[0]),):
            rows = again[some]
            if rows.shape[0]:
                theirs = kernels.assign(kernels.wide(xp.take(x, rows, axis=0)), centroids)
                found = kernels.put_rows(found[:, None], rows, xp.astype(theirs[0], found.dtype)[:, None])[:, 0]
                squares = kernels.put_rows(squares[:, None], rows, theirs[1][:, None])[:, 0]
    return found, squares
