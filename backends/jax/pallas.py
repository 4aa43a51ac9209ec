"""Kernels for JAX on a GPU, in Pallas (its Triton dialect). **Not yet run on a GPU**, and off by default: see
``backends/gpu.py``.

What must not be stored is not: the (N, m) distances of ``assign``, the (B, N) scores of ``nearest`` and the (B, k, D)
rows of ``weighted_rows`` and ``scores_at`` exist a tile at a time, in registers. Products are float32 (``HIGHEST``, no
TF32), but for those of a screen, which are float16 and decide nothing.

``assign`` keeps the best score of a row and its label while it goes through the centroids by rising label; a later one
must be strictly better, and within a tile the first of equals is taken, so the lowest label wins.
``weighted_rows`` adds up shares of the k rows, one program each, and then the shares: no atomics, so it repeats.
Under ``jit`` nothing can depend on a number, so the search for a block of queries is done again if one is not sure.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as dialect

from la_core import kernels
from la_core.backends import gpu, low
from la_core.kernels import BUDGET

Pair: TypeAlias = tuple[Array, Array]
Ref: TypeAlias = Any

_shape: Any = jax.ShapeDtypeStruct  # typed as a call that is not

TILE, WIDTH = 64, 32
"""Rows and columns of a tile of scores, and coordinates that are multiplied at a time."""
CHUNK, SHARE = 32, 512
"""Rows that a program gathers at a time, and one of ``weighted_rows`` in all."""


def _range(start: Array, size: int) -> Array:
    return start + jnp.arange(size, dtype=jnp.int32)


def _rows(x: Ref, rows: Array, columns: Array) -> Array:
    """``x[rows, columns]``, (R, C); 0 beyond the last row or column."""
    i, j = jnp.broadcast_arrays(rows[:, None], columns[None, :])
    return dialect.load(x.at[i, j], mask=(i < x.shape[0]) & (j < x.shape[1]), other=0.0)


def _add_products(scores: Array, x: Ref, y: Ref, i: Array, j: Array) -> Array:
    """``scores + x[i] . y[j]``; rows beyond the last are 0."""

    def add(step: Array, scores: Array) -> Array:
        d = _range(step.astype(jnp.int32) * WIDTH, WIDTH)
        return scores + jnp.dot(_rows(x, i, d), _rows(y, j, d).T, precision=lax.Precision.HIGHEST)

    total: Array = lax.fori_loop(0, pl.cdiv(x.shape[1], WIDTH), add, scores)
    return total


def _assign(x: Ref, centroids: Ref, half: Ref, labels: Ref, best: Ref) -> None:
    """The greatest of ``x . c - |c|^2 / 2`` for a tile of rows, and its label."""
    n, m = x.shape[0], centroids.shape[0]
    i = _range(pl.program_id(0) * TILE, TILE)

    def better(step: Array, found: Pair) -> Pair:
        first = step.astype(jnp.int32) * TILE
        j = _range(first, TILE)
        bias = dialect.load(half.at[j], mask=j < m, other=jnp.inf)
        scores = _add_products(jnp.zeros((TILE, TILE), jnp.float32) - bias[None, :], x, centroids, i, j)
        top, place = jnp.max(scores, axis=1), lax.argmax(scores, 1, jnp.int32)
        label = jnp.where(top > found[0], first + place, found[1])
        return jnp.maximum(top, found[0]), label

    none = jnp.full(TILE, -jnp.inf, jnp.float32), jnp.zeros(TILE, jnp.int32)
    peak, label = lax.fori_loop(0, pl.cdiv(m, TILE), better, none)
    dialect.store(labels.at[i], label, mask=i < n)
    dialect.store(best.at[i], peak, mask=i < n)


def _append(z: Ref, bank: Ref, threshold: Ref, *tables: Ref) -> None:
    """A tile of scores; those that are not below their query's threshold go to its table, if there is room."""
    values, rows, count = tables[3:]  # the first three are the same memory
    n, capacity = bank.shape[0], values.shape[1]
    i, j = _range(pl.program_id(0) * TILE, TILE), _range(pl.program_id(1) * TILE, TILE)
    scores = _add_products(jnp.zeros((TILE, TILE), jnp.float32), z, bank, i, j)
    passed = ~(scores < dialect.load(threshold.at[i])[:, None]) & (j < n)[None, :]
    into, fits = _places(passed, count, i, capacity)
    dialect.store(values.at[into], scores, mask=fits)
    dialect.store(rows.at[into], jnp.broadcast_to(j[None, :], fits.shape), mask=fits)


