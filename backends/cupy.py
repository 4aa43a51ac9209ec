"""CuPy: arrays on one NVIDIA GPU, and the kernels that suit it. Not yet run on a GPU by us.

backend = la_core.backend("cupy")                    and the encoder is an MLP differentiated by hand, or torch's:
encoder = DLPackEncoder(TorchEncoder(module, optimizer, device="cuda"), backend)      from la_core.backends.torch

What the kernels compute has been held to the reference with NumPy in CuPy's place (``tests/test_cupy.py``); how fast
they are, and that every call means the same to CuPy, has not been seen. Only integers are added by atomics, so a run
repeats to the bit. Float32 products are float32: CuPy takes TF32 only where ``CUPY_TF32=1`` is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import cupy as cp
import numpy as np

from la_core import kernels
from la_core.backends import gpu
from la_core.errors import BackendError, NotFiniteError
from la_core.kernels import BUDGET, Array


@kernels.top_k.override("cupy")
def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """Find the k-th largest value of every row by bisection, then keep what reaches it.

    A selection: ``cupy.partition`` and ``cupy.argpartition`` sort everything from the 512th place on.
    """
    n = x.shape[1]
    threshold, reached = _threshold(x, k)
    reach = x >= threshold
    rows = cp.flatnonzero(reached > k)
    if rows.shape[0]:  # more equals at the k-th place than places: the last ones go
        equal = x[rows] == threshold[rows]
        surplus = (reached[rows] - k)[:, None]
        kept = cp.count_nonzero(equal, axis=1)[:, None] - surplus
        reach[rows] &= ~equal | (cp.cumsum(equal, axis=1, dtype=cp.int32) <= kept)
    columns = cp.flatnonzero(reach).reshape(-1, k) % n
    return cp.take_along_axis(x, columns, axis=1), columns


def _threshold(x: Array, k: int) -> tuple[Array, Array]:
    """A value (B, 1) that at least k of each row reach, and how many do (B,): more than k only if it is the k-th.

    Bisection over the floating-point numbers in their order: as many passes over ``x`` as a number has bits at most,
    and no sort. One number comes to the host in each pass, to know when to stop.
    """
    low, high = _rank(cp.min(x, axis=1)), _rank(cp.max(x, axis=1))
    if bool(cp.isnan(_number(high, x.dtype)).any()):
        raise NotFiniteError("the bank must be finite; a score against it is NaN")
    reached = cp.full(x.shape[0], x.shape[1], dtype=cp.int64)
    while bool(((low < high) & (reached > k)).any()):
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up: the sum could overflow
        count = cp.count_nonzero(x >= _number(middle, x.dtype)[:, None], axis=1)
        enough = count >= k
        low = cp.where(enough, middle, low)
        high = cp.where(enough, high, middle - 1)
        reached = cp.where(enough, count, reached)
    return _number(low, x.dtype)[:, None], reached


def _rank(x: Array) -> Array:
    """Integers in the order of the floating-point numbers: the bits, those of negative numbers turned round."""
    return _turned(x.view(cp.int32 if x.dtype.itemsize == 4 else cp.int64))


def _number(rank: Array, dtype: np.dtype) -> Array:
    """The floating-point number of a rank."""
    return _turned(rank).view(dtype)


def _turned(bits: Array) -> Array:
    return cp.where(bits < 0, bits ^ cp.iinfo(bits.dtype).max, bits)


@kernels.segment_sum.override("cupy")
def segment_sum(x: Array, segments: Array, n: int) -> Array:
    """Rows sorted by segment, then added in pairs until each segment is one row.

    The order of additions is fixed, so the sum repeats to the bit, and its error grows with the logarithm of a
    segment's size. ``cupy.add.at`` adds in whatever order the threads arrive; differences of a cumulative sum cancel.
    """
    order = cp.argsort(segments, kind="stable")
    owner, rows = segments[order], x[order]
    counts = cp.bincount(segments, minlength=n)
    while int(counts.max()) > 1:
        starts = cp.cumsum(counts) - counts
        place = cp.arange(rows.shape[0]) - starts[owner]
        first = cp.flatnonzero(place % 2 == 0)
        owner = owner[first]
        paired = place[first] + 1 < counts[owner]
        second = cp.where(paired, first + 1, first)
        rows = rows[first] + cp.where(paired[:, None], rows[second], cp.zeros_like(rows[:1]))
        counts = (counts + 1) // 2
    total = cp.zeros((n, x.shape[1]), dtype=x.dtype)
    total[owner] = rows
    return total


@kernels.put_rows.override("cupy")
def put_rows(x: Array, indices: Array, rows: Array) -> Array:
    """In place."""
    x[indices] = rows
    return x


_raw: Any = gpu.load("cupy_kernels")


def _fused(x: Array, *shape: int) -> bool:
    """Whether the kernels in CUDA C, if they are turned on, do without an array of this shape."""
    return _raw is not None and x.dtype == cp.float32 and gpu.large(*shape)


@kernels.assign.override("cupy")
def assign(x: Array, centroids: Array, budget: int = BUDGET) -> tuple[Array, Array]:
    """The reference, in blocks that fill a GPU and not a core's cache."""
    if _fused(x, x.shape[0], centroids.shape[0]):
        labels, squares = _raw.assign(x, centroids)
        return labels, squares
    return kernels.assign.reference(x, centroids, budget)


