"""Kernels for PyTorch on a GPU, in Triton. **Not yet run on a GPU**, and off by default: see ``backends/gpu.py``.

What must not be stored is not: the (N, m) distances of ``assign``, the (B, N) scores of ``nearest`` and the (B, k, D)
rows of ``weighted_rows`` and ``scores_at`` exist a tile at a time, in registers. Products are float32 (``"ieee"``, no
TF32), but for those of a screen, which are float16 and decide nothing.

``assign`` keeps the best score of a row and its label while it goes through the centroids by rising label; a later one
must be strictly better, and within a tile the leftmost of equals is taken, so the lowest label wins.
``weighted_rows`` adds up shares of the k rows, one program each, and then the shares: no atomics, so it repeats.
"""

# mypy: disallow-untyped-decorators=False
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from la_core.backends import gpu, low
from la_core.kernels import BUDGET

TILE, WIDTH = 64, 32
"""Rows and columns of a tile of scores, and coordinates that are multiplied at a time."""
CHUNK, SHARE = 32, 512
"""Rows that a program gathers at a time, and one of ``weighted_rows`` in all."""


@triton.jit
def _add_products(
    scores: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    dim: tl.tensor,
    width: tl.constexpr,
) -> tl.tensor:
    """``scores + x[i] . y[j]``, of ``x`` (n, dim) and ``y`` (m, dim); rows beyond the last are 0."""
    for first in range(0, dim, width):
        d = first + tl.arange(0, width)
        left = x + i[:, None].to(tl.int64) * dim + d[None, :]
        right = y + j[None, :].to(tl.int64) * dim + d[:, None]
        a = tl.load(left, mask=(i < n)[:, None] & (d < dim)[None, :], other=0.0)
        b = tl.load(right, mask=(j < m)[None, :] & (d < dim)[:, None], other=0.0)
        scores = tl.dot(a, b, scores, input_precision="ieee")
    return scores


