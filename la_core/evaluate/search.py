"""The nearest rows of every query by cosine, some queries at a time, and the checks of what goes into the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from la_core import check, kernels, shards
from la_core.bank import unit
from la_core.errors import KindError, RangeError, ShapeError
from la_core.kernels import Array
from la_core.spaces import array_namespace, device


def rows(name: str, x: Array) -> None:
    """``x`` is (N, D) float32 or float64, finite."""
    xp = array_namespace(x)
    check.matrix(name, x)
    if x.dtype not in (xp.float32, xp.float64):
        raise KindError(f"{name} must be float32 or float64; got dtype {x.dtype}")
    check.finite(name, x)


def queries(x: Array, like: Array) -> None:
    """``x`` is (Q, D), as wide as the rows that are searched, finite."""
    check.matrix("queries", x, "Q")
    if x.shape[1] != like.shape[1]:
        raise ShapeError(
            f"queries must be as wide as the embeddings, (Q, {like.shape[1]}); got {tuple(x.shape)} "
            f"for embeddings {tuple(like.shape)}"
        )
    check.finite("queries", x)


def classes(name: str, x: Array, n: int, of: str) -> None:
    """``x`` is (n,) integers of at least 0."""
    xp = array_namespace(x)
    if x.shape != (n,):
        raise ShapeError(f"{name} must have shape ({n},), one class for each {of}; got {tuple(x.shape)}")
    if not xp.isdtype(x.dtype, "integral"):
        raise KindError(f"{name} must be integers; got dtype {x.dtype}")
    if int(xp.min(x)) < 0:
        raise RangeError(f"{name} must be at least 0; got {int(xp.min(x))}")


def labelled(
    what: str,
    embeddings: Array,
    labels: Array,
    asked: Array,
    own: Array | None,
    as_it_is: bool = False,
    **truth: Array,
) -> tuple[Any, Array, Array]:
    """Check both sides of a classification. Returns their namespace and both as unit rows of one dtype.

    ``truth`` is the class of each query under the name that the user knows it by. With ``as_it_is`` the embeddings are
    a bank, whose rows are of unit length, and are not copied.
    """
    extra = truth if own is None else {"own": own, **truth}
    xp = check.together(embeddings=embeddings, labels=labels, queries=asked, **extra)
    check.concrete(what, embeddings=embeddings, labels=labels, queries=asked, **extra)
    bank = unit_rows(embeddings, as_it_is)
    queries(asked, embeddings)
    classes("labels", labels, embeddings.shape[0], "embedding")
    for name, x in truth.items():
        classes(name, x, asked.shape[0], "query")
    if own is not None:
        check.indices("own", own, (asked.shape[0],), embeddings.shape[0])
    return xp, bank, unit(kernels.like(asked, bank))


@kernels.Kernel
def numbered(labels: Array) -> tuple[Array, Array]:
    """The classes that occur, rising (C,), and the place of each label among them (N,), for there may be gaps."""
    xp = array_namespace(labels)
    order = xp.argsort(labels)
    rising = xp.take(labels, order)
    place = xp.cumulative_sum(xp.astype(rising[1:] != rising[:-1], xp.int32), dtype=xp.int32, include_initial=True)
    count = xp.arange(int(place[-1]) + 1, dtype=place.dtype, device=device(labels))
    return xp.take(rising, xp.searchsorted(place, count)), xp.take(place, xp.argsort(order))


def unit_rows(embeddings: Array, as_it_is: bool) -> Array:
    """Embeddings (N, D), checked and made unit length; ``as_it_is``, those of a bank, which may be stored in half."""
    if as_it_is:
        check.bank(embeddings)
        check.finite("embeddings", embeddings)
        return embeddings
    rows("embeddings", embeddings)
    return shards.each(unit, embeddings)


def search(
    lines: Array, bank: Array, k: int, own: Array | None, per_line: int, budget: int
) -> Iterator[tuple[slice, Array, Array]]:
    """The k rows of ``bank`` (N, D) of largest dot product with each of ``lines`` (Q, D), some lines at a time.

    Yields which lines, and their scores and indices (q, k); indices rise along a row, and of equal scores at the k-th
    place the lowest indices win. Row ``own[q]`` is never found for line q. Half of ``budget`` bounds the scores, the
    other half what a line needs beside them, ``per_line`` bytes: at least 64 (k + 1) for its candidates.
    """
    xp = array_namespace(lines, bank)
    for some in kernels.blocks(lines.shape[0], budget // (2 * per_line)):
        scores, indices = kernels.nearest(lines[some, :], bank, k + (own is not None), budget // 2)
        if own is not None:  # one too many: the line itself goes or, where it is not among them, the last
            mine = indices == own[some][:, None]
            scores, indices = best(xp.where(mine, xp.full_like(scores, -xp.inf), scores), indices, k)
        yield some, scores, indices


def best(scores: Array, indices: Array, k: int) -> tuple[Array, Array]:
    """The best k of more, as a search for k finds them: (q, m), (q, m) -> (q, k), (q, k)."""
    scores, columns = kernels.top_k(scores, k)
    return scores, kernels.along(indices, columns)
