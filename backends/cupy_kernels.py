"""Three kernels for CuPy on a GPU, in CUDA C. **Not yet run on a GPU**, and off by default: see ``backends/gpu.py``.

What must not be stored is not: the (N, m) distances of ``assign``, the (B, N) scores of ``nearest`` and the (B, k, D)
rows of ``weighted_rows`` exist a tile at a time, in registers. Products are float32 on the CUDA cores.

A block of 16 x 16 threads computes a tile of 64 x 64 scores, 4 x 4 to a thread, from 16 coordinates at a time in shared
memory. ``assign``: a thread meets its labels in rising order and takes a later one only if it is strictly better, and
of threads that share a row the better one wins, or else the lower label: so the lowest label wins.
``weighted_rows`` adds up shares of the k rows, one block each, and then the shares: no atomics, so it repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy as cp
import numpy as np

from la_core.backends import gpu
from la_core.kernels import BUDGET, Array

TILE, SHARE, WIDTH = 64, 512, 128
"""Rows and columns of a tile; of a block of ``weighted_rows``, rows that it gathers, and coordinates."""

SOURCE = """
#define DEPTH 16

// scores[a][b] += x[i + ty + 16 a] . y[j + tx + 16 b], of x (n, dim) and y (m, dim); rows beyond the last are 0.
__device__ void add_products(float scores[4][4], const float* x, const float* y, int i, int j, int n, int m, int dim)
{
    __shared__ float xs[DEPTH][TILE + 1], ys[DEPTH][TILE + 1];
    int tx = threadIdx.x, ty = threadIdx.y;
    for (int first = 0; first < dim; first += DEPTH) {
        for (int e = ty * 16 + tx; e < DEPTH * TILE; e += 256) {
            int r = e / DEPTH, c = e % DEPTH, d = first + c;
            xs[c][r] = i + r < n && d < dim ? x[(long long)(i + r) * dim + d] : 0.0f;
            ys[c][r] = j + r < m && d < dim ? y[(long long)(j + r) * dim + d] : 0.0f;
        }
        __syncthreads();
        for (int c = 0; c < DEPTH; c++)
            for (int a = 0; a < 4; a++)
                for (int b = 0; b < 4; b++)
                    scores[a][b] += xs[c][ty + 16 * a] * ys[c][tx + 16 * b];
        __syncthreads();
    }
}

// The greatest of x . c - |c|^2 / 2 for a tile of rows, and its label.
extern "C" __global__ void assign(const float* x, const float* centroids, const float* half, long long* labels,
                                  float* best, int n, int m, int dim)
{
    __shared__ float tops[TILE][16];
    __shared__ int places[TILE][16];
    int tx = threadIdx.x, ty = threadIdx.y, i = blockIdx.x * TILE;
    float top[4];
    int place[4];
    for (int a = 0; a < 4; a++) {
        top[a] = __int_as_float(0xff800000);  // minus infinity
        place[a] = 0;
    }
    for (int j = 0; j < m; j += TILE) {
        float scores[4][4] = {};
        for (int b = 0; b < 4; b++)
            for (int a = 0; a < 4; a++)
                scores[a][b] = j + tx + 16 * b < m ? -half[j + tx + 16 * b] : 0.0f;
        add_products(scores, x, centroids, i, j, n, m, dim);
        for (int b = 0; b < 4; b++)
            for (int a = 0; a < 4; a++)
                if (j + tx + 16 * b < m && scores[a][b] > top[a]) {
                    top[a] = scores[a][b];
                    place[a] = j + tx + 16 * b;
                }
    }
    for (int a = 0; a < 4; a++) {
        tops[ty + 16 * a][tx] = top[a];
        places[ty + 16 * a][tx] = place[a];
    }
    __syncthreads();
    int r = ty * 16 + tx;
    if (r < TILE && i + r < n) {
        int t = 0;
        for (int s = 1; s < 16; s++)
            if (tops[r][s] > tops[r][t] || (tops[r][s] == tops[r][t] && places[r][s] < places[r][t]))
                t = s;
        labels[i + r] = places[r][t];
        best[i + r] = tops[r][t];
    }
}

