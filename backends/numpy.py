"""NumPy: the kernels that NumPy does faster than the reference, and its backend. No autograd: see la_core.mlp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from la_core import kernels, objectives, tiles
from la_core.backends import host, threads
from la_core.backends.scan import Task, pays, scan, top_k
from la_core.errors import BackendError
from la_core.kernels import Array

kernels.top_k.override("numpy")(top_k)


@kernels.nearest.override("numpy")
def nearest(z: Array, bank: Array, k: int, budget: int = kernels.BUDGET) -> tuple[Array, Array]:
    """A scan with a threshold, of a large bank. OpenBLAS gives the scores of a row together in less time."""

    def reference(queries: Any, budget: int = budget) -> Any:
        return kernels.nearest.reference(z[queries], bank, k, budget)

    if not pays(bank.shape[0], k):
        return host.in_shares(threads.pool, reference, z.shape[0], bank.shape[0], k, budget)
    task = Task(
        lambda queries, rows, out: _product(z[queries], bank[rows], out),
        *(z.shape[0], bank.shape[0], k, z.dtype),
        by_row=True,
    )
    with threads.pool() as (count, each):
        return scan(task, reference, budget, count, each)


objectives.aggregate.override("numpy")(partial(host.aggregate, threads.pool))


def _product(z: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """``z @ rows.T``, some rows at a time where they must be put into memory first."""
    if not kernels.apart(rows):
        np.matmul(z, rows.T, out=out)
        return
    for some in kernels.blocks(len(rows), 4096):
        np.matmul(z, np.asarray(kernels.wide(rows[some])).T, out=out[:, some])


kernels.votes.override("numpy")(host.votes)
kernels.softmax_ratio.override("numpy")(host.softmax_ratio)
kernels.weighted_rows.override("numpy")(host.weighted_rows)
kernels.assign.override("numpy")(host.assign)
tiles.neighbours.override("numpy")(host.neighbours)


@kernels.mean_of_equals.override("numpy")
def mean_of_equals(x: Array, indices: Array) -> Array:
    """Each is the mean of itself, in most batches."""
    return x if host.distinct(indices) else kernels.mean_of_equals.reference(x, indices)


@kernels.segment_sum.override("numpy")
def segment_sum(x: Array, segments: Array, n: int) -> Array:
    """Rows sorted by segment, then summed run by run; of one column, such as counts, as they come."""
    if x.shape[1] == 1:
        return np.bincount(segments, x[:, 0], n)[:, None].astype(x.dtype)
    counts = np.bincount(segments, minlength=n)
    present = np.flatnonzero(counts)
    total = np.zeros((n, x.shape[1]), dtype=x.dtype)
    if present.size:
        # NumPy sorts whole numbers as short as that by counting them, in a fifth of the time.
        short = segments.astype(np.uint16) if n <= 2**16 else segments
        order = np.argsort(short, kind="stable")
        total[present] = np.add.reduceat(x[order], (np.cumsum(counts) - counts)[present], axis=0)
    return total


@kernels.put_rows.override("numpy")
def put_rows(x: Array, indices: Array, rows: Array) -> Array:
    """In place where the array may be written."""
    if not x.flags.writeable:
        x = x.copy()
    x[indices] = rows
    return x


@dataclass(frozen=True)
class NumPyBackend:
    """NumPy on the host."""

    device: str | None = None
    name: str = "numpy"

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu"):
            raise BackendError(f"the numpy backend runs on 'cpu' only; got device {self.device!r}")

    def asarray(self, host: np.ndarray, *, copy: bool = True) -> Array:
        """A copy of ``host``, unless it is given away: the bank is written in place, and the caller's must not be."""
        return np.array(host) if copy else host

    def to_host(self, x: Array) -> np.ndarray:
        """The array itself."""
        return np.asarray(x)

    def seed(self, seed: int) -> None:
        """NumPy encoders draw nothing while they train."""

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function as it is."""
        return function
