"""Exact background search on a CPU in one pass over the bank: what NumPy and PyTorch share.

The reference selects k from every block and merges. Here a query has a *threshold*, and of a block's scores only those
above it are looked at again: few in a thousand, where a selection would move every one. The threshold starts as a
guess, the score of a certain rank in a sample of the rows, low enough that more than k rows pass it, most likely. The
bank is cut into parts that have candidates of their own, so that threads can scan them at the same time.

Why the answer is exact. A row is refused for one of two reasons. By the guess: then at least k rows that scored higher
must be among the candidates at the end, or else the query is searched again by the reference. By a threshold that was
raised when the candidates of a part outgrew their room: then k earlier rows of the part score at least as much, and a
later row of equal score loses the tie. NaN is refused by no comparison, so it reaches the selection, which names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from la_core import kernels
from la_core.backends import threads
from la_core.backends.threads import Map
from la_core.errors import NotFiniteError
from la_core.kernels import BUDGET

Pair: TypeAlias = tuple[np.ndarray, np.ndarray]
Products: TypeAlias = Callable[[slice, slice, np.ndarray], object]
"""``products(queries, rows, out)`` writes the scores of some queries against some rows of the bank."""
Search: TypeAlias = Callable[[np.ndarray], Pair]
"""The reference, for some queries."""
Above: TypeAlias = Callable[[slice, np.ndarray], Pair]
"""``above(rows, threshold)``: of the scores against some rows those that exceed their query's ``threshold`` (B, 1).

Their places in the flat ``(B, rows)``, rising, and their values. What cannot be compared exceeds it.
"""
Screen: TypeAlias = Callable[[slice, Above, int], Above]
"""``screen(queries, exactly, size)``: a faster way to what is exactly above, for at most ``size`` rows at once."""

SAMPLE, STRIDES = 16_384, (16, 64)
"""Rows of the sample that the first threshold is taken from, and limits of the stride that this gives."""
LEAST, SHARE = 65_536, 16
"""Rows of a bank, and how many times as many as are wanted, from which on a scan is faster than the reference."""
LONG, DENSE = 8192, 8
"""Scores of a query, and how many times as many as are wanted, from which on those that exceed a guess are selected
from, and not all."""
QUERIES, FEW = 256, 16
"""Most queries in a pass over the bank, and fewest before parts are given up."""
SCORES, ROWS = 2**19, 1024
"""Of a block: about what is still in a core's cache when it is compared; and fewest rows."""


@dataclass(frozen=True)
class Task:
    """The ``k`` largest scores of some queries against ``n`` rows."""

    products: Products
    n_queries: int
    n: int
    k: int
    dtype: Any
    """Of the scores."""
    by_row: bool = False
    """Whether products are faster that write the scores of a row together, not those of a query."""

    def some(self, queries: slice) -> Task:
        """Those of some of the queries."""

        def products(some: slice, rows: slice, out: np.ndarray) -> object:
            return self.products(_shifted(some, queries.start), rows, out)

        return replace(self, products=products, n_queries=queries.stop - queries.start)


def pays(n: int, k: int) -> bool:
    """Whether a scan is worth it: a large bank, of which a small part is wanted."""
    return n >= LEAST and n >= SHARE * k


