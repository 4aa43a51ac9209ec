"""A bank whose rows are dealt out: each process holds some, and no process holds them all.

To the core a :class:`Shard` is a bank like any other. The verbs in which the bank is met (:mod:`la_core.kernels`) are
answered here, by the library's own kernel on the rows that are held and one or two collectives: every process asks for
the same queries and gets the same answer, the one that the whole bank would give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from la_core import kernels
from la_core.comm import ALONE, Comm, joined, part, share
from la_core.kernels import BUDGET, Array
from la_core.spaces import array_namespace, device


class Shard:
    """The rows of a bank that this process holds.

    Parameters
    ----------
    rows
        (r, D), at least one: those of ``part(n, comm)``.
    n
        Rows of the bank.
    comm
        The processes that hold it.
    """

    ndim = 2

    def __init__(self, rows: Array, n: int, comm: Comm) -> None:
        self.rows, self.comm = rows, comm
        self.shape = (n, rows.shape[1])
        self.start = part(n, comm).start

    @property
    def dtype(self) -> Any:
        """Of the rows."""
        return self.rows.dtype

    @property
    def device(self) -> Any:
        """Of the rows."""
        return device(self.rows)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return array_namespace(self.rows)

    def of(self, rows: Array) -> Shard:
        """A bank of other rows in the same places."""
        return Shard(rows, self.shape[0], self.comm)

    def places(self, indices: Array) -> tuple[Array, Array]:
        """Which of the indices are held here, and where: any held row for one that is not."""
        xp, n = array_namespace(indices), self.rows.shape[0]
        local = indices - self.start
        return (local >= 0) & (local < n), xp.clip(local, min=0, max=n - 1)


def held(bank: Array) -> tuple[Array, Comm]:
    """The rows of a bank that this process holds, and with whom it holds the rest."""
    return (bank.rows, bank.comm) if isinstance(bank, Shard) else (bank, ALONE)


def enough(n: int, comm: Comm) -> bool:
    """Whether each process has one of n rows at least."""
    return (comm.size - 1) * share(n, comm) < n


def each(function: Callable[[Array], Array], bank: Array) -> Array:
    """The bank of what a function of single rows makes of each row."""
    return bank.of(function(bank.rows)) if isinstance(bank, Shard) else function(bank)


def side_by_side(x: Array, width: int, fill: float, comm: Comm) -> Array:
    """The columns of all processes, by rank: ``(B, w) -> (B, size * width)``, filled up where w is below ``width``."""
    xp = array_namespace(x)
    if x.shape[1] < width:
        room = xp.full((x.shape[0], width - x.shape[1]), fill, dtype=x.dtype, device=device(x))
        x = xp.concat([x, room], axis=1)
    every = comm.all_gather(x)
    return xp.reshape(xp.permute_dims(every, (1, 0, 2)), (x.shape[0], -1))


def best(scores: Array, local: Array, k: int, n: int, comm: Comm) -> tuple[Array, Array]:
    """The k largest of all processes' scores: ``(B, w), (B, w) rising rows held here -> (B, k), (B, k) rows of n``.

    Indices rise, and of equal scores at the k-th place the lowest stay: the candidates of lower rows stand to the left.
    """
    xp, width = array_namespace(scores), min(k, share(n, comm))
    scores = side_by_side(scores, width, -xp.inf, comm)
    indices = side_by_side(local + part(n, comm).start, width, n, comm)
    values, columns = kernels.top_k(scores, k)
    return values, xp.take_along_axis(indices, columns, axis=1)


def largest(values: Array, k: int, n: int, comm: Comm) -> Array:
    """Places (k,) of the k largest of n values, of which this process has ``values`` (r,)."""
    found, local = kernels.top_k(values[None, :], min(k, values.shape[0]))
    return local[0, :] if comm.size == 1 else best(found, local, k, n, comm)[1][0, :]


# The verbs -----------------------------------------------------------------------------------------------------------


@kernels.nearest.override("la_core")
def nearest(z: Array, bank: Shard, k: int, budget: int = BUDGET) -> tuple[Array, Array]:
    """The k nearest of each process, and the k nearest of these."""
    found = kernels.nearest(z, bank.rows, min(k, bank.rows.shape[0]), budget)
    return best(*found, k, bank.shape[0], bank.comm)


@kernels.softmax_mean.override("la_core")
def softmax_mean(z: Array, bank: Shard, temperature: float, budget: int = BUDGET) -> tuple[Array, Array]:
    """The normalisers of all are added, and the means in their shares of it."""
    xp = array_namespace(z)
    lse, mean = kernels.softmax_mean(z, bank.rows, temperature, budget)
    every = bank.comm.all_gather(lse)  # (size, B)
    peak = xp.max(every, axis=0)
    total = peak + xp.log(xp.sum(xp.exp(every - peak), axis=0))
    return total, bank.comm.all_sum(xp.exp(lse - total)[:, None] * mean)


@kernels.rows_at.override("la_core")
def rows_at(bank: Shard, indices: Array) -> Array:
    """From who holds them."""
    xp = array_namespace(indices)
    mine, local = bank.places(indices)
    rows = kernels.rows_at(bank.rows, local)
    return bank.comm.all_sum(xp.where(mine[:, None], rows, xp.zeros_like(rows)))


@kernels.scores_at.override("la_core")
def scores_at(z: Array, bank: Shard, indices: Array) -> Array:
    """From who holds the rows."""
    xp = array_namespace(z)
    mine, local = bank.places(indices)
    scores = kernels.scores_at(z, bank.rows, local)
    return bank.comm.all_sum(xp.where(mine, scores, xp.zeros_like(scores)))


@kernels.weighted_rows.override("la_core")
def weighted_rows(weights: Array, bank: Shard, indices: Array) -> Array:
    """Each sums the rows that it holds."""
    xp = array_namespace(weights)
    mine, local = bank.places(indices)
    return bank.comm.all_sum(kernels.weighted_rows(xp.where(mine, weights, xp.zeros_like(weights)), bank.rows, local))


@kernels.put_rows.override("la_core")
def put_rows(x: Shard, indices: Array, rows: Array) -> Shard:
    """Each writes the rows that it holds, and ignores the others. Nothing is sent."""
    xp = array_namespace(indices)
    mine, local = x.places(indices)
    count = int(xp.sum(xp.astype(mine, xp.int32)))
    if not count:
        return x
    chosen = xp.argsort(xp.astype(~mine, xp.int8), stable=True)[:count]
    return x.of(kernels.put_rows(x.rows, xp.take(local, chosen), xp.take(rows, chosen, axis=0)))


def whole(bank: Array, to_host: Callable[[Array], Any], budget: int = BUDGET) -> Any:
    """The whole bank on the host, in the order of its rows: on the first process only, and None on the others."""
    if not isinstance(bank, Shard):
        return to_host(bank)
    n, comm = bank.shape[0], bank.comm
    c = share(n, comm)
    host = None
    for some in kernels.blocks(c, budget // (comm.size * bank.shape[1] * kernels.itemsize(bank.rows))):
        rows = bank.rows[some.start : min(some.stop, bank.rows.shape[0]), :]
        every = joined(rows, comm.size * (some.stop - some.start), comm)
        if comm.rank == 0:
            every = to_host(every)
            host = np.empty((comm.size, c, bank.shape[1]), every.dtype) if host is None else host
            host[:, some, :] = every.reshape(comm.size, -1, bank.shape[1])
    return None if host is None else host.reshape(-1, bank.shape[1])[:n]
