"""A bank whose rows are dealt out: each process holds some, and no process holds them all.

To the core such a bank (:class:`Dealt`) is one like any other. The verbs in which the bank is met
(:mod:`la_core.kernels`) are answered here, by the library's own kernel on the rows that are held and one or two
collectives: every process asks for the same queries and gets the same answer, the one that the whole bank would give.

A process of several holds a :class:`Shard`. One process with several devices has a bank whose parts lie on them
(``backends/jax/devices.py``): each device then runs the same functions, on a :class:`Shard` of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from la_core import kernels
from la_core.comm import ALONE, Comm, first, joined, share
from la_core.kernels import BUDGET, Array
from la_core.spaces import array_namespace, device


class Dealt(ABC):
    """A bank whose rows are dealt out, whatever holds its parts."""

    ndim = 2
    rows: Array
    """Those that are at hand."""
    n: int
    """Rows of the whole bank."""
    comm: Comm
    """Who else has rows of which this process knows nothing."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D) of the whole bank."""
        return self.n, self.rows.shape[1]

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

    @abstractmethod
    def of(self, rows: Array) -> Dealt:
        """A bank of other rows in the same places."""

    @abstractmethod
    def ask(self, answer: Callable[..., Any], *args: Any) -> Any:
        """What every part gives for ``answer(*args)``, the same for all, with its :class:`Shard` for this bank."""

    @abstractmethod
    def put(self, indices: Array, rows: Array) -> Dealt:
        """The bank with these rows written: see :func:`la_core.kernels.put_rows`."""

    @abstractmethod
    def sums(self, function: Callable[[Array], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Sums over all rows, from what ``function`` makes of those of a part (r, D)."""

    @abstractmethod
    def assigned(self, centroids: Array) -> tuple[Array, Array]:
        """Labels and squares of the rows at hand: see :func:`la_core.kernels.assigned`."""

    @abstractmethod
    def segment_mean(self, segments: Array, n: int) -> tuple[Array, Array]:
        """Of all rows, from the segments of those at hand: see :func:`la_core.kernels.segment_mean`."""

    @abstractmethod
    def joined(self, x: Array) -> Array:
        """One entry for each row of the bank (N,), from those of the rows at hand."""

    @abstractmethod
    def whole(self, to_host: Callable[[Array], Any], budget: int) -> Any:
        """All rows on the host, in their order: on the first process only."""


class Shard(Dealt):
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

    def __init__(self, rows: Array, n: int, comm: Comm) -> None:
        self.rows, self.n, self.comm = rows, n, comm
        self.start = first(n, comm)

    def of(self, rows: Array) -> Shard:
        """A bank of other rows in the same places."""
        return Shard(rows, self.n, self.comm)

    def places(self, indices: Array) -> tuple[Array, Array]:
        """Which of the indices are held here, and where: any held row for one that is not."""
        xp, n = array_namespace(indices), self.rows.shape[0]
        local = indices - self.start
        return (local >= 0) & (local < n), xp.clip(local, min=0, max=n - 1)

    def ask(self, answer: Callable[..., Any], *args: Any) -> Any:
        """Every process asks, so this one answers."""
        return answer(*args)

    def nearest(self, z: Array, k: int, budget: int) -> tuple[Array, Array]:
        """The k nearest of the rows held, or all of them."""
        return kernels.nearest(z, self.rows, min(k, self.rows.shape[0]), budget)

    def softmax_mean(self, z: Array, temperature: float, budget: int) -> tuple[Array, Array]:
        """Over the rows held."""
        return kernels.softmax_mean(z, self.rows, temperature, budget)

    def put(self, indices: Array, rows: Array) -> Shard:
        """Each writes the rows that it holds, and ignores the others. Nothing is sent."""
        xp = array_namespace(indices)
        mine, local = self.places(indices)
        count = int(xp.sum(xp.astype(mine, xp.int32)))
        if not count:
            return self
        chosen = xp.argsort(xp.astype(~mine, xp.int8), stable=True)[:count]
        return self.of(kernels.put_rows(self.rows, xp.take(local, chosen), xp.take(rows, chosen, axis=0)))

    def sums(self, function: Callable[[Array], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Of what each process has."""
        return tuple(self.comm.all_sum(x) for x in function(self.rows))

    def assigned(self, centroids: Array) -> tuple[Array, Array]:
        """Of the rows held. Nothing is sent."""
        return kernels.assigned(self.rows, centroids)

    def segment_mean(self, segments: Array, n: int) -> tuple[Array, Array]:
        """From sums and counts of all."""
        return kernels.segment_mean(self.rows, segments, n, self.comm.all_sum)

    def joined(self, x: Array) -> Array:
        """By rank."""
        return joined(x, self.n, self.comm)

    def whole(self, to_host: Callable[[Array], Any], budget: int) -> Any:
        """Some rows of each at a time."""
        n, comm = self.n, self.comm
        c = share(n, comm)
        host = None
        for some in kernels.blocks(c, budget // (comm.size * self.shape[1] * kernels.itemsize(self.rows))):
            rows = self.rows[some.start : min(some.stop, self.rows.shape[0]), :]
            every = joined(rows, comm.size * (some.stop - some.start), comm)
            if comm.rank == 0:
                every = to_host(every)
                host = np.empty((comm.size, c, self.shape[1]), every.dtype) if host is None else host
                host[:, some, :] = every.reshape(comm.size, -1, self.shape[1])
        return None if host is None else host.reshape(-1, self.shape[1])[:n]


def held(bank: Array) -> tuple[Array, Comm]:
    """The rows of a bank that are at hand, and with whom this process holds the rest."""
    return (bank.rows, bank.comm) if isinstance(bank, Dealt) else (bank, ALONE)


def in_one_place(bank: Array) -> bool:
    """Whether the rows at hand all lie in one place, where they can be looked up one by one."""
    return isinstance(bank, Shard) or not isinstance(bank, Dealt)


def enough(n: int, comm: Comm) -> bool:
    """Whether each process has one of n rows at least."""
    return (comm.size - 1) * share(n, comm) < n


def each(function: Callable[[Array], Array], bank: Array) -> Array:
    """The bank of what a function of single rows makes of each row."""
    return bank.of(function(bank.rows)) if isinstance(bank, Dealt) else function(bank)


def sums(function: Callable[[Array], tuple[Array, ...]], bank: Array) -> tuple[Array, ...]:
    """Sums over all rows of a bank, from what ``function`` makes of some: ``(r, D) -> ...``."""
    return bank.sums(function) if isinstance(bank, Dealt) else function(bank)


def assigned(bank: Array, centroids: Array) -> tuple[Array, Array]:
    """:func:`la_core.kernels.assigned` of the rows at hand."""
    return bank.assigned(centroids) if isinstance(bank, Dealt) else kernels.assigned(bank, centroids)


def segment_mean(bank: Array, segments: Array, n: int) -> tuple[Array, Array]:
    """:func:`la_core.kernels.segment_mean` of the whole bank, from the segments of the rows at hand."""
    return bank.segment_mean(segments, n) if isinstance(bank, Dealt) else kernels.segment_mean(bank, segments, n)


def entries(x: Array, bank: Array) -> Array:
    """One entry for each row of the bank (N,), from those of the rows at hand."""
    return bank.joined(x) if isinstance(bank, Dealt) else x


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
    indices = side_by_side(local + first(n, comm), width, n, comm)
    values, columns = kernels.top_k(scores, k)
    return values, xp.take_along_axis(indices, columns, axis=1)


def largest(values: Array, k: int, n: int, comm: Comm) -> Array:
    """Places (k,) of the k largest of n values, of which this process has ``values`` (r,)."""
    found, local = kernels.top_k(values[None, :], min(k, values.shape[0]))
    return local[0, :] if comm.size == 1 else best(found, local, k, n, comm)[1][0, :]


# The verbs -----------------------------------------------------------------------------------------------------------


def _verb(kernel: kernels.Kernel[..., Any], by: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: what a :class:`Shard` answers is what any dealt out bank does, of which each part is asked."""

    def register(answer: Callable[..., Any]) -> Callable[..., Any]:
        @kernel.override("la_core")
        @wraps(answer)
        def asked(*args: Any) -> Any:
            return args[by].ask(answer, *args)

        return answer

    return register


@_verb(kernels.nearest, 1)
def nearest(z: Array, bank: Shard, k: int, budget: int = BUDGET) -> tuple[Array, Array]:
    """The k nearest of each process, and the k nearest of these."""
    return best(*bank.nearest(z, k, budget), k, bank.shape[0], bank.comm)


@_verb(kernels.softmax_mean, 1)
def softmax_mean(z: Array, bank: Shard, temperature: float, budget: int = BUDGET) -> tuple[Array, Array]:
    """The normalisers of all are added, and the means in their shares of it."""
    xp = array_namespace(z)
    lse, mean = bank.softmax_mean(z, temperature, budget)
    every = bank.comm.all_gather(lse)  # (size, B)
    peak = xp.max(every, axis=0)
    total = peak + xp.log(xp.sum(xp.exp(every - peak), axis=0))
    return total, bank.comm.all_sum(xp.exp(lse - total)[:, None] * mean)


@_verb(kernels.rows_at, 0)
def rows_at(bank: Shard, indices: Array) -> Array:
    """From who holds them."""
    xp = array_namespace(indices)
    mine, local = bank.places(indices)
    rows = kernels.rows_at(bank.rows, local)
    return bank.comm.all_sum(xp.where(mine[:, None], rows, xp.zeros_like(rows)))


@_verb(kernels.scores_at, 1)
def scores_at(z: Array, bank: Shard, indices: Array) -> Array:
    """From who holds the rows."""
    xp = array_namespace(z)
    mine, local = bank.places(indices)
    scores = kernels.scores_at(z, bank.rows, local)
    return bank.comm.all_sum(xp.where(mine, scores, xp.zeros_like(scores)))


@_verb(kernels.weighted_rows, 1)
def weighted_rows(weights: Array, bank: Shard, indices: Array) -> Array:
    """Each sums the rows that it holds."""
    xp = array_namespace(weights)
    mine, local = bank.places(indices)
    return bank.comm.all_sum(kernels.weighted_rows(xp.where(mine, weights, xp.zeros_like(weights)), bank.rows, local))


@kernels.put_rows.override("la_core")
def put_rows(x: Dealt, indices: Array, rows: Array) -> Dealt:
    """By who holds them."""
    return x.put(indices, rows)


def whole(bank: Array, to_host: Callable[[Array], Any], budget: int = BUDGET) -> Any:
    """The whole bank on the host, in the order of its rows: on the first process only, and None on the others."""
    return bank.whole(to_host, budget) if isinstance(bank, Dealt) else to_host(bank)