def _screen(rough: Ref, bank: Ref, threshold: Ref, slope: Ref, constant: Ref, *tables: Ref) -> None:
    """A tile of scores in float16; rows that may reach their query's threshold go to its table, if there is room."""
    rows, count = tables[2:]  # the first two are the same memory
    (n, dim), capacity = bank.shape, rows.shape[1]
    i, j = _range(pl.program_id(0) * TILE, TILE), _range(pl.program_id(1) * TILE, TILE)

    def add(step: Array, found: Pair) -> Pair:
        d = _range(step.astype(jnp.int32) * WIDTH, WIDTH)
        some = _rows(bank, j, d)
        product = jnp.dot(_rows(rough, i, d), some.astype(jnp.float16).T, preferred_element_type=jnp.float32)
        return found[0] + product, found[1] + jnp.sum(some * some, axis=1)

    none = jnp.zeros((TILE, TILE), jnp.float32), jnp.zeros(TILE, jnp.float32)
    scores, squares = lax.fori_loop(0, pl.cdiv(dim, WIDTH), add, none)
    norm = jnp.sqrt(squares) * low.ABOVE + low.vanishing_norm(dim)
    norm = jnp.where(norm < low.FLOAT16.largest, norm, jnp.inf)
    least, by_norm, by_itself = (dialect.load(x.at[i])[:, None] for x in (threshold, slope, constant))
    passed = ~(scores < least - (by_norm * norm[None, :] + by_itself)) & (j < n)[None, :]
    into, fits = _places(passed, count, i, capacity)
    dialect.store(rows.at[into], jnp.broadcast_to(j[None, :], fits.shape), mask=fits)


def _places(passed: Array, count: Ref, i: Array, capacity: int) -> tuple[Pair, Array]:
    """Places in the tables of queries ``i`` for what passed of a tile, which ``count`` gives out, and what they fit."""
    one = passed.astype(jnp.int32)
    first = dialect.atomic_add(count, i, jnp.sum(one, axis=1, dtype=jnp.int32))
    place = first[:, None] + jnp.cumsum(one, axis=1, dtype=jnp.int32) - one
    fits = passed & (place < capacity)
    # The interpreter writes back what it read where the mask is false, so those places must lie outside the table.
    return (jnp.broadcast_to(i[:, None], place.shape), jnp.where(fits, place, capacity)), fits


def _scores_at(z: Ref, bank: Ref, indices: Ref, scores: Ref) -> None:
    """Products of a query with a chunk of its own rows, each by itself: equal rows have equal scores."""
    query, k, dim = pl.program_id(0), indices.shape[1], bank.shape[1]
    j = _range(pl.program_id(1) * CHUNK, CHUNK)
    each = jnp.broadcast_to(query, j.shape)
    row = dialect.load(indices.at[each, j], mask=j < k, other=0)

    def add(step: Array, total: Array) -> Array:
        d = _range(step.astype(jnp.int32) * WIDTH, WIDTH)
        ours = dialect.load(z.at[jnp.broadcast_to(query, d.shape), d], mask=d < dim, other=0.0)
        return total + jnp.sum(ours[None, :] * _rows(bank, row, d), axis=1)

    total = lax.fori_loop(0, pl.cdiv(dim, WIDTH), add, jnp.zeros(CHUNK, jnp.float32))
    dialect.store(scores.at[each, j], total, mask=j < k)


