"""The kernels compiled by XLA with static sizes, and the derivatives of those that have one.

Each answers for concrete arrays (library ``"jaxlib"``) and, inside a user's ``jit`` and ``grad``, for tracers
(``"jax"``).
Products are in full precision everywhere: neighbours must not depend on TF32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from la_core import clusters, kernels
from la_core.backends import gpu
from la_core.backends.jax.scan import Pair, dot, pays, ranked, scanned
from la_core.errors import NotFiniteError
from la_core.evaluate.knn import votes
from la_core.evaluate.search import numbered
from la_core.kernels import BUDGET, CACHE, itemsize

_P = ParamSpec("_P")
_R = TypeVar("_R")

GROUP = 16
"""Most columns of a group in :func:`top_k`."""


def _override(kernel: kernels.Kernel[..., Any]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    def register(faster: Callable[_P, _R]) -> Callable[_P, _R]:
        for library in ("jax", "jaxlib"):
            kernel.override(library)(faster)
        return faster

    return register


_pallas: Any = gpu.load("jax.pallas")


def _fused(run: Callable[..., Any], x: Array, *shape: int) -> dict[str, Callable[..., Any]]:
    """A branch for CUDA, where Pallas's kernels, if they are turned on, do without an array of this shape."""
    return {"cuda": run} if _pallas and x.dtype == jnp.float32 and gpu.large(*shape) else {}


def _on(plain: Callable[..., Any], branches: dict[str, Callable[..., Any]], *args: Array) -> Any:
    """``plain``, or what a platform has of its own."""
    return lax.platform_dependent(*args, default=plain, **branches) if branches else plain(*args)


def _cache() -> int:
    """Bytes of a block that is read twice: a core's cache, or what keeps an accelerator busy."""
    return CACHE if jax.default_backend() == "cpu" else BUDGET


@_override(clusters.lloyd)
def lloyd(*args: Any) -> Any:
    """The reference, whose products decide which cluster a row is in."""
    with jax.default_matmul_precision("highest"):
        return clusters.lloyd.reference(*args)


# Selection -------------------------------------------------------------------------------------------------------


@_override(kernels.top_k)
def top_k(x: Array, k: int) -> Pair:
    """Groups of columns by their maxima first, then columns of the k best groups: no selection from all columns."""
    values, columns = _top_k_compiled(x, k)
    return _without_nan(values), columns.astype(int)


