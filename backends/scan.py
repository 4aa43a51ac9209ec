"""Exact background search on a CPU in one pass over the bank: what NumPy and PyTorch share.

The reference selects k from every block and merges. Here a query has a *threshold*, and of a block's scores only those
above it are looked at again: 2 in 1 000, where a selection would move every one. The threshold starts as a guess, the
score of a certain rank in every 64th row, low enough that some 2 k rows pass it.

Why the answer is exact. A row is refused for one of two reasons. By the guess: then at least k rows that scored higher
must be among the candidates at the end, or else the query is searched again by the reference. By a threshold that was
raised when the candidates of a query outgrew their table: then k earlier rows score at least as much, and a later row
of equal score loses the tie. NaN is refused by no comparison, so it reaches the selection, which names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from la_core import kernels
from la_core.kernels import BUDGET

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
Products: TypeAlias = Callable[[slice, slice, np.ndarray], object]
"""``products(queries, rows, out)`` writes the scores of some queries against some rows of the bank."""
Search: TypeAlias = Callable[[np.ndarray], Pair]
"""The reference, for some queries."""

STRIDE = 64
"""Of the sample that the first threshold is taken from."""
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
        return width(rows) * (size + 8) + max(rows, -(-n // STRIDE)) * (size + 1) + 2 * k * (3 * size + 8)

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


def _guess(products: Products, queries: slice, n: int, k: int, dtype: Any) -> np.ndarray:
    """Just below the score of a rank in the sample that exceeds the expected number of the k best by six sigma."""
    sampled = -(-n // STRIDE)
    rank = min(sampled, int(np.ceil(k / STRIDE + 6 * np.sqrt(k / STRIDE))))
    sample = np.empty((queries.stop - queries.start, sampled), dtype)
    products(queries, slice(0, n, STRIDE), sample)
    sample.partition(sampled - rank, axis=1)
    below: np.ndarray = np.nextafter(sample[:, sampled - rank], -np.inf, dtype=dtype)
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
        self.values = np.full((n_queries, width), -np.inf, dtype)
        self.indices = np.zeros((n_queries, width), np.int64)
        self.filled = np.zeros(n_queries, np.int64)
        self.threshold = np.full((n_queries, 1), -np.inf, dtype)

    def add(self, block: np.ndarray, first: int, passed: np.ndarray) -> bool:
        """Add what exceeds the threshold, unless the table is too small for it."""
        np.less_equal(block, self.threshold, out=passed)
        np.logical_not(passed, out=passed)  # so that NaN passes
        flat = np.flatnonzero(passed)  # by query, then by row
        query, column = np.divmod(flat, block.shape[1])
        counts = np.bincount(query, minlength=len(self.filled))
        if (self.filled + counts).max() > self.values.shape[1]:
            return False
        place = np.arange(len(flat)) + np.repeat(self.filled - np.cumsum(counts) + counts, counts)
        self.values[query, place] = block.reshape(-1)[flat]
        self.indices[query, place] = column + first
        self.filled += counts
        return True

    def best(self) -> Pair:
        """The k best of every query; rubbish where there are fewer."""
        width = max(self.k, int(self.filled.max()))
        values, columns = kernels.top_k(self.values[:, :width], self.k)
        return values, np.take_along_axis(self.indices, columns, axis=1)

    def tighten(self) -> None:
        """Keep the k best of every query, the least of which is its new threshold."""
        values, indices = self.best()
        self.values[:, self.k :] = -np.inf
        self.values[:, : self.k], self.indices[:, : self.k] = values, indices
        np.minimum(self.filled, self.k, out=self.filled)
        np.maximum(self.threshold, values.min(axis=1, keepdims=True), out=self.threshold)
