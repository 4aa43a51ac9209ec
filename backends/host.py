"""What NumPy does faster than the reference, for itself and for PyTorch's tensors on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np

from la_core import kernels, objectives, tiles
from la_core.backends import scan, threads
from la_core.backends.threads import Map
from la_core.kernels import Array
from la_core.spaces import array_namespace

VANISHING = 1e-20
"""A share of the peak beside which what a float32 cannot hold is nothing."""

SHARED = 2**22
"""Distances from which on it pays to begin threads that share them."""

GATHERED = 2**23
"""Numbers in the rows that a weighted sum gathers, from which on it does, too."""

Crew: TypeAlias = Callable[[bool], AbstractContextManager[tuple[int, Map]]]
"""Threads, as :func:`la_core.backends.threads.pool` gives them."""

FEWEST, APART, SHARE = 2**20, 2**24, 32
"""Scores of a batch against a bank, from which on it pays to begin threads, and up to which these do better apart than
with a search that they share; and rows of the batch that each should have at least."""


def in_shares(
    crew: Crew, work: Callable[[slice, int], tuple[Array, ...]], batch: int, n: int, k: int, budget: int
) -> tuple[Array, ...]:
    """What ``work(rows, budget)`` makes of the rows of a batch, k of n for each; of many by threads with some each.

    A search that threads share has three points at which they wait for each other, and what comes after it is one
    thread's in NumPy. In PyTorch it wakes others, which can take longer than the work itself.
    """
    most, scores = batch // SHARE, n * batch
    pays = most > 1 and scores >= FEWEST and (scores <= APART or not scan.pays(n, k))
    with crew(pays) as (count, each):
        if not pays or count == 1:
            return work(slice(0, batch), budget)
        shares = threads.shares(batch, min(count, most))
        parts = list(each(lambda rows: work(rows, budget // len(shares)), shares))
    concat = array_namespace(parts[0][0]).concat
    return tuple(map(concat, zip(*parts, strict=True)))


def aggregate(
    crew: Crew,
    v: Array,
    bank: Array,
    labels: Array,
    indices: Array,
    *,
    n_background: int,
    budget: int,
    **settings: Any,
) -> tuple[Array, Array, Array]:
    """The reference, by threads each of which takes some rows all the way: no row depends on another."""

    def work(rows: slice, budget: int) -> tuple[Array, ...]:
        found: tuple[Array, ...] = objectives.aggregate.reference(
            *(v[rows], bank, labels, indices[rows]), n_background=n_background, budget=budget, **settings
        )
        return found

    loss, pull, n_close = in_shares(crew, work, v.shape[0], bank.shape[0], n_background, budget)
    return loss, pull, n_close


def votes(labels: np.ndarray, indices: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """The reference's comparisons, counted in place, some rows at a time whose labels stay in the cache.

    Labels that are bytes are compared eight at a time, where there are so few rows that putting them together pays.
    """
    (many, n), size = labels.shape, neighbours.size
    found = np.zeros(neighbours.shape, np.uint8 if many < 256 else np.int32)
    if -(-many // 8) * (3 * size + 5 * n) <= many * size and labels.max() < NO_CLUSTER:
        for eight in kernels.blocks(many, 8):
            _count_equal_bytes(found, labels[eight], indices, neighbours)
        return found
    own = np.take(labels, indices, axis=1)  # (H, B)
    for some in _in_cache(neighbours):
        theirs, count = neighbours[some], found[some]
        for of_one, mine in zip(labels, own[:, some, None], strict=True):
            count += (np.take(of_one, theirs) == mine) & (mine >= 0)
    return found


NO_CLUSTER = 254
"""In place of a negative label of a sample; that of a neighbour becomes one more, so that they differ."""


def _count_equal_bytes(found: np.ndarray, labels: np.ndarray, indices: np.ndarray, neighbours: np.ndarray) -> None:
    """Add the votes of eight clusterings or fewer: a sample's labels are the bytes of a word, fetched once."""
    table = np.full((labels.shape[1], 8), NO_CLUSTER + 1, np.uint8)
    table[:, : len(labels)] = np.where(labels < 0, NO_CLUSTER + 1, labels).T
    words, mine = (x.view(np.uint64) for x in (table, np.minimum(np.take(table, indices, axis=0), NO_CLUSTER)))
    low = np.uint64(0x7F7F7F7F7F7F7F7F)
    for some in _in_cache(neighbours):
        differ = np.take(words, neighbours[some])
        differ ^= mine[some]
        high = differ & low
        high += low  # carries into the highest bit of a byte with any of the others set
        high |= differ
        high |= low
        found[some] += np.uint8(64) - np.bitwise_count(high)  # all bits of a byte that differs are set, else seven