def _top_k(x: Array, k: int) -> Pair:
    """k largest of the last axis with their columns (int32), rising; of equals the lowest columns."""
    n = x.shape[-1]
    group = GROUP
    while group > 1 and n < 2 * group * max(k, 256):
        group //= 2
    key = lax.stop_gradient(ranked(x))
    if group == 1:
        columns = jnp.sort(lax.top_k(key, k)[1], axis=-1)
    else:
        # A group outside the k best has k groups with a maximum at least its own, and of equals they come first: so
        # there are k better columns than any of its own.
        pad = [(0, 0)] * (x.ndim - 1) + [(0, -n % group)]
        groups = jnp.pad(key, pad, constant_values=-jnp.inf).reshape(*x.shape[:-1], -1, group)
        best = jnp.sort(lax.top_k(jnp.max(groups, axis=-1), k)[1], axis=-1)
        candidates = jnp.take_along_axis(groups, best[..., None], axis=-2).reshape(*x.shape[:-1], k * group)
        kept = jnp.sort(lax.top_k(candidates, k)[1], axis=-1)
        columns = jnp.take_along_axis(best, kept // group, axis=-1) * group + kept % group
    return jnp.take_along_axis(x, columns, axis=-1), columns


_top_k_compiled = jax.jit(_top_k, static_argnums=1)


_holds_nan = jax.jit(lambda x: jnp.isnan(x).any())


def _without_nan(scores: Array) -> Array:
    """``scores``, refused where they can be seen to hold NaN, which ranks highest."""
    if not isinstance(scores, jax.core.Tracer) and bool(_holds_nan(scores)):
        raise NotFiniteError("the bank must be finite; a score against it is NaN")
    return scores


def _search(query: Array, bank: Array, k: int, size: int) -> Pair:
    """k nearest rows of one query (D,), block by block: what is best so far against the next block."""
    n = bank.shape[0]

    def merge(best: Pair, start: Array | int, rows: Array) -> Pair:
        scores, kept = _top_k(jnp.concatenate([best[0], dot(rows, query)]), k)
        before = best[1][jnp.minimum(kept, k - 1)]
        return scores, jnp.where(kept < k, before, start + kept - k)

    def body(best: Pair, i: Array) -> tuple[Pair, None]:
        return merge(best, i * size, lax.dynamic_slice_in_dim(bank, i * size, size)), None

    best = _top_k(dot(bank[:size], query), k)
    whole = n // size
    if whole > 1:
        best, _ = lax.scan(body, best, jnp.arange(1, whole, dtype=jnp.int32))
    return merge(best, whole * size, bank[whole * size :]) if n % size else best


def _merged(z: Array, bank: Array, k: int, budget: int) -> Pair:
    """Every block of the bank against what is best so far: for a small bank, and on accelerators for any."""
    n, dim = bank.shape
    per_score = 4 * itemsize(z)  # as they come, beside the best so far, ranked, and what a selection makes of them
    least = min(n, max(4 * k, 1024))
    queries = max(1, min(z.shape[0], budget // (per_score * least)))
    size = min(n, max(least, budget // (per_score * queries + dim * itemsize(bank))))
    found: Pair = lax.map(lambda query: _search(query, bank, k, size), z, batch_size=queries)
    return found


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _nearest(z: Array, bank: Array, k: int, budget: int) -> Pair:
    n, merged = bank.shape[0], partial(_merged, k=k, budget=budget)
    branches: dict[str, Callable[..., Any]] = {}
    if pays(z.shape[0], n, k):
        branches["cpu"] = partial(scanned, k=k, budget=budget)
    if n >= gpu.SHARE * k and bank.dtype == z.dtype:

        def fused(z: Array, bank: Array) -> Any:
            return _pallas.nearest(z, bank, k, lambda queries: merged(queries, bank), budget)

        branches |= _fused(fused, z, z.shape[0], n)
    scores, indices = _on(merged, branches, z, bank)
    return scores, indices.astype(int)


def _nearest_forward(z: Array, bank: Array, k: int, budget: int) -> tuple[Pair, Pair]:
    scores, indices = _nearest(z, bank, k, budget)
    return (scores, indices), (bank, indices)


def _nearest_back(k: int, budget: int, found: Pair, cotangents: Pair) -> tuple[Array, None]:
    return _weighted_rows(cotangents[0], *found), None


_nearest.defvjp(_nearest_forward, _nearest_back)
_nearest_compiled = jax.jit(_nearest, static_argnums=(2, 3))


@_override(kernels.nearest)
def nearest(z: Array, bank: Array, k: int, budget: int = BUDGET) -> Pair:
    """Loops over the bank for the whole batch; the derivative in ``z`` is a weighted sum of the rows found."""
    scores, indices = _nearest_compiled(z, bank, k, budget)
    return _without_nan(scores), indices


# Rows ------------------------------------------------------------------------------------------------------------


@_override(kernels.put_rows)
@partial(jax.jit, donate_argnums=0)
def put_rows(x: Array, indices: Array, rows: Array) -> Array:
    """In the memory of ``x``, which is given away."""
    return x.at[indices].set(rows)


@_override(kernels.segment_sum)
@partial(jax.jit, static_argnums=2)
def segment_sum(x: Array, segments: Array, n: int) -> Array:
    """One scatter-add."""
    return jax.ops.segment_sum(x, segments, num_segments=n)


@_override(kernels.assign)
def assign(x: Array, centroids: Array, budget: int | None = None) -> Pair:
    """A block of rows at a time, in one loop."""
    labels, squares = _assign(x, centroids, _cache() if budget is None else budget)
    return labels, squares


@partial(jax.jit, static_argnums=2)
def _assign(x: Array, centroids: Array, budget: int) -> Pair:
    fused = _fused(lambda *args: _pallas.assign(*args), x, x.shape[0], centroids.shape[0])
    found: Pair = _on(partial(_assign_plain, budget=budget), fused, x, centroids)
    return found


def _assign_plain(x: Array, centroids: Array, budget: int) -> Pair:
    half = 0.5 * jnp.sum(centroids * centroids, axis=1, keepdims=True)
    labels = jnp.arange(centroids.shape[0])[:, None]
    n = x.shape[0]
    size = min(n, max(64, budget // (centroids.shape[0] * itemsize(x))))

    def some(start: Array) -> Pair:
        rows = lax.dynamic_slice_in_dim(x, start, size)
        score = dot(centroids, rows.T) - half
        peak = jnp.max(score, axis=0)
        label = jnp.min(jnp.where(score == peak, labels, labels[-1]), axis=0)  # an argmax that vectorises
        return label, jnp.sum(rows * rows, axis=1) - 2.0 * peak

    found = lax.map(some, jnp.minimum(jnp.arange(0, n, size), n - size))  # the last rows overlap those before
    seen = -n % size
    label, square = (jnp.concatenate([part[:-1].reshape(-1), part[-1, seen:]]) for part in found)
    return label, jnp.clip(square, min=0.0)


def _some(bank: Array, indices: Array) -> int:
    """How much of the batch is gathered at a time: (b, k, D), never all of (B, k, D)."""
    return max(1, min(indices.shape[0], 4 * _cache() // (indices.shape[1] * bank.shape[1] * itemsize(bank))))


@jax.custom_vjp
def _scores_at(z: Array, bank: Array, indices: Array) -> Array:
    rows = _some(bank, indices)
    scores: Array = lax.map(lambda each: dot(bank[each[1]], each[0]), (z, indices), batch_size=rows)
    return scores


@jax.custom_vjp
def _weighted_rows(weights: Array, bank: Array, indices: Array) -> Array:
    def plain(weights: Array, bank: Array, indices: Array) -> Any:
        rows = _some(bank, indices)
        return lax.map(lambda each: dot(each[0], bank[each[1]]), (weights, indices), batch_size=rows)

    fused = _fused(lambda *args: _pallas.weighted_rows(*args), bank, *weights.shape, bank.shape[1])
    total: Array = _on(plain, fused, weights, bank, indices)
    return total


# Each is the other's adjoint.
_scores_at.defvjp(lambda *args: (_scores_at(*args), args[1:]), lambda rest, g: (_weighted_rows(g, *rest), None, None))
_weighted_rows.defvjp(
    lambda *args: (_weighted_rows(*args), args[1:]), lambda rest, g: (_scores_at(g, *rest), None, None)
)
_override(kernels.scores_at)(jax.jit(_scores_at))
_override(kernels.weighted_rows)(jax.jit(_weighted_rows))


# Softmax ---------------------------------------------------------------------------------------------------------


def _softmax_mean_plain(z: Array, bank: Array, temperature: Array, size: int) -> Pair:
    """One pass over the blocks of the bank; JAX could differentiate it, at the price of keeping every score."""

    def add(carry: tuple[Array, Array, Array], block: Array) -> tuple[Array, Array, Array]:
        peak, total, mean = carry
        score = dot(z, block.T) / temperature
        higher = jnp.maximum(peak, lax.stop_gradient(jnp.max(score, axis=1, keepdims=True)))
        weight, kept = jnp.exp(score - higher), jnp.exp(peak - higher)
        total = kept * total + jnp.sum(weight, axis=1, keepdims=True)
        return higher, total, kept * mean + dot(weight, block)

    def body(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple[Array, Array, Array], None]:
        return add(carry, lax.dynamic_slice_in_dim(bank, i * size, size)), None

    column = jnp.zeros_like(z[:, :1])
    carry = (column - jnp.inf, column, jnp.zeros_like(z))
    whole = bank.shape[0] // size
    carry, _ = lax.scan(body, carry, jnp.arange(whole, dtype=jnp.int32))
    peak, total, mean = add(carry, bank[whole * size :]) if bank.shape[0] % size else carry
    return (peak + jnp.log(total))[:, 0], mean / total


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _softmax_mean(z: Array, bank: Array, temperature: Array, size: int) -> Pair:
    return _softmax_mean_plain(z, bank, temperature, size)


def _softmax_mean_forward(z: Any, bank: Any, temperature: Any, size: int) -> tuple[Pair, tuple[Array, ...]]:
    lse, mean = _softmax_mean_plain(z.value, bank.value, temperature.value, size)
    return (lse, mean), (z.value, bank.value, temperature.value, mean)


def _softmax_mean_back(size: int, saved: tuple[Array, ...], cotangents: Any) -> tuple[Array, None, Array]:
    z, bank, temperature, mean = saved
    unused = [isinstance(g, jax.custom_derivatives.SymbolicZero) for g in cotangents]
    cotangents = [jnp.zeros(g.shape, g.dtype) if none else g for g, none in zip(cotangents, unused, strict=True)]
    if unused[1]:  # the mean row is found already
        pull = cotangents[0][:, None] * mean
        return pull / temperature, None, -jnp.sum(pull * z) / temperature**2
    _, back = jax.vjp(lambda z, t: _softmax_mean_plain(z, bank, t, size), z, temperature)
    pull, of_temperature = back(tuple(cotangents))
    return pull, None, of_temperature


_softmax_mean.defvjp(_softmax_mean_forward, _softmax_mean_back, symbolic_zeros=True)
_softmax_mean_compiled = jax.jit(_softmax_mean, static_argnums=3)


@_override(kernels.softmax_mean)
def softmax_mean(z: Array, bank: Array, temperature: float, budget: int = BUDGET) -> Pair:
    """One loop over the bank, with a derivative that needs no second one."""
    per_row = itemsize(z) * (3 * z.shape[0] + bank.shape[1])
    size = max(1, min(bank.shape[0], budget // per_row))
    lse, mean = _softmax_mean_compiled(z, bank, jnp.asarray(temperature, z.dtype), size)
    return lse, mean


# Chains of small calls -------------------------------------------------------------------------------------------

# Outside of a jit XLA compiles each call for each shape, in tens of milliseconds: here for a chain of calls at once.
for _chain in (
    kernels.along,
    kernels.falling,
    kernels.rows_at,
    kernels.entries,
    kernels.votes,
    kernels.softmax_ratio,
    kernels.inverse_norm,
    kernels.mean_of_equals,
):
    _override(_chain)(jax.jit(_chain.reference))
_override(votes)(jax.jit(votes.reference, static_argnums=3))


_all_finite = jax.jit(lambda x: jnp.isfinite(x).all())


@_override(numbered)
def _numbered(labels: Array) -> Pair:
    """By NumPy, for how many classes there are is to be seen anyhow."""
    there, place = np.unique(np.asarray(labels), return_inverse=True)
    found: Pair = jax.device_put((there, place.astype(np.int32)), labels.sharding)
    return found


@_override(kernels.finite)
def finite(x: Array) -> bool:
    """One program, and a look at its answer."""
    return bool(_all_finite(x))