if _raw is not None:

    @kernels.nearest.override("cupy")
    def nearest(z: Array, bank: Array, k: int, budget: int = BUDGET) -> tuple[Array, Array]:
        """One pass over a large bank; the reference otherwise."""

        def plain(queries: Array) -> tuple[Array, Array]:
            return kernels.nearest.reference(queries, bank, k, budget)

        fits = bank.dtype == z.dtype and _fused(z, z.shape[0], bank.shape[0]) and bank.shape[0] >= gpu.SHARE * k
        scores, indices = _raw.nearest(z, bank, k, plain, budget) if fits else plain(z)
        return scores, indices


@kernels.scores_at.override("cupy")
def scores_at(z: Array, bank: Array, indices: Array) -> Array:
    """Batched products with the gathered rows, in blocks that fill a GPU."""
    scores = cp.empty(indices.shape, dtype=z.dtype)
    for some, rows in _gathered(bank, indices):
        scores[some] = (rows @ z[some, :, None])[:, :, 0]
    return scores


@kernels.weighted_rows.override("cupy")
def weighted_rows(weights: Array, bank: Array, indices: Array) -> Array:
    """Batched products with the gathered rows, in blocks that fill a GPU."""
    if _fused(bank, *weights.shape, bank.shape[1]):
        return _raw.weighted_rows(weights, bank, indices)
    total = cp.empty((indices.shape[0], bank.shape[1]), dtype=weights.dtype)
    for some, rows in _gathered(bank, indices):
        total[some] = (weights[some, None, :] @ rows)[:, 0, :]
    return total


def _gathered(bank: Array, indices: Array) -> Iterator[tuple[slice, Array]]:
    """The rows named by ``indices`` (B, k), some of the batch at a time: (b, k, D), never all of (B, k, D)."""
    size = BUDGET // (indices.shape[1] * bank.shape[1] * bank.dtype.itemsize)
    for some in kernels.blocks(indices.shape[0], size):
        yield some, kernels.wide(bank[indices[some]])


class CuPyBackend:
    """CuPy on one GPU: ``"cuda"`` (the current one, the default), ``"cuda:1"``, or ``"1"``.

    CuPy computes on the current device of the thread, so the device is made the current one.
    """

    name = "cupy"

    def __init__(self, device: str | None = None) -> None:
        fits = re.fullmatch(r"cuda|(?:cuda:)?(\d+)", "cuda" if device is None else device)
        if fits is None:
            raise BackendError(f"CuPy cannot use device {device!r}: it takes 'cuda', 'cuda:0' or '0', and so on")
        try:
            self.device = cp.cuda.Device(int(fits[1]) if fits[1] else None)
            self.device.use()
            cp.zeros(1)
        except (RuntimeError, ImportError, OSError, MemoryError) as error:  # an import of CuPy alone needs no GPU
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(
                f"CuPy cannot use device {device or 'cuda'!r}: {reason}. It needs an NVIDIA GPU and its driver, and "
                f"the CuPy package for that driver's CUDA: pip install 'la-core[cupy]', or 'la-core[cupy12]' for "
                f"CUDA 12. Without a GPU use the backend 'numpy', 'torch' or 'jax'"
            ) from None

    def asarray(self, host: np.ndarray, *, copy: bool = True) -> Array:
        """A copy of ``host`` on the GPU."""
        return cp.array(host)

    def to_host(self, x: Array) -> np.ndarray:
        """The numbers of ``x``, waited for."""
        host: np.ndarray = cp.asnumpy(x)
        return host

    def seed(self, seed: int) -> None:
        """Nothing draws: the MLP has no dropout. A torch encoder has a generator of its own: ``torch.manual_seed``."""

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function as it is."""
        return function
