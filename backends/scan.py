"""Exact background search on a CPU in one pass over the bank: what NumPy and PyTorch share.

The reference selects k from every block and merges. Here a query has a *threshold*, and of a block's scores only those
above it are looked at again: few in a thousand, where a selection would move every one. The threshold starts as a
guess, the score of a certain rank in a sample of the rows, low enough that more than k rows pass it, most likely.

Why the answer is exact. A row is refused for one of two reasons. By the guess: then at least k rows that scored higher
must be among the candidates at the end, or else the query is searched again by the reference. By a threshold that was
raised when the candidates of a query outgrew their table: then k earlier rows score at least as much, and a later row
of equal score loses the tie. NaN is refused by no comparison, so it reaches the selection, which names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from la_core import kernels
from la_core.errors import NotFiniteError
from la_core.kernels import BUDGET

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
Products: TypeAlias = Callable[[slice, slice, np.ndarray], object]
"""``products(queries, rows, out)`` writes the scores of some queries against some rows of the bank."""
Search: TypeAlias = Callable[[np.ndarray], Pair]
"""The reference, for some queries."""

SAMPLE, STRIDES = 16_384, (8, 64)
"""Rows of the sample that the first threshold is taken from, and limits of the stride that this gives."""
LEAST, SHARE = 16_384, 8
"""Rows of a bank, and how many times as many as are wanted, from which on a scan is faster than the reference."""
QUERIES = 256
"""Most queries in a pass over the bank."""
SCORES, ROWS = 2**20, 1024
"""Of a block: about what is still in the cache when it is compared; and fewest rows."""


def pays(n: int, k: int) -> bool:
    """Whether a scan is worth it: a large bank, of which a small part is wanted."""
    return n >= LEAST and n >= SHARE * k


def scan(
    products: Products, reference: Search, n_queries: int, n: int, k: int, dtype: Any, budget: int = BUDGET
) -> Pair:
    """The k largest scores of every query, by rising row: ``(B, k) scores, (B, k) int64 rows``."""
    size = int(np.dtype(dtype).itemsize)
    together = min(n_queries, QUERIES)

    def width(rows: int) -> int:  # of a table: most of what passes a guess, or one block of which every row does
        return k + max(k, rows)

    def per_query(rows: int) -> int:
        return width(rows) * (size + 8) + max(rows, -(-n // stride(n))) * (size + 1) + 2 * k * (3 * size + 8)

    rows = max(ROWS, SCORES // together)
    while rows > ROWS and per_query(rows) * together > budget:
        rows //= 2
    values, indices = np.empty((n_queries, k), dtype), np.empty((n_queries, k), np.int64)
    for some in kernels.blocks(n_queries, min(QUERIES, budget // per_query(rows))):
        table = _Table(some.stop - some.start, width(rows), k, dtype)
        table.threshold[:, 0] = _guess(products, some, n, k, dtype)
        _fill(table, products, some, n, rows)
        values[some], indices[some] = table.best()
        if (few := some.start + np.flatnonzero(table.filled < k)).size:
            values[few], indices[few] = reference(few)
    return values, indices


def top_k(x: np.ndarray, k: int) -> Pair:
    """Select the k-th largest value, then keep what reaches it: faster than a selection of indices."""
    n = x.shape[1]
    threshold = np.partition(x, n - k, axis=1)[:, n - k, None]
    reach = x >= threshold
    surplus = np.count_nonzero(reach, axis=1) - k
    if surplus.min() < 0:  # NaN ranks highest, and nothing reaches it
        raise NotFiniteError("the bank must be finite; a score against it is NaN")
    for i in np.flatnonzero(surplus):  # more equals at the k-th place than places: the last ones go
        reach[i, np.flatnonzero(x[i] == threshold[i])[-surplus[i] :]] = False
    flat = np.flatnonzero(reach).reshape(-1, k)
    return np.take(x, flat), flat % n


def stride(n: int) -> int:
    """Of the sample: every so many rows."""
    return max(STRIDES[0], min(STRIDES[1], n // SAMPLE))


def rank(n: int, k: int) -> int:
    """Of the threshold in the sample: the expected number of the k best there, and six sigma."""
    expected = k / stride(n)
    return min(-(-n // stride(n)), math.ceil(expected + 6 * math.sqrt(expected)))


def _guess(products: Products, queries: slice, n: int, k: int, dtype: Any) -> np.ndarray:
    """Just below the score of that rank in the sample."""
    sampled = -(-n // stride(n))
    place = sampled - rank(n, k)
    sample = np.empty((queries.stop - queries.start, sampled), dtype)
    products(queries, slice(0, n, stride(n)), sample)
    sample.partition(place, axis=1)
    below: np.ndarray = np.nextafter(sample[:, place], -np.inf, dtype=dtype)
    return below


def _fill(table: _Table, products: Products, queries: slice, n: int, size: int) -> None:
    """One pass over the bank."""
    n_queries = queries.stop - queries.start
    room, marks = np.empty(n_queries * size, table.values.dtype), np.empty(n_queries * size, bool)
    for rows in kernels.blocks(n, size):
        width = rows.stop - rows.start
        block = room[: n_queries * width].reshape(n_queries, width)
        passed = marks[: n_queries * width].reshape(n_queries, width)
        products(queries, rows, block)
        if not table.add(block, rows.start, passed):
            table.tighten()
            table.add(block, rows.start, passed)


class _Table:
    """Candidates of every query, by rising row, and the threshold that the next must exceed."""

    def __init__(self, n_queries: int, width: int, k: int, dtype: Any) -> None:
        self.k = k
        self.values = np.empty((n_queries, width), dtype)
        self.indices = np.empty((n_queries, width), np.int64)
        self.filled = np.zeros(n_queries, np.int64)
        self.threshold = np.full((n_queries, 1), -np.inf, dtype)

    def add(self, block: np.ndarray, first: int, passed: np.ndarray) -> bool:
        """Add what exceeds the threshold, unless the table is too small for it."""
        np.less_equal(block, self.threshold, out=passed)
        np.logical_not(passed, out=passed)  # so that NaN passes
        flat = np.flatnonzero(passed)  # by query, then by row
        n_queries, size = block.shape
        bounds = np.searchsorted(flat, size * np.arange(n_queries + 1))
        counts = np.diff(bounds)
        if (self.filled + counts).max() > self.values.shape[1]:
            return False
        query = np.arange(n_queries)
        into = np.arange(flat.size) + np.repeat(query * self.values.shape[1] + self.filled - bounds[:-1], counts)
        self.values.reshape(-1)[into] = np.take(block, flat)
        self.indices.reshape(-1)[into] = flat + np.repeat(first - query * size, counts)
        self.filled += counts
        return True

    def best(self) -> Pair:
        """The k best of every query; rubbish where there are fewer."""
        width = max(self.k, int(self.filled.max()))
        values = self.values[:, :width].copy()
        values[np.arange(width) >= self.filled[:, None]] = -np.inf
        best, columns = top_k(values, self.k)
        query = np.arange(len(columns))[:, None]
        return best, np.take(self.indices, columns + query * self.indices.shape[1])

    def tighten(self) -> None:
        """Keep the k best of every query, the least of which is its new threshold."""
        self.values[:, : self.k], self.indices[:, : self.k] = values, _ = self.best()
        np.minimum(self.filled, self.k, out=self.filled)
        np.maximum(self.threshold, values.min(axis=1, keepdims=True), out=self.threshold)