@triton.jit
def _assign(
    x: tl.tensor,
    centroids: tl.tensor,
    half: tl.tensor,
    labels: tl.tensor,
    best: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    dim: tl.tensor,
    tile: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """The greatest of ``x . c - |c|^2 / 2`` for a tile of rows, and its label."""
    i = tl.program_id(0) * tile + tl.arange(0, tile)
    peak = tl.full((tile,), float("-inf"), tl.float32)
    label = tl.zeros((tile,), tl.int32)
    for first in range(0, m, tile):
        j = first + tl.arange(0, tile)
        bias = tl.load(half + j, mask=j < m, other=float("inf"))
        scores = tl.zeros((tile, tile), tl.float32) - bias[None, :]
        scores = _add_products(scores, x, centroids, i, j, n, m, dim, width)
        top, place = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = top > peak
        peak = tl.where(better, top, peak)
        label = tl.where(better, first + place, label)
    tl.store(labels + i, label.to(tl.int64), mask=i < n)
    tl.store(best + i, peak, mask=i < n)


@triton.jit
def _places(
    passed: tl.tensor, count: tl.tensor, i: tl.tensor, n_queries: tl.tensor, capacity: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Places in the tables of queries ``i`` for what passed of a tile, which ``count`` gives out, and what they fit."""
    one = passed.to(tl.int32)
    total = tl.sum(one, axis=1)
    first = tl.atomic_add(count + i, total, mask=(i < n_queries) & (total > 0), sem="relaxed")
    place = first[:, None] + tl.cumsum(one, axis=1) - one
    return i[:, None].to(tl.int64) * capacity + place, passed & (place < capacity)


@triton.jit
def _append(
    z: tl.tensor,
    bank: tl.tensor,
    threshold: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    n_queries: tl.tensor,
    n: tl.tensor,
    dim: tl.tensor,
    capacity: tl.tensor,
    tile: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """A tile of scores; those that are not below their query's threshold go to its table, if there is room."""
    across = tl.cdiv(n_queries, tile)  # programs that share rows of the bank are neighbours
    i = tl.program_id(0) % across * tile + tl.arange(0, tile)
    j = tl.program_id(0) // across * tile + tl.arange(0, tile)
    scores = _add_products(tl.zeros((tile, tile), tl.float32), z, bank, i, j, n_queries, n, dim, width)
    least = tl.load(threshold + i, mask=i < n_queries, other=0.0)
    below = scores < least[:, None]
    passed = (below == 0) & (i < n_queries)[:, None] & (j < n)[None, :]
    into, fits = _places(passed, count, i, n_queries, capacity)
    tl.store(values + into, scores, mask=fits)
    tl.store(rows + into, tl.zeros((tile, tile), tl.int32) + j[None, :], mask=fits)


@triton.jit
def _screen(
    rough: tl.tensor,
    bank: tl.tensor,
    threshold: tl.tensor,
    slope: tl.tensor,
    constant: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    n_queries: tl.tensor,
    n: tl.tensor,
    dim: tl.tensor,
    capacity: tl.tensor,
    above: tl.tensor,
    vanishing: tl.tensor,
    largest: tl.tensor,
    tile: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """A tile of scores in float16; rows that may reach their query's threshold go to its table, if there is room."""
    across = tl.cdiv(n_queries, tile)
    i = tl.program_id(0) % across * tile + tl.arange(0, tile)
    j = tl.program_id(0) // across * tile + tl.arange(0, tile)
    scores = tl.zeros((tile, tile), tl.float32)
    squares = tl.zeros((tile,), tl.float32)
    for first in range(0, dim, width):
        d = first + tl.arange(0, width)
        left = rough + i[:, None].to(tl.int64) * dim + d[None, :]
        right = bank + j[None, :].to(tl.int64) * dim + d[:, None]
        a = tl.load(left, mask=(i < n_queries)[:, None] & (d < dim)[None, :], other=0.0)
        b = tl.load(right, mask=(j < n)[None, :] & (d < dim)[:, None], other=0.0)
        squares += tl.sum(b * b, axis=0)
        scores = tl.dot(a, b.to(tl.float16), scores)
    norm = tl.sqrt(squares) * above + vanishing
    norm = tl.where(norm < largest, norm, float("inf"))
    least = tl.load(threshold + i, mask=i < n_queries, other=0.0)
    by_norm = tl.load(slope + i, mask=i < n_queries, other=0.0)
    by_itself = tl.load(constant + i, mask=i < n_queries, other=0.0)
    below = scores < least[:, None] - (by_norm[:, None] * norm[None, :] + by_itself[:, None])
    passed = (below == 0) & (i < n_queries)[:, None] & (j < n)[None, :]
    into, fits = _places(passed, count, i, n_queries, capacity)
    tl.store(rows + into, tl.zeros((tile, tile), tl.int32) + j[None, :], mask=fits)


@triton.jit
def _scores_at(
    z: tl.tensor,
    bank: tl.tensor,
    indices: tl.tensor,
    scores: tl.tensor,
    k: tl.tensor,
    dim: tl.tensor,
    chunk: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Products of a query with a chunk of its own rows, each by itself: equal rows have equal scores."""
    query = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * chunk + tl.arange(0, chunk)
    row = tl.load(indices + query * k + j, mask=j < k, other=0).to(tl.int64)
    total = tl.zeros((chunk,), tl.float32)
    for first in range(0, dim, width):
        d = first + tl.arange(0, width)
        ours = tl.load(z + query * dim + d, mask=d < dim, other=0.0)
        theirs = tl.load(bank + row[:, None] * dim + d[None, :], mask=(j < k)[:, None] & (d < dim)[None, :], other=0.0)
        total += tl.sum(ours[None, :] * theirs, axis=1)
    tl.store(scores + query * k + j, total, mask=j < k)


@triton.jit
def _weighted_rows(
    weights: tl.tensor,
    bank: tl.tensor,
    indices: tl.tensor,
    parts: tl.tensor,
    k: tl.tensor,
    dim: tl.tensor,
    share: tl.constexpr,
    chunk: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Some coordinates of one share of one weighted sum."""
    query = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    d = tl.program_id(2) * width + tl.arange(0, width)
    total = tl.zeros((width,), tl.float32)
    for first in range(0, share, chunk):
        j = part * share + first + tl.arange(0, chunk)
        weight = tl.load(weights + query * k + j, mask=j < k, other=0.0)
        row = tl.load(indices + query * k + j, mask=j < k, other=0).to(tl.int64)
        some = tl.load(bank + row[:, None] * dim + d[None, :], mask=(j < k)[:, None] & (d < dim)[None, :], other=0.0)
        total += tl.sum(weight[:, None] * some, axis=0)
    tl.store(parts + (query * tl.num_programs(1) + part) * dim + d, total, mask=d < dim)


def assign(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`la_core.kernels.assign`: ``(N, D), (m, D) -> labels (N,), squares (N,)``."""
    x, centroids = x.contiguous(), centroids.contiguous()
    n, dim = x.shape
    half = 0.5 * torch.linalg.vecdot(centroids, centroids)
    best, labels = x.new_empty(n), torch.empty(n, dtype=torch.int64, device=x.device)
    with torch.cuda.device_of(x):
        _assign[(triton.cdiv(n, TILE),)](x, centroids, half, labels, best, n, centroids.shape[0], dim, TILE, WIDTH)
    return labels, (torch.linalg.vecdot(x, x) - 2.0 * best).clamp_(min=0.0)


def append(z: Tensor, bank: Tensor, threshold: Tensor, capacity: int) -> gpu.Table:
    """Scores that are not below the threshold (B,) of their query: values, rows (B, capacity), and their number."""
    z, bank = z.contiguous(), bank.contiguous()
    (batch, dim), n = z.shape, bank.shape[0]
    values = z.new_full((batch, capacity), -torch.inf)
    rows = torch.zeros((batch, capacity), dtype=torch.int32, device=z.device)
    count = torch.zeros(batch, dtype=torch.int32, device=z.device)
    grid = (triton.cdiv(batch, TILE) * triton.cdiv(n, TILE),)
    with torch.cuda.device_of(z):
        _append[grid](z, bank, threshold, values, rows, count, batch, n, dim, capacity, TILE, WIDTH)
    return values, rows, count


def screen(z: Tensor, bank: Tensor, threshold: Tensor, capacity: int) -> gpu.Table:
    """As :func:`append`, of what a screen in float16 lets pass, which must find room."""
    z, bank = z.contiguous(), bank.contiguous()
    (batch, dim), n = z.shape, bank.shape[0]
    rough = z.half()
    norm, error = (torch.linalg.vector_norm(x.double(), dim=1) for x in (rough, z - rough))
    slope, constant = (x.float() for x in low.margin(norm, error, dim, low.FLOAT16))
    rows = torch.zeros((batch, capacity), dtype=torch.int32, device=z.device)
    count = torch.zeros(batch, dtype=torch.int32, device=z.device)
    grid = (triton.cdiv(batch, TILE) * triton.cdiv(n, TILE),)
    more = low.ABOVE, low.vanishing_norm(dim), low.FLOAT16.largest, TILE, WIDTH
    with torch.cuda.device_of(z):
        _screen[grid](rough, bank, threshold, slope, constant, rows, count, batch, n, dim, capacity, *more)
    return gpu.rescored(scores_at(z, bank, rows), rows, count, threshold)


def nearest(
    z: Tensor,
    bank: Tensor,
    k: int,
    plain: Callable[[Tensor], tuple[Tensor, Tensor]],
    budget: int = BUDGET,
    tensor_cores: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`la_core.kernels.nearest`, which is ``plain(queries)``: ``(B, D), (N, D) -> (B, k), (B, k)``.

    ``tensor_cores``: whether there are some for float16; by default the device is asked.
    """
    if tensor_cores is None:
        tensor_cores = z.is_cuda and torch.cuda.get_device_capability(z.device) >= (7, 0)
    table = screen if tensor_cores and gpu.screened(bank.shape[0], k) else append
    return gpu.search(z, bank.contiguous(), k, table, plain, budget)


def scores_at(z: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """As :func:`la_core.kernels.scores_at`: ``(B, D), (N, D), (B, k) -> (B, k)``."""
    z, bank, indices = z.contiguous(), bank.contiguous(), indices.contiguous()
    (batch, k), dim = indices.shape, bank.shape[1]
    scores = bank.new_empty((batch, k))
    with torch.cuda.device_of(bank):
        _scores_at[(batch, triton.cdiv(k, CHUNK))](z, bank, indices, scores, k, dim, CHUNK, _width(dim))
    return scores


def weighted_rows(weights: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """As :func:`la_core.kernels.weighted_rows`: ``(B, k), (N, D), (B, k) -> (B, D)``."""
    weights, bank, indices = weights.contiguous(), bank.contiguous(), indices.contiguous()
    (batch, k), dim = weights.shape, bank.shape[1]
    width = _width(dim)
    parts = bank.new_empty((batch, triton.cdiv(k, SHARE), dim))
    with torch.cuda.device_of(bank):
        grid = (batch, parts.shape[1], triton.cdiv(dim, width))
        _weighted_rows[grid](weights, bank, indices, parts, k, dim, SHARE, CHUNK, width)
    return parts.sum(dim=1)


def _width(dim: int) -> int:
    """Coordinates of gathered rows that a program takes at a time."""
    return min(128, int(triton.next_power_of_2(dim)))