def _in_cache(neighbours: np.ndarray) -> Iterator[slice]:
    return kernels.blocks(len(neighbours), kernels.CACHE // (32 * neighbours.shape[1]))


def softmax_ratio(s: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference with one exponential for both masses, in place.

    Both are measured from the peak of B, unless that of C is so far below it that its mass might vanish.
    """
    weights = s - s.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    close_mass = weights * mask
    total, close_total = (x.sum(axis=1, keepdims=True) for x in (weights, close_mass))
    some = mask.any(axis=1, keepdims=True)
    if not (close_total >= VANISHING * some).all():
        return kernels.softmax_ratio.reference(s, mask)
    close_total += ~some
    loss = np.where(some, np.log(total / close_total), np.asarray(math.log(s.shape[1]), s.dtype))
    weights /= total
    close_mass /= close_total
    weights -= close_mass
    weights *= some
    return loss[:, 0], weights


def weighted_rows(weights: np.ndarray, bank: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The reference with one room for the rows of a thread, for memory that is new costs several times more."""
    (batch, k), dim = indices.shape, bank.shape[1]
    found, size = np.empty((batch, 1, dim), weights.dtype), kernels.CACHE // (k * dim * bank.itemsize)

    def gather(part: slice) -> None:
        named, shares, sums = indices[part], weights[part, None, :], found[part]
        room = np.empty((min(len(named), max(1, size)) * k, dim), bank.dtype)
        for some in kernels.blocks(len(named), size):
            flat = named[some].reshape(-1)
            rows = np.take(bank, flat, axis=0, out=room[: len(flat)], mode="clip")  # "raise" would gather apart first
            np.matmul(shares[some], kernels.wide(rows).reshape(-1, k, dim), out=sums[some])

    with threads.pool(indices.size * dim >= GATHERED) as (count, each):
        list(each(gather, threads.shares(batch, count)))
    return found[:, 0]


def distinct(indices: np.ndarray) -> bool:
    """Whether no two are equal."""
    return len(set(indices.tolist())) == indices.size


def neighbours(
    of: np.ndarray, centroids: np.ndarray, candidates: int, budget: int = 8 * kernels.CACHE
) -> tuple[np.ndarray, np.ndarray]:
    """The reference, by threads that share what lists are wanted of."""
    with threads.pool(len(of) * len(centroids) >= SHARED) as (count, each):

        def lists(some: slice) -> tuple[np.ndarray, np.ndarray]:
            return tiles.neighbours.reference(of[some], centroids, candidates, budget // count)

        near, far = zip(*each(lists, threads.shares(len(of), count)), strict=True)
    return np.concatenate(near), np.concatenate(far)


def assign(x: np.ndarray, centroids: np.ndarray, budget: int = 8 * kernels.CACHE) -> tuple[np.ndarray, np.ndarray]:
    """The reference with one room for all blocks of a thread; half of each centroid's square is a column more."""
    n, m = x.shape[0], centroids.shape[0]
    half = -0.5 * np.vecdot(centroids, centroids)
    columns = np.ascontiguousarray(np.concatenate([centroids, half[:, None]], axis=1).T)
    labels, best = np.empty(n, np.int64), np.empty(n, x.dtype)

    def compare(part: slice) -> None:
        rows = np.ones((min(part.stop - part.start, size), x.shape[1] + 1), x.dtype)
        room = np.empty((len(rows), m), x.dtype)
        for start in range(part.start, part.stop, size):
            some = slice(start, min(start + size, part.stop))
            k = some.stop - some.start
            rows[:k, :-1] = x[some]
            block = np.matmul(rows[:k], columns, out=room[:k])
            np.argmax(block, axis=1, out=labels[some])
            best[some] = block[np.arange(k), labels[some]]

    with threads.pool(n * m >= SHARED) as (count, each):
        size = max(64, budget // (count * m * kernels.itemsize(x)))
        list(each(compare, threads.shares(n, count)))
    return labels, np.clip(np.vecdot(x, x) - 2.0 * best, 0.0, None)
