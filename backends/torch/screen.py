"""What exceeds a threshold, sought in bfloat16: half the time of a product, on a CPU that has instructions for it.

Why nothing is lost. Let z be a query, b a row, and z', b' what bfloat16 makes of them. Then

    |z . b  -  z' . b'|  <=  |z - z'| |b|  +  |z'| |b - b'|

by Cauchy and Schwarz, where |z - z'| is known and |b - b'| is at most a unit roundoff of |b|. A product of D terms
summed in float32 is off by at most 2 D roundoffs of |z'| |b'|, and rounded to bfloat16 it loses at most a unit
roundoff of itself. So the score in bfloat16 of a row that exceeds the threshold exceeds the threshold lowered by as
much. Those that do, some in a thousand, are scored again in float32 while they are in the cache, and what exceeds the
threshold itself passes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from la_core import kernels
from la_core.backends import scan
from la_core.backends.scan import Above, Pair

ROUNDOFF, ROUNDOFF32 = 2.0**-8, 2.0**-24
"""Unit roundoffs of bfloat16 and of float32."""
LEAST_NORMAL = 2.0**-126
"""Of either: what is less may be taken for 0."""
SHARE, QUERIES = 128, 32
"""How many times as many rows as are wanted, and how many queries, from which on it is faster."""
MANY = 32
"""Where more than one score in so many would be computed again, all are, in one product."""


def pays(z: Tensor, bank: Tensor, k: int) -> bool:
    """Whether the CPU multiplies in bfloat16, and a few of many rows are wanted, all in float32."""
    library = torch.backends.mkldnn
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() and library.is_available() and library.enabled
    both = z.dtype is torch.float32 and bank.dtype is torch.float32
    return bool(native) and both and z.shape[0] >= QUERIES and bank.shape[0] >= SHARE * k


def margin(z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """By how much less than in float32 a row's score may be: the first (B, 1) times the row's norm, and the second."""
    low, dim = z.bfloat16().float(), z.shape[1]
    norm, error = (torch.linalg.vector_norm(x.double(), dim=1, keepdim=True).numpy() for x in (low, z - low))
    sums = 3.0 * dim * ROUNDOFF32 * (1.0 + ROUNDOFF)  # two of the product in bfloat16, one of that in float32
    vanishing = dim * LEAST_NORMAL
    return (error + norm * ROUNDOFF + (norm + error) * sums + vanishing) * (1.0 + 2.0**-20), vanishing * (norm + 1.0)


def room(batch: int, dim: int) -> int:
    """Bytes of a screen, at most."""
    size = scan.rows_at_once(min(batch, scan.FAST))  # the most rows, for the fewest queries
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
        lowered = (threshold - (self._slope * _norm(some.numpy()) + self._constant)) * (1.0 - ROUNDOFF - 2.0**-20)
        if not (lowered.min() > 2.0**-60 and lowered.max() < 2.0**100):  # so that nothing overflows or is NaN
            return None
        low, scores = self._rows[: width * dim].view(width, dim), self._scores[: batch * width].view(batch, width)
        torch.mm(self._low, low.copy_(some).T, out=scores)
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
    return math.sqrt(squares.max()) * (1.0 + 2.0**-16) + dim * 2.0**-60  # small squares vanish