def _weighted_rows(weights: Ref, bank: Ref, indices: Ref, parts: Ref, *, width: int) -> None:
    """Some coordinates of one share of one weighted sum."""
    query, part = pl.program_id(0), pl.program_id(1)
    k, dim = weights.shape[1], bank.shape[1]
    d = _range(pl.program_id(2) * width, width)

    def add(step: Array, total: Array) -> Array:
        j = _range(part * SHARE + step.astype(jnp.int32) * CHUNK, CHUNK)
        each = jnp.broadcast_to(query, j.shape)
        weight = dialect.load(weights.at[each, j], mask=j < k, other=0.0)
        row = dialect.load(indices.at[each, j], mask=j < k, other=0)
        return total + jnp.sum(weight[:, None] * _rows(bank, row, d), axis=0)

    total = lax.fori_loop(0, SHARE // CHUNK, add, jnp.zeros(width, jnp.float32))
    into = parts.at[jnp.broadcast_to(query, d.shape), jnp.broadcast_to(part, d.shape), d]
    dialect.store(into, total, mask=d < dim)


def _call(kernel: Callable[..., None], grid: tuple[int, ...], out: Any, interpret: bool, **options: Any) -> Any:
    return pl.pallas_call(
        kernel,
        out,
        grid=grid,
        compiler_params=dialect.CompilerParams(num_warps=4),
        interpret=interpret,
        **options,
    )


@partial(jax.jit, static_argnames="interpret")
def assign(x: Array, centroids: Array, interpret: bool = False) -> Pair:
    """As :func:`la_core.kernels.assign`: ``(N, D), (m, D) -> labels (N,), squares (N,)``."""
    n = x.shape[0]
    half = 0.5 * jnp.sum(centroids * centroids, axis=1)
    out = [_shape((n,), jnp.int32), _shape((n,), jnp.float32)]
    labels, best = _call(_assign, (pl.cdiv(n, TILE),), out, interpret)(x, centroids, half)
    return labels.astype(int), jnp.clip(jnp.sum(x * x, axis=1) - 2.0 * best, min=0.0)


@partial(jax.jit, static_argnames=("capacity", "interpret"))
def append(z: Array, bank: Array, threshold: Array, capacity: int, interpret: bool = False) -> gpu.Table:
    """Scores that are not below the threshold (B,) of their query: values, rows (B, capacity), and their number."""
    batch, n = z.shape[0], bank.shape[0]
    z, threshold = _whole_tiles(z), _whole_tiles(threshold, jnp.inf)
    rows, count = _empty(z.shape[0], capacity)
    empty = jnp.full(rows.shape, -jnp.inf, jnp.float32), rows, count
    out = [_shape(x.shape, x.dtype) for x in empty]
    grid = (z.shape[0] // TILE, pl.cdiv(n, TILE))
    table = _call(_append, grid, out, interpret, input_output_aliases={3: 0, 4: 1, 5: 2})(z, bank, threshold, *empty)
    return table[0][:batch], table[1][:batch], table[2][:batch]


@partial(jax.jit, static_argnames=("capacity", "interpret"))
def screen(z: Array, bank: Array, threshold: Array, capacity: int, interpret: bool = False) -> gpu.Table:
    """As :func:`append`, of what a screen in float16 lets pass, which must find room."""
    (batch, dim), n = z.shape, bank.shape[0]
    rough = lax.reduce_precision(z, 5, 10)  # there and back by ``astype`` may be left out by the compiler
    norm, error = (_norm(x) for x in (rough, z - rough))
    queries = [_whole_tiles(x) for x in (rough.astype(jnp.float16), *low.margin(norm, error, dim, low.FLOAT16))]
    empty = _empty(queries[0].shape[0], capacity)
    out = [_shape(x.shape, x.dtype) for x in empty]
    grid = (queries[0].shape[0] // TILE, pl.cdiv(n, TILE))
    kernel = _call(_screen, grid, out, interpret, input_output_aliases={5: 0, 6: 1})
    rows, count = kernel(queries[0], bank, _whole_tiles(threshold, jnp.inf), *queries[1:], *empty)
    rows = rows[:batch]
    return gpu.rescored(scores_at(z, bank, rows, interpret), rows, count[:batch], threshold)


def _norm(rows: Array) -> Array:
    """Not less than that of each."""
    norm: Array = jnp.sqrt(jnp.sum(rows * rows, axis=1)) * low.ABOVE + low.vanishing_norm(rows.shape[1])
    return norm


def _whole_tiles(x: Array, value: float = 0.0) -> Array:
    """With queries more, of which nothing passes a threshold of infinity, up to whole tiles."""
    return jnp.pad(x, ((0, -x.shape[0] % TILE), *[(0, 0)] * (x.ndim - 1)), constant_values=value)


def _empty(batch: int, capacity: int) -> Pair:
    """Rows of a table, and how many there are."""
    return jnp.zeros((batch, capacity), jnp.int32), jnp.zeros(batch, jnp.int32)


def nearest(
    z: Array,
    bank: Array,
    k: int,
    plain: Callable[[Array], Pair],
    budget: int = BUDGET,
    interpret: bool = False,
    tensor_cores: bool = True,
) -> Pair:
    """As :func:`la_core.kernels.nearest`, which is ``plain(queries)``: ``(B, D), (N, D) -> (B, k), (B, k)`` int32.

    ``tensor_cores``: whether there are some for float16, as on every GPU that Pallas compiles for.
    """
    n, found = bank.shape[0], []
    fill = screen if tensor_cores and gpu.screened(n, k) else append

    def again(query: Array) -> Pair:
        scores, indices = plain(query)
        return scores, indices.astype(jnp.int32)

    for some in kernels.blocks(z.shape[0], gpu.together(n, k, budget)):
        query = z[some]
        filled = fill(query, bank, gpu.guess(query, bank, k), gpu.plan(n, k)[2], interpret)
        scores, indices, sure = gpu.select(filled, k)
        found.append(lax.cond(jnp.all(sure), lambda query, ours=(scores, indices): ours, again, query))
    return jnp.concatenate([scores for scores, _ in found]), jnp.concatenate([indices for _, indices in found])


@partial(jax.jit, static_argnames="interpret")
def scores_at(z: Array, bank: Array, indices: Array, interpret: bool = False) -> Array:
    """As :func:`la_core.kernels.scores_at`: ``(B, D), (N, D), (B, k) -> (B, k)``."""
    batch, k = indices.shape
    run = _call(_scores_at, (batch, pl.cdiv(k, CHUNK)), _shape((batch, k), jnp.float32), interpret)
    scores: Array = run(z, bank, indices.astype(jnp.int32))
    return scores


@partial(jax.jit, static_argnames="interpret")
def weighted_rows(weights: Array, bank: Array, indices: Array, interpret: bool = False) -> Array:
    """As :func:`la_core.kernels.weighted_rows`: ``(B, k), (N, D), (B, k) -> (B, D)``."""
    (batch, k), dim = weights.shape, bank.shape[1]
    width = min(128, pl.next_power_of_2(dim))
    out = _shape((batch, pl.cdiv(k, SHARE), dim), jnp.float32)
    grid = (*out.shape[:2], pl.cdiv(dim, width))
    kernel = partial(_weighted_rows, width=width)
    parts = _call(kernel, grid, out, interpret)(weights, bank, indices.astype(jnp.int32))
    return jnp.sum(parts, axis=1)