// A tile of scores; those that are not below their query's threshold go to its table, if there is room.
extern "C" __global__ void append(const float* z, const float* bank, const float* threshold, float* values, int* rows,
                                  int* count, int n_queries, int n, int dim, int capacity)
{
    int across = (n_queries + TILE - 1) / TILE;  // blocks that share rows of the bank are neighbours
    int i = blockIdx.x % across * TILE, j = blockIdx.x / across * TILE;
    float scores[4][4] = {};
    add_products(scores, z, bank, i, j, n_queries, n, dim);
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++) {
            int query = i + threadIdx.y + 16 * a, row = j + threadIdx.x + 16 * b;
            if (query < n_queries && row < n && !(scores[a][b] < threshold[query])) {
                int place = atomicAdd(count + query, 1);
                if (place < capacity) {
                    values[(long long)query * capacity + place] = scores[a][b];
                    rows[(long long)query * capacity + place] = row;
                }
            }
        }
}

// One coordinate of one share of one weighted sum.
extern "C" __global__ void weighted_rows(const float* weights, const float* bank, const long long* indices,
                                         float* parts, int k, int dim)
{
    int d = blockIdx.z * blockDim.x + threadIdx.x;
    long long query = blockIdx.x, part = blockIdx.y;
    if (d < dim) {
        float total = 0.0f;
        for (long long j = part * SHARE; j < k && j < (part + 1) * SHARE; j++)
            total += weights[query * k + j] * bank[indices[query * k + j] * dim + d];
        parts[(query * gridDim.y + part) * dim + d] = total;
    }
}
"""


@cache
def _module() -> Any:
    return cp.RawModule(code=SOURCE, options=(f"-DTILE={TILE}", f"-DSHARE={SHARE}"))


def _launch(name: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Array | int) -> None:
    _module().get_function(name)(grid, block, tuple(np.int32(a) if isinstance(a, int) else a for a in args))


def assign(x: Array, centroids: Array) -> tuple[Array, Array]:
    """As :func:`la_core.kernels.assign`: ``(N, D), (m, D) -> labels (N,), squares (N,)``."""
    x, centroids = cp.ascontiguousarray(x), cp.ascontiguousarray(centroids)
    (n, dim), m = x.shape, centroids.shape[0]
    half = 0.5 * cp.sum(centroids * centroids, axis=1)
    labels, best = cp.empty(n, dtype=cp.int64), cp.empty(n, dtype=cp.float32)
    _launch("assign", (-(-n // TILE),), (16, 16), x, centroids, half, labels, best, n, m, dim)
    return labels, cp.maximum(cp.sum(x * x, axis=1) - 2.0 * best, 0.0)


def append(z: Array, bank: Array, threshold: Array, capacity: int) -> gpu.Table:
    """Scores that are not below the threshold (B,) of their query: values, rows (B, capacity), and their number."""
    z, bank = cp.ascontiguousarray(z), cp.ascontiguousarray(bank)
    (batch, dim), n = z.shape, bank.shape[0]
    values = cp.full((batch, capacity), -cp.inf, dtype=cp.float32)
    rows, count = cp.zeros((batch, capacity), dtype=cp.int32), cp.zeros(batch, dtype=cp.int32)
    grid = (-(-batch // TILE) * -(-n // TILE),)
    _launch("append", grid, (16, 16), z, bank, threshold, values, rows, count, batch, n, dim, capacity)
    return values, rows, count


def nearest(
    z: Array, bank: Array, k: int, plain: Callable[[Array], tuple[Array, Array]], budget: int = BUDGET
) -> tuple[Array, Array]:
    """As :func:`la_core.kernels.nearest`, which is ``plain(queries)``: ``(B, D), (N, D) -> (B, k), (B, k)``."""
    return gpu.search(z, cp.ascontiguousarray(bank), k, append, plain, budget)


def weighted_rows(weights: Array, bank: Array, indices: Array) -> Array:
    """As :func:`la_core.kernels.weighted_rows`: ``(B, k), (N, D), (B, k) -> (B, D)``."""
    weights, bank = cp.ascontiguousarray(weights), cp.ascontiguousarray(bank)
    indices = cp.ascontiguousarray(indices, dtype=cp.int64)
    (batch, k), dim = weights.shape, bank.shape[1]
    parts = cp.empty((batch, -(-k // SHARE), dim), dtype=cp.float32)
    _launch("weighted_rows", (*parts.shape[:2], -(-dim // WIDTH)), (WIDTH,), weights, bank, indices, parts, k, dim)
    return cp.sum(parts, axis=1)