def rows_at_once(n_queries: int) -> int:
    """Rows of a block, at most."""
    return max(ROWS, SCORES // n_queries)


def scan(
    task: Task,
    reference: Search,
    budget: int = BUDGET,
    parts: int = 1,
    each: Map = map,
    screen: Screen | None = None,
) -> Pair:
    """Scores and rows of the best, by rising row: ``(B, k)``, ``(B, k) int64``.

    ``each`` may work on all ``parts`` at once, and a ``screen`` look for what exceeds a threshold.
    """
    together, rows, parts = _cut(task, budget, parts)
    values, indices = np.empty((task.n_queries, task.k), task.dtype), np.empty((task.n_queries, task.k), np.int64)
    for queries in kernels.blocks(task.n_queries, together):
        some = task.some(queries)

        def above(some: Task = some, queries: slice = queries) -> Above:
            exact = exactly(some, rows)
            return exact if screen is None else screen(queries, exact, rows)

        values[queries], indices[queries] = _search(some, above, rows, parts, each)
        if (few := queries.start + np.flatnonzero((values[queries] == -np.inf).any(axis=1))).size:
            values[few], indices[few] = reference(few)
    return values, indices


def _cut(task: Task, budget: int, parts: int) -> tuple[int, int, int]:
    """Queries in a pass over the bank, rows of a block, and parts, so that memory is enough.

    Where it is short there are fewer queries in a pass first, down to as many as keep a product fast; then fewer rows
    in a block, fewer parts, and in the end fewer queries still.
    """
    n, k, size = task.n, task.k, int(np.dtype(task.dtype).itemsize)

    def needed(queries: int, rows: int, parts: int) -> int:
        candidates, scores = _room(k, rows) * (size + 9), rows * (size + 1)
        passed = 8 * 8 * rows * min(n, 2 * k) // n  # places and scores of what passes, some of them in two orders
        sample_or_answer = max(-(-n // stride(n)) * size, k * (size + 8))
        return queries * (parts * (candidates + scores + passed) + sample_or_answer)

    passes = -(-task.n_queries // QUERIES)
    together = -(-task.n_queries // passes)
    while together > kernels.FAST and needed(together, rows_at_once(together), parts) > budget:
        passes += 1
        together = -(-task.n_queries // passes)
    rows = rows_at_once(together)
    while rows > ROWS and needed(together, rows, parts) > budget:
        rows //= 2
    while parts > 1 and needed(FEW, rows, parts) > budget:
        parts -= 1
    return min(together, budget // needed(1, rows, parts)), rows, parts


def exactly(task: Task, size: int) -> Above:
    """What exceeds a threshold, by products in the dtype of the answer."""
    n_queries, by_row = task.n_queries, task.by_row
    room, marks = np.empty(n_queries * size, task.dtype), np.empty(n_queries * size, bool)

    def above(rows: slice, threshold: np.ndarray) -> Pair:
        width = rows.stop - rows.start
        shape = (width, n_queries) if by_row else (n_queries, width)
        block, passed = (x[: n_queries * width].reshape(shape) for x in (room, marks))
        task.products(slice(0, n_queries), rows, block.T if by_row else block)
        _exceeds(block, threshold.T if by_row else threshold, out=passed)
        flat = np.flatnonzero(passed)
        if not by_row:
            return flat, np.take(block, flat)
        row, query = np.divmod(flat, n_queries)
        order = np.argsort(query.astype(np.uint16), kind="stable")  # of whole numbers that small, by counting them
        return np.take(query * width + row, order), np.take(block, np.take(flat, order))

    return above


def _search(task: Task, above: Callable[[], Above], size: int, parts: int, each: Map) -> Pair:
    """One pass over the bank; -inf where fewer than k candidates of a query were found."""
    n_queries, k = task.n_queries, task.k
    threshold = np.empty((n_queries, 1), task.dtype)
    values, indices = np.empty((n_queries, k), task.dtype), np.empty((n_queries, k), np.int64)

    def guess(queries: slice) -> None:
        threshold[queries, 0] = _guess(task, queries)

    def fill(rows: slice) -> Pair:
        candidates = _Candidates(threshold.copy(), k, _room(k, size))
        _fill(candidates, above(), rows, size)
        return candidates.table()

    def select(queries: slice) -> None:
        for few in _few(queries, k):
            scores, rows = (np.concatenate([x[few] for x in xs], axis=1) for xs in zip(*tables, strict=True))
            values[few], indices[few] = _best(scores, rows, k)

    shares = threads.shares(n_queries, parts)
    list(each(guess, shares))
    tables = list(each(fill, threads.shares(task.n, parts)))
    list(each(select, shares))
    return values, indices


def top_k(x: np.ndarray, k: int) -> Pair:
    """Select the k-th largest value, then keep what reaches it: faster than a selection of indices.

    Some rows at a time, which are still in the cache when what reaches it is looked for.
    """
    n = x.shape[1]
    values, columns = np.empty((len(x), k), x.dtype), np.empty((len(x), k), np.int64)
    best = _best_above_a_guess if n >= max(LONG, DENSE * k) else _reaching
    for some in kernels.blocks(len(x), 2 * kernels.CACHE // (n * x.itemsize)):
        flat = best(x[some], k)
        np.take(x[some], flat, out=values[some], mode="clip")  # "raise" would take apart first
        np.subtract(flat, n * np.arange(len(flat))[:, None], out=columns[some])
    return values, columns


def _reaching(x: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest of every row are in the flat array: (B, k)."""
    n = x.shape[1]
    best = np.partition(x, n - k, axis=1)[:, n - k :]  # the least of them first
    if np.isnan(best).any():  # it ranks highest, and reaches nothing
        raise NotFiniteError("the bank must be finite; a score against it is NaN")
    threshold = best[:, :1]
    flat = _where(np.greater_equal, x, threshold, k * len(x))
    if flat.size == k * len(x):  # in no row are there fewer
        return flat.reshape(-1, k)
    reach = x >= threshold
    surplus = np.count_nonzero(reach, axis=1) - k
    for i in np.flatnonzero(surplus):  # more equals at the k-th place than places: the last ones go
        reach[i, np.flatnonzero(x[i] == threshold[i])[-surplus[i] :]] = False
    return np.flatnonzero(reach).reshape(-1, k)


def _best_above_a_guess(x: np.ndarray, k: int) -> np.ndarray:
    """The same for long rows, in which only what exceeds a guess is selected from, as in a scan.

    All of a row is, where a guess was too high, more than k reach the k-th, or NaN is among them.
    """
    batch, n = x.shape
    flat = _where(_exceeds, x, _below(x[:, :: stride(n)], n, k)[:, None], k * batch)
    values, ends = np.take(x, flat), np.searchsorted(flat, n * np.arange(batch + 1))
    counts = np.diff(ends)
    if counts.min() >= k and not np.isnan(values).any():
        threshold = [np.partition(few, len(few) - k)[len(few) - k] for few in np.split(values, ends[1:-1])]
        kept = np.flatnonzero(values >= np.repeat(np.asarray(threshold, x.dtype), counts))
        if kept.size == k * batch:  # in no row are there fewer
            return np.take(flat, kept).reshape(batch, k)
    return _reaching(x, k)


def _where(test: Callable[..., object], x: np.ndarray, bound: np.ndarray, likely: int) -> np.ndarray:
    """Places in the flat array, of ``likely`` so many, where ``test(x, bound)``.

    Where more than a tenth is marked, NumPy writes down every place and goes on if it was. Where less is, it goes from
    mark to mark, which takes longer down to a twenty-fourth. So a tenth is, with marks that are put behind.
    """
    more = max(0, x.size // 9 + 1 - likely) if 24 * likely > x.size else 0
    marks = np.ones(x.size + more, bool)
    test(x, bound, out=marks[: x.size].reshape(x.shape))
    flat = np.flatnonzero(marks)
    return flat[: flat.size - more]


def _exceeds(x: np.ndarray, bound: np.ndarray, out: np.ndarray) -> None:
    """So does what cannot be compared, NaN."""
    np.less_equal(x, bound, out=out)
    np.logical_not(out, out=out)


def stride(n: int) -> int:
    """Of the sample: every so many rows."""
    return max(STRIDES[0], min(STRIDES[1], n // SAMPLE))


def rank(n: int, k: int) -> int:
    """Of the threshold in the sample: the expected number of the k best there, and 4.5 sigma.

    So that one query in a few hundred thousand has fewer than k candidates, and is searched again.
    """
    expected = k / stride(n)
    return min(-(-n // stride(n)), math.ceil(expected + 4.5 * math.sqrt(expected)))


def _guess(task: Task, queries: slice) -> np.ndarray:
    """From scores against a sample of the rows."""
    n = task.n
    sample = np.empty((queries.stop - queries.start, -(-n // stride(n))), task.dtype)
    task.products(queries, slice(0, n, stride(n)), sample)
    return _below(sample, n, task.k)


def _below(sample: np.ndarray, n: int, k: int) -> np.ndarray:
    """Just below the score of that rank in the sample."""
    place = sample.shape[1] - rank(n, k)
    below: np.ndarray = np.nextafter(np.partition(sample, place, axis=1)[:, place], -np.inf, dtype=sample.dtype)
    return below


def _fill(candidates: _Candidates, above: Above, span: slice, size: int) -> None:
    """One pass over a part of the bank."""
    for some in kernels.blocks(span.stop - span.start, size):
        rows = _shifted(some, span.start)
        if not candidates.add(rows, *above(rows, candidates.threshold)):
            candidates.tighten()
            candidates.add(rows, *above(rows, candidates.threshold))


class _Candidates:
    """Of every query, from a part of the bank; and the threshold that the next must exceed."""

    def __init__(self, threshold: np.ndarray, k: int, room: int) -> None:
        self.threshold, self.k, self.room = threshold, k, room
        self._scores = np.empty((len(threshold), room), threshold.dtype)
        self._rows = np.zeros((len(threshold), room), np.int64)
        self._filled = np.zeros(len(threshold), np.int64)

    def add(self, rows: slice, flat: np.ndarray, scores: np.ndarray) -> bool:
        """Add what exceeds the threshold, in the flat ``(B, rows)``, unless a query has no room for it."""
        n_queries, size = len(self.threshold), rows.stop - rows.start
        starts = size * np.arange(n_queries + 1)
        ends = np.searchsorted(flat, starts)
        counts = np.diff(ends)
        if (self._filled + counts).max() > self.room:
            return False
        # While they are in the cache: from the place among all that passed to the one behind those of the query.
        into = np.arange(len(flat)) + np.repeat(self.room * np.arange(n_queries) + self._filled - ends[:-1], counts)
        self._scores.reshape(-1)[into] = scores
        self._rows.reshape(-1)[into] = flat + np.repeat(rows.start - starts[:-1], counts)
        self._filled += counts
        return True

    def table(self, queries: slice = slice(None)) -> Pair:
        """Scores and rows of each query (B, width), by rising row; then -inf where a query has fewer than another."""
        filled = self._filled[queries]
        least, width = int(filled.min()), int(filled.max())
        scores = self._scores[queries, :width]
        scores[:, least:][np.arange(least, width) >= filled[:, None]] = -np.inf
        if np.isnan(scores).any():
            raise NotFiniteError("the bank must be finite; a score against it is NaN")
        return scores, self._rows[queries, :width]

    def tighten(self) -> None:
        """Keep the k best of every query, the least of which is its new threshold."""
        for few in _few(slice(0, len(self.threshold)), self.k):
            values, rows = _best(*self.table(few), self.k)
            np.maximum(self.threshold[few], values.min(axis=1, keepdims=True), out=self.threshold[few])
            self._scores[few, : self.k], self._rows[few, : self.k] = values, rows
            self._filled[few] = (values > -np.inf).sum(axis=1)


def _few(queries: slice, k: int) -> Iterator[slice]:
    """Some at a time, whose candidates are still in the cache when they are selected from."""
    for few in kernels.blocks(queries.stop - queries.start, kernels.CACHE // (64 * k)):
        yield _shifted(few, queries.start)


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> Pair:
    """The k best of each query, in the order they have; then -inf where there are fewer."""
    if (lacking := k - scores.shape[1]) > 0:
        scores = np.pad(scores, ((0, 0), (0, lacking)), constant_values=-np.inf)
        rows = np.pad(rows, ((0, 0), (0, lacking)))
    flat = _reaching(scores, k)
    return np.take(scores, flat), np.take(rows, flat)


def _room(k: int, rows: int) -> int:
    """For the candidates of a query: most of what passes a guess, or k and one block of which every row does."""
    return k + max(k, rows)


def _shifted(some: slice, by: int) -> slice:
    return slice(some.start + by, some.stop + by)
