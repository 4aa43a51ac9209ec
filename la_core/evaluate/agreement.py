"""How far two labellings of the same samples agree, whatever their labels are called: all from how often they meet."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from la_core.evaluate.host import integers


def nmi(a: Any, b: Any) -> float:
    """Normalised mutual information, I(a; b) over the arithmetic mean of H(a) and H(b): in [0, 1], symmetric.

    Parameters
    ----------
    a, b
        (N,) integers, any ids, on the host. Two labellings of one cluster each agree: 1.

    Raises
    ------
    ShapeError, KindError
    """
    both = _contingency(a, b)
    n = int(both.cells.sum())
    first, second = _entropy(both.rows, n), _entropy(both.columns, n)
    if first == 0.0 and second == 0.0:
        return 1.0
    # I = H(a) + H(b) - H(a, b); rounding may leave a little outside of [0, 1].
    return min(1.0, max(0.0, 2.0 * (first + second - _entropy(both.cells, n)) / (first + second)))


def ari(a: Any, b: Any) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): 1 for the same partition, 0 expected by chance, symmetric.

    Arguments and errors as for :func:`nmi`. Where chance leaves nothing to adjust (both one cluster, or both all
    singletons), the partitions are the same: 1.
    """
    both = _contingency(a, b)
    n = int(both.cells.sum())
    together, first, second = (_pairs(x) for x in (both.cells, both.rows, both.columns))
    expected, pairs = first * second, n * (n - 1) // 2  # integers of Python: no overflow at any N
    most = (first + second) * pairs
    return 1.0 if most == 2 * expected else 2 * (together * pairs - expected) / (most - 2 * expected)


def purity(clusters: Any, classes: Any) -> float:
    """Share of samples in the commonest class of their cluster: in (0, 1]. Not symmetric; it rises with more clusters.

    Arguments and errors as for :func:`nmi`.
    """
    both = _contingency(clusters, classes)
    starts = np.flatnonzero(np.diff(both.row, prepend=-1))
    return float(np.maximum.reduceat(both.cells, starts).sum() / both.cells.sum())


CLOSE = 4
"""Integers in a range of so many times as many are counted without being sorted."""


class _Contingency(NamedTuple):
    cells: np.ndarray
    """(M,) how often each pair of labels occurs, only those that do, row by row: M <= N, however many labels."""
    row: np.ndarray
    """(M,) which row a cell is in."""
    rows: np.ndarray
    """Sums of the rows: the sizes of the clusters of the first labelling."""
    columns: np.ndarray
    """Sums of the columns."""


def _contingency(a: Any, b: Any) -> _Contingency:
    a = integers("the first labelling", a)
    b = integers("the second labelling", b, len(a), "sample of the first")
    _, row, rows = _unique(a)
    _, column, columns = _unique(b)
    pair, _, cells = _unique(row * len(columns) + column)
    return _Contingency(cells, pair // len(columns), rows, columns)


def _unique(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of integers the different ones, rising; the place of each among them; and how often they occur.

    As ``np.unique``, in a fraction of its time where they lie so close together that they need not be sorted.
    """
    least, most = int(ids.min()), int(ids.max())
    if most - least >= CLOSE * len(ids) or not np.can_cast(ids.dtype, np.int64):
        return np.unique(ids, return_inverse=True, return_counts=True)
    near = ids.astype(np.int64) - least
    counts = np.bincount(near)
    present = np.flatnonzero(counts)
    place = np.empty(len(counts), np.intp)
    place[present] = np.arange(len(present))
    return present + least, place[near], counts[present]


def _entropy(counts: np.ndarray, n: int) -> float:
    """Of a labelling with clusters of these sizes, in nats; exactly 0 for one cluster."""
    share = counts / n
    return float(-np.sum(share * np.log(share)))


def _pairs(counts: np.ndarray) -> int:
    """Pairs of samples within one cell."""
    return int(np.sum(counts * (counts - 1) // 2))
