"""The verbs that the Array API standard lacks, and the ones that are hot.

Each is written here once in the pure standard: that version is the *reference*, the answer for a library that nobody
has tuned, and the oracle that every faster version is tested against. A backend adds its faster version with
``kernels.NAME.override("its library")`` when it is imported; nothing is looked up by import on the hot path.

Arguments are trusted here. The public functions check them at the door.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, reduce, update_wrapper
from operator import add
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

import numpy as np
from array_api_extra import one_hot

from la_core.spaces import array_namespace, device

Array: TypeAlias = Any
"""An array of any Array API library. The standard has no type for it that all four libraries satisfy."""

BUDGET = 64 * 2**20
"""Bytes of temporary memory that a blocked kernel may use, unless the caller says otherwise."""

CACHE = 2**20
"""Bytes that are sure to stay in a core's cache: blocks that are read twice are kept below it."""

FAST = 64
"""As many rows of a product as keep it fast, if the other side is read for each so many again."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def library(x: Array) -> str:
    """The name of the library that ``x`` belongs to: ``"numpy"``, ``"torch"``, ``"jaxlib"``, ..."""
    return _package(type(x).__module__)


@cache
def _package(module: str) -> str:
    return module.partition(".")[0]


class Kernel(Generic[_P, _R]):
    """A reference in the pure standard, and a table of faster versions by library.

    ``by`` is the place of the argument whose library decides: the bank, where there is one.
    """

    def __init__(self, reference: Callable[_P, _R], by: int = 0) -> None:
        self.reference, self._by = reference, by
        self.overrides: dict[str, Callable[_P, _R]] = {}
        update_wrapper(self, reference)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """The fastest version for the library of the argument that decides."""
        return self.overrides.get(library(args[self._by]), self.reference)(*args, **kwargs)

    def override(self, name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
        """Decorator: ``faster`` answers for arrays of the library ``name``."""

        def register(faster: Callable[_P, _R]) -> Callable[_P, _R]:
            self.overrides[name] = faster
            return faster

        return register


def by_bank(reference: Callable[_P, _R]) -> Kernel[_P, _R]:
    """Decorator: a kernel whose second argument is the bank."""
    return Kernel(reference, by=1)


def itemsize(x: Array) -> int:
    """Bytes of one element of a real floating array."""
    return _bytes(array_namespace(x), x.dtype)


@cache
def _bytes(xp: Any, dtype: Any) -> int:
    return int(xp.finfo(dtype).bits) // 8


def wide(x: Array) -> Array:
    """``x`` as it is computed with: half precision as float32, anything else as it is."""
    xp = array_namespace(x)
    return xp.astype(x, xp.float32) if itemsize(x) < 4 else x


def like(x: Array, stored: Array) -> Array:
    """``x`` in the dtype that what is ``stored`` is computed with."""
    xp = array_namespace(x)
    return xp.astype(x, xp.float32 if itemsize(stored) < 4 else stored.dtype, copy=False)


def apart(x: Array) -> bool:
    """Whether ``x`` is stored otherwise than it is computed with: in half precision, or in a file.

    It is read in blocks, then, each of which is put into memory as it is computed with.
    """
    return itemsize(x) < 4 or isinstance(x, np.memmap)


def read_in_blocks(x: Array, budget: int = BUDGET) -> Iterator[slice]:
    """Rows of ``x`` (N, D) that take at most ``budget`` bytes as they are computed with."""
    return blocks(x.shape[0], budget // (x.shape[1] * max(4, itemsize(x))))


def widened(x: Array) -> int:
    """Bytes that a row of ``x`` (N, D) takes beside itself when it is computed with."""
    return 4 * int(x.shape[1]) if itemsize(x) < 4 else 0


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``range(n)``."""
    size = max(1, min(size, n))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def evenly(n: int, size: int) -> Iterator[slice]:
    """The same, as few as can be and about equal."""
    return blocks(n, -(-n // max(1, -(-n // max(1, size)))))


@Kernel
def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of every row: ``(B, n) -> values (B, k), columns (B, k)``.

    Columns rise along a row. Of equal values at the k-th place the lowest columns win.
    """
    xp = array_namespace(x)
    best = xp.argsort(x, axis=-1, descending=True, stable=True)[:, :k]
    columns = xp.sort(best, axis=-1)
    return xp.take_along_axis(x, columns, axis=-1), columns


@Kernel
def along(x: Array, columns: Array) -> Array:
    """Of every row the entries at its own columns: ``(B, n), (B, k) -> (B, k)``."""
    chosen: Array = array_namespace(x, columns).take_along_axis(x, columns, axis=1)
    return chosen


@Kernel
def falling(x: Array) -> Array:
    """Every row sorted, the largest first: ``(B, n) -> (B, n)``."""
    ordered: Array = array_namespace(x).sort(x, axis=1, descending=True)
    return ordered


@Kernel
def segment_sum(x: Array, segments: Array, n: int) -> Array:
    """Sum of the rows of each segment: ``(R, D), (R,) in [0, n) -> (n, D)``; a segment without rows is 0."""
    xp = array_namespace(x, segments)
    total = xp.zeros((n, x.shape[1]), dtype=x.dtype, device=device(x))
    for rows in blocks(x.shape[0], CACHE // (n * itemsize(x))):
        member = one_hot(segments[rows], n, dtype=x.dtype)  # (rows, n)
        total = total + xp.matrix_transpose(member) @ x[rows, :]
    return total


def segment_mean(
    x: Array, segments: Array, n: int, all_sum: Callable[[Array], Array] = lambda x: x
) -> tuple[Array, Array]:
    """Mean of the rows of each segment (n, D), 0 of one without rows, and how many rows it has (n, 1).

    Where other processes have more rows of a segment, ``all_sum`` adds what they have.
    """
    xp = array_namespace(x, segments)
    if apart(x):
        total = xp.zeros((n, x.shape[1]), dtype=wide(x[:1, :]).dtype, device=device(x))
        for rows in read_in_blocks(x):
            total = total + segment_sum(wide(x[rows, :]), segments[rows], n)
    else:
        total = segment_sum(x, segments, n)
    counts = all_sum(segment_sum(xp.ones((x.shape[0], 1), dtype=total.dtype, device=device(x)), segments, n))
    return all_sum(total) / xp.clip(counts, min=1.0), counts


def assigned(x: Array, centroids: Array) -> tuple[Array, Array]:
    """:func:`assign`, also of what is stored :func:`apart`."""
    if not apart(x):
        return assign(x, centroids)
    xp = array_namespace(x, centroids)
    found = [assign(wide(x[rows, :]), centroids) for rows in read_in_blocks(x)]
    return xp.concat([labels for labels, _ in found]), xp.concat([squares for _, squares in found])


@Kernel
def put_rows(x: Array, indices: Array, rows: Array) -> Array:
    """``x`` with ``rows`` (B, D) written at ``indices`` (B,). Rows that share an index must be equal.

    **May consume** ``x``: write ``x = put_rows(x, ...)`` and never look back. A read-only ``x`` is copied instead.
    """
    xp = array_namespace(x, indices, rows)
    order = xp.argsort(indices, stable=True)
    ranked = xp.take(indices, order)
    place = xp.arange(x.shape[0], dtype=indices.dtype, device=device(x))
    last = xp.clip(xp.searchsorted(ranked, place, side="right") - 1, min=0)
    hit = xp.take(ranked, last) == place
    return xp.where(hit[:, None], xp.take(rows, xp.take(order, last), axis=0), x)


@Kernel
def rows_at(bank: Array, indices: Array) -> Array:
    """``bank[indices]``: ``(N, D), (B,) -> (B, D)``."""
    rows: Array = array_namespace(bank, indices).take(bank, indices, axis=0)
    return rows


@by_bank
def nearest(z: Array, bank: Array, k: int, budget: int = BUDGET) -> tuple[Array, Array]:
    """The k bank rows of largest dot product: ``(B, D), (N, D) -> scores (B, k), indices (B, k)``.

    The set is exact, indices rise along a row, and of equal scores at the k-th place the lowest indices win, so the
    answer depends on the blocks no more than the scores do. The bank may be stored :func:`apart`. The (B, N) matrix is
    never stored whole: ``budget`` bounds the scores, the copy that a selection makes of them, and the candidates.
    Differentiable in ``z`` where the library differentiates.
    """
    xp = array_namespace(z, bank)
    per_score = 2 * itemsize(z) + 2
    # As many queries as there is room for against the whole bank; at least a few, against a part of it at a time.
    whole = (budget // bank.shape[0] - widened(bank)) // per_score
    few = min(FAST, budget // (per_score * max(4 * k, 1024)))
    answers = []
    for some in evenly(z.shape[0], max(whole, few)):
        query = z[some, :]
        scores, indices = None, None
        for rows in blocks(bank.shape[0], budget // (per_score * query.shape[0] + widened(bank))):
            block = query @ xp.matrix_transpose(wide(bank[rows, :]))
            values, columns = top_k(block, min(k, block.shape[1]))
            columns = columns + rows.start
            if scores is not None:
                values = xp.concat([scores, values], axis=1)
                columns = xp.concat([indices, columns], axis=1)
                values, kept = top_k(values, min(k, values.shape[1]))
                columns = along(columns, kept)
            scores, indices = values, columns
        answers.append((scores, indices))
    if len(answers) == 1:
        return answers[0]
    return xp.concat([a[0] for a in answers], axis=0), xp.concat([a[1] for a in answers], axis=0)


@Kernel
def assign(x: Array, centroids: Array, budget: int = CACHE) -> tuple[Array, Array]:
    """The nearest centroid of every row, by Euclidean distance, and the square of that distance.

    ``(N, D), (m, D) -> labels (N,), squares (N,)``. Of equal distances the lowest label wins. The (N, m) distances
    are never stored whole.
    """
    xp = array_namespace(x, centroids)
    columns = xp.matrix_transpose(centroids)
    half = 0.5 * xp.vecdot(centroids, centroids)
    labels, squares = [], []
    for rows in blocks(x.shape[0], max(64, budget // (centroids.shape[0] * itemsize(x)))):
        block = x[rows, :]
        score = block @ columns - half
        labels.append(xp.argmax(score, axis=1))
        squares.append(xp.vecdot(block, block) - 2.0 * xp.max(score, axis=1))
    return xp.concat(labels), xp.clip(xp.concat(squares), min=0.0)


@Kernel
def entries(x: Array, indices: Array) -> Array:
    """``x[indices]``: ``(N,), (B, k) -> (B, k)``."""
    xp = array_namespace(x, indices)
    return xp.reshape(xp.take(x, xp.reshape(indices, (-1,))), indices.shape)


@Kernel
def votes(labels: Array, indices: Array, neighbours: Array) -> Array:
    """In how many clusterings a neighbour shares the cluster of the sample: ``(H, N), (B,), (B, k) -> (B, k)``.

    Labels compare within one clustering only, and a negative one is no cluster. uint8, or int32 where H is above 255.
    """
    xp = array_namespace(labels, indices, neighbours)
    kind = xp.uint8 if labels.shape[0] < 256 else xp.int32

    def agreement(h: int) -> Array:
        mine = xp.take(labels[h, :], indices)[:, None]
        return xp.astype((entries(labels[h, :], neighbours) == mine) & (mine >= 0), kind)

    return reduce(add, map(agreement, range(labels.shape[0])))  # one at a time


@by_bank
def scores_at(z: Array, bank: Array, indices: Array) -> Array:
    """Dot products with chosen rows: ``(B, D), (N, D), (B, k) -> (B, k)``. Differentiable in ``z``."""
    xp = array_namespace(z, bank, indices)
    parts = []
    for some, rows in _gathered(bank, indices):
        parts.append(xp.squeeze(rows @ z[some, :][:, :, None], axis=2))
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


@by_bank
def weighted_rows(weights: Array, bank: Array, indices: Array) -> Array:
    """Weighted sum of chosen rows: ``(B, k), (N, D), (B, k) -> (B, D)``: the adjoint of :func:`scores_at`."""
    xp = array_namespace(weights, bank, indices)
    parts = []
    for some, rows in _gathered(bank, indices):
        parts.append(xp.squeeze(weights[some, :][:, None, :] @ rows, axis=1))
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


def _gathered(bank: Array, indices: Array) -> Iterator[tuple[slice, Array]]:
    """The rows named by ``indices`` (B, k), some of the batch at a time: (b, k, D), never all of (B, k, D)."""
    xp = array_namespace(bank, indices)
    k, dim = indices.shape[1], bank.shape[1]
    for some in blocks(indices.shape[0], 4 * CACHE // (k * dim * itemsize(bank))):
        flat = xp.reshape(indices[some, :], (-1,))
        yield some, xp.reshape(wide(xp.take(bank, flat, axis=0)), (-1, k, dim))


@by_bank
def softmax_mean(z: Array, bank: Array, temperature: float, budget: int = BUDGET) -> tuple[Array, Array]:
    """The softmax over all of the bank: log of its normaliser and mean row, in one pass.

    ``(B, D), (N, D) -> lse (B,), mean (B, D)`` with ``s = z . bank / temperature``, ``lse = log sum exp s`` and
    ``mean = sum_j exp(s_j - lse) bank_j``. ``lse`` is differentiable in ``z``; the derivative is
    ``mean / temperature``.
    """
    xp = array_namespace(z, bank)
    peak: Array = None
    total: Array = None
    mean: Array = None
    for rows in blocks(bank.shape[0], budget // (3 * itemsize(z) * z.shape[0] + widened(bank))):
        block = wide(bank[rows, :])
        score = z @ xp.matrix_transpose(block) / temperature
        higher = xp.max(score, axis=1, keepdims=True)
        if peak is not None:
            higher = xp.maximum(peak, higher)
        weight = xp.exp(score - higher)
        mass, pull = xp.sum(weight, axis=1, keepdims=True), weight @ block
        if peak is not None:  # what was added up before counts as of the new peak
            kept = xp.exp(peak - higher)
            mass, pull = kept * total + mass, kept * mean + pull
        peak, total, mean = higher, mass, pull
    return xp.squeeze(peak + xp.log(total), axis=1), mean / total


@Kernel
def softmax_ratio(s: Array, mask: Array) -> tuple[Array, Array]:
    """``lse(s) - lse(s[mask])`` for each row (B,), and its derivative with respect to ``s`` (B, k)."""
    xp = array_namespace(s)
    some = xp.any(mask, axis=1, keepdims=True)
    peak = xp.max(s, axis=1, keepdims=True)
    mass = xp.exp(s - peak)
    total = xp.sum(mass, axis=1, keepdims=True)

    # C has a peak of its own: far below B's, its mass would underflow to log(0). A row without C gets harmless
    # numbers first and its stated value after, so that no branch of a derivative is NaN.
    lowest = xp.min(s, axis=1, keepdims=True)
    close_peak = xp.max(xp.where(mask, s, lowest), axis=1, keepdims=True)
    close_mass = xp.where(mask, xp.exp(xp.where(mask, s, close_peak) - close_peak), xp.zeros_like(s))
    close_total = xp.where(some, xp.sum(close_mass, axis=1, keepdims=True), xp.ones_like(total))

    loss = (peak - close_peak) + xp.log(total / close_total)  # both peaks are large where it is cold
    loss = xp.where(some, loss, xp.full_like(loss, math.log(s.shape[1])))
    weights = xp.where(some, mass / total - close_mass / close_total, xp.zeros_like(s))
    return xp.squeeze(loss, axis=1), weights


@Kernel
def inverse_norm(x: Array) -> Array:
    """1 / ||row||, shape (..., 1); 0 for a row of zeros, which has no direction."""
    xp = array_namespace(x)
    square = xp.sum(x * x, axis=-1, keepdims=True)
    some = square > xp.finfo(x.dtype).smallest_normal
    # Both branches of the outer `where` are finite, so that neither value nor derivative is NaN at zero.
    return xp.where(some, 1.0 / xp.sqrt(xp.where(some, square, xp.ones_like(square))), xp.zeros_like(square))


@Kernel
def mean_of_equals(x: Array, indices: Array) -> Array:
    """Rows that share an index, replaced by their mean, all by the same bits: ``(B, D), (B,) -> (B, D)``."""
    xp = array_namespace(x, indices)
    same = indices[:, None] == indices[None, :]  # (B, B)
    first = xp.argmax(xp.astype(same, xp.int32), axis=1)
    count = xp.sum(xp.astype(same, x.dtype), axis=1, keepdims=True)
    return xp.take(segment_sum(x, first, x.shape[0]), first, axis=0) / count


@Kernel
def finite(x: Array) -> bool:
    """Whether there is no NaN and no infinity anywhere in ``x``."""
    xp = array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))
