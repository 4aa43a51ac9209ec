"""What the GPU kernels of PyTorch (Triton), JAX (Pallas) and CuPy (CUDA C) share: the switch, and how one searches.

**Not yet run on a GPU**: the kernels have been held to the reference on the CPU, by interpreters. So they are off, and
``LA_CORE_GPU_KERNELS=1`` in the environment, before la-core is imported, turns them on for float32 arrays on a GPU.

The search, in one pass over the bank. Every query has a *threshold*, the score of a certain rank in a sample of the
rows, low enough that more than k rows reach it, most likely. A kernel computes a tile of scores in registers, and
appends those that reach their threshold to the query's table, at places that an atomic counter gives out; the other
scores are never stored. Then k are selected from the table. (As in faiss, whose reservoir has a threshold too, and in
LiteTopK, arXiv 2607.11976.)

Why the answer is exact. A row that is not in the table is below the threshold; so if the counter says that at least k
rows reached it, and that all of them found room, the k best are in the table. The table's order is that of the threads
and different in every run, but the set of the k best is not, unless rows outside it equal its least score. Where one of
the three fails, by the counter or by such a tie, the query is searched again by the reference. NaN is below nothing, so
it fills the table and reaches the reference, or the selection, which name it.

Tensor cores multiply in float16 some sixteen times as fast as an H200's other cores in float32. So tiles of scores are
in float16 where few of many rows are wanted, and the table takes what may reach the threshold, by the bound of
:mod:`la_core.backends.low`. It is then scored in float32, each row by itself, and what does not reach the threshold is
struck out: the table is the same.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TypeAlias

from array_api_compat import array_namespace, device

from la_core import kernels
from la_core.backends import scan
from la_core.kernels import Array

Table: TypeAlias = tuple[Array, Array, Array]
"""Values (B, capacity), -inf where none is; rows of the bank (B, capacity); and how many reached the threshold (B,)."""

ENABLED = os.environ.get("LA_CORE_GPU_KERNELS") == "1"

LEAST, SHARE = 2**20, 8
"""Elements that a kernel does without storing, and rows of a bank per row wanted, from which on a kernel is asked."""
SCREENED = 64
"""Rows of a bank per row wanted from which on they are screened in float16. By arithmetic on the figures of an H200 it
pays from 40 on: 256 operations are saved for each row of the bank, and some 1.5 k rows are gathered again."""


def load(name: str) -> ModuleType | None:
    """The module of kernels ``la_core.backends.<name>`` if they are turned on and can be had."""
    if not ENABLED:
        return None
    try:
        return import_module(f"la_core.backends.{name}")
    except ImportError as error:
        warnings.warn(f"LA_CORE_GPU_KERNELS=1, but there is no {name}: {error}", stacklevel=2)
        return None


def large(*shape: int) -> bool:
    """Whether an array of this shape is worth a kernel that does without it."""
    return math.prod(shape) >= LEAST


def plan(n: int, k: int) -> tuple[int, int, int]:
    """Stride of the sample and rank of the threshold in it, as on a CPU, and capacity of a table.

    The capacity exceeds the expected number of rows that reach the threshold by six sigma.
    """
    rank = scan.rank(n, k)
    return scan.stride(n), rank, min(n, scan.stride(n) * math.ceil(rank + 6 * math.sqrt(rank)))


def screened(n: int, k: int) -> bool:
    """Whether a bank of n rows, of which k are wanted, is screened where there are tensor cores."""
    return n >= SCREENED * k


def rescored(values: Array, rows: Array, count: Array, threshold: Array) -> Table:
    """The table of what reaches its threshold (B,), of one of what may, with the scores in float32 of all its rows."""
    xp = array_namespace(values)
    capacity = values.shape[1]
    filled = xp.arange(capacity, dtype=count.dtype, device=device(values))[None, :] < count[:, None]
    reach = ~(values < threshold[:, None]) & filled
    number = xp.astype(xp.count_nonzero(reach, axis=1), count.dtype)
    return xp.where(reach, values, -xp.inf), rows, xp.where(count > capacity, count, number)


def guess(z: Array, bank: Array, k: int) -> Array:
    """The threshold of every query: ``(B, D), (N, D) -> (B,)``."""
    xp = array_namespace(z, bank)
    stride, rank, _ = plan(bank.shape[0], k)
    sample = z @ xp.matrix_transpose(bank[::stride, :])
    return xp.min(kernels.top_k(sample, rank)[0], axis=1)


def select(table: Table, k: int) -> tuple[Array, Array, Array]:
    """The k best of every table by rising row, ``(B, k), (B, k)``, and of which queries they are sure (B,)."""
    values, rows, count = table
    xp = array_namespace(values)
    best, columns = kernels.top_k(values, k)
    chosen = xp.take_along_axis(rows, columns, axis=1)
    reach = xp.count_nonzero(values >= xp.min(best, axis=1, keepdims=True), axis=1)
    sure = (count >= k) & (count <= values.shape[1]) & (reach == k)
    order = xp.argsort(chosen, axis=1)
    return xp.take_along_axis(best, order, axis=1), xp.take_along_axis(chosen, order, axis=1), sure


def together(n: int, k: int, budget: int) -> int:
    """How many queries may be searched for at a time: the sample and the table, with what a selection makes of them."""
    stride, _, capacity = plan(n, k)
    return max(1, budget // (16 * (n // stride) + 40 * capacity))


def search(
    z: Array,
    bank: Array,
    k: int,
    append: Callable[[Array, Array, Array, int], Table],
    plain: Callable[[Array], tuple[Array, Array]],
    budget: int,
) -> tuple[Array, Array]:
    """The k nearest rows by ``append(queries, bank, thresholds, capacity)``; by ``plain(queries)`` where not sure.

    ``(B, D), (N, D) -> scores (B, k), indices (B, k)``, for libraries whose arrays can be written.
    """
    xp = array_namespace(z, bank)
    n, found = bank.shape[0], []
    for some in kernels.blocks(z.shape[0], together(n, k, budget)):
        query = z[some, :]
        scores, indices, sure = select(append(query, bank, guess(query, bank, k), plan(n, k)[2]), k)
        indices = xp.astype(indices, xp.int64)
        if not bool(xp.all(sure)):
            scores[~sure], indices[~sure] = plain(query[~sure])
        found.append((scores, indices))
    return xp.concat([scores for scores, _ in found]), xp.concat([indices for _, indices in found])
