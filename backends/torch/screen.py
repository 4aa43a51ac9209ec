"""What exceeds a threshold, sought in bfloat16: half the time of a product, on a CPU that is made for it.

Nothing is lost: :mod:`la_core.backends.low` says what bfloat16 may take from a score. Here the score is rounded to
bfloat16, too, and loses at most a unit roundoff of itself. What reaches the threshold lowered by both, some in a
thousand, is scored again in float32 while it is in the cache, and what exceeds the threshold itself passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from la_core import kernels
from la_core.backends import low, scan
from la_core.backends.scan import Above, Pair

LEAST, SHARE, QUERIES = 16_384, 128, 32
"""Rows of a bank, how many times as many as are wanted, and queries, from which on a scan with a screen is faster."""
MANY = 32
"""Where more than one score in so many would be computed again, all are, in one product."""


def pays(z: Tensor, bank: Tensor, k: int) -> bool:
    """Whether the CPU is faster in bfloat16, and a few of many rows are wanted, all in float32."""
    both = z.dtype is torch.float32 and bank.dtype is torch.float32
    return both and z.shape[0] >= QUERIES and bank.shape[0] >= SHARE * k and _faster()


def _faster() -> bool:
    """Told by the CPU's name and not by a clock: a resumed run must add in the same order.

    Instructions of AVX-512 for bfloat16 multiply twice as many numbers, but Intel's CPUs begin half as many of them in
    a cycle as of those for float32. There AMX is faster, which many virtual machines hide.
    """
    library = torch.backends.mkldnn
    if not (getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() and library.is_available() and library.enabled):
        return False
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "Intel" not in known.get("cpu_name", "") or bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def margin(z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """:func:`la_core.backends.low.margin` of each query."""
    rough = z.bfloat16().float()
    norm, error = (torch.linalg.vector_norm(x.double(), dim=1, keepdim=True).numpy() for x in (rough, z - rough))
    return low.margin(norm, error, z.shape[1], low.BFLOAT16)


def room(batch: int, dim: int) -> int:
    """Bytes of a screen, at most."""
    size = scan.rows_at_once(min(batch, kernels.FAST))  # the most rows, for the fewest queries
    return 2 * dim * size + 3 * max(scan.SCORES, scan.ROWS * scan.QUERIES) + kernels.CACHE


class Screen:
    """Finds what ``exactly`` does, of at most ``size`` rows of the bank at once; by it, from where this is in vain."""

    def __init__(self, z: Tensor, bank: Tensor, exactly: Above, size: int) -> None:
        self._z, self._bank, self._exactly = z.numpy(), bank, exactly
        self._low, self._slope, self._constant = z.bfloat16(), *margin(z)
        batch, dim = z.shape
        self._rows, self._scores = (torch.empty(n * size, dtype=torch.bfloat16) for n in (dim, batch))
        self._marks = np.empty(batch * size, bool)
        self._pairs = np.empty((2, max(1, kernels.CACHE // (8 * dim)), dim), np.float32)
        self._in_vain = False

    def __call__(self, rows: slice, threshold: np.ndarray) -> Pair:
        """:data:`~la_core.backends.scan.Above`."""
        some = self._bank[rows]
        flat = None if self._in_vain else self._candidates(some, threshold)
        if flat is None:
            self._in_vain = True
            return self._exactly(rows, threshold)
        query, row = np.divmod(flat, len(some))
        scores = self._scored(query, some.numpy(), row)
        passed = scores > np.take(threshold, query)
        return flat[passed], scores[passed]

    def _candidates(self, some: Tensor, threshold: np.ndarray) -> np.ndarray | None:
        """Places of all that may exceed it, rising; None where that is not sure, or they are many."""
        (width, dim), batch = some.shape, len(threshold)
        lowered = threshold - (self._slope * _norm(some.numpy()) + self._constant)
        lowered *= 1.0 - low.BFLOAT16.roundoff - 2.0**-20
        if not (lowered.min() > 2.0**-60 and lowered.max() < 2.0**100):  # so that nothing overflows or is NaN
            return None
        rough, scores = self._rows[: width * dim].view(width, dim), self._scores[: batch * width].view(batch, width)
        torch.mm(self._low, rough.copy_(some).T, out=scores)
        # Positive numbers have the order of their bits as whole numbers, of which bfloat16 has the upper half.
        least = (lowered.astype(np.float32).view(np.int32) >> 16).astype(np.int16)
        marks = self._marks[: batch * width].reshape(batch, width)
        flat = np.flatnonzero(np.greater(scores.view(torch.int16).numpy(), least, out=marks))
        return flat if len(flat) * MANY <= marks.size else None

    def _scored(self, query: np.ndarray, some: np.ndarray, row: np.ndarray) -> np.ndarray:
        """In float32; each pair by itself, so that equal rows have equal scores."""
        scores = np.empty(len(row), np.float32)
        for part in kernels.blocks(len(row), self._pairs.shape[1]):
            ours, theirs = self._pairs[:, : part.stop - part.start]
            np.take(self._z, query[part], axis=0, out=ours, mode="clip")  # "raise" would gather apart first
            np.take(some, row[part], axis=0, out=theirs, mode="clip")
            np.vecdot(ours, theirs, out=scores[part])
        return scores


def _norm(rows: np.ndarray) -> float:
    """Not less than that of any row."""
    dim: int = rows.shape[1]
    with np.errstate(over="ignore"):
        squares = np.vecdot(rows, rows)
    return math.sqrt(squares.max()) * low.ABOVE + low.vanishing_norm(dim)
