"""The memory bank: one unit vector for every sample, a running average of its embeddings.

The bank is never trained by gradient. A step reads it, then the encoder moves, then the rows of the batch are mixed
with their new embeddings (Zhuang et al. 2019, section 3; Wu et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from la_core import check, kernels
from la_core.errors import KindError
from la_core.kernels import Array
from la_core.protocol import Backend
from la_core.randomness import generator
from la_core.spaces import array_namespace


class State(NamedTuple):
    """What training remembers beside the encoder. Every function takes a state and returns one; none keeps one."""

    bank: Array
    """(N, D) unit rows, float32 or float64; or float16 or bfloat16, which is half the memory, and computed with in
    float32. On NumPy it may be a memory-mapped file."""
    labels: Array | None = None
    """(H, N) integers: the cluster of each sample in each clustering, comparable within one clustering only. A
    negative label means none: such a sample is close to nothing in that clustering."""


def stored(rows: np.ndarray, backend: Backend, dtype: str) -> Array:
    """A bank on a backend, of the rows' dtype or as :attr:`la_core.Settings.bank_dtype` says.

    Raises
    ------
    KindError
        The library has no such dtype.
    """
    if dtype == "float16":
        return backend.asarray(rows.astype(np.float16))
    bank = backend.asarray(rows)
    if dtype == "same":
        return bank
    xp = array_namespace(bank)
    if not hasattr(xp, dtype):
        raise KindError(f"bank_dtype cannot be {dtype!r} on the {backend.name} backend, which lacks it")
    return xp.astype(bank, getattr(xp, dtype))


def unit(x: Array) -> Array:
    """Every row divided by its norm: ``(..., D) -> (..., D)``.

    A row of zeros stays zero, with zero gradient. So does a row whose squared norm the dtype cannot hold: in float32,
    a norm below 1e-19 or above 1e19.
    """
    return direction(x)[0]


def direction(x: Array) -> tuple[Array, Array]:
    """:func:`unit`, and what each row was multiplied with, (..., 1)."""
    scale = kernels.inverse_norm(x)
    return x * scale, scale


def random_rows(n: int, dim: int, *, seed: int) -> np.ndarray:
    """Unit vectors drawn uniformly from the sphere, float32 (n, dim), on the host."""
    check.count("n", n)
    check.count("dim", dim)
    check.count("seed", seed, least=0)
    ((_, rows),) = random_parts(n, dim, seed=seed, size=n)
    return rows


def random_parts(n: int, dim: int, *, seed: int, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """:func:`random_rows`, so many at a time: which of them, and the rows."""
    draw = generator(seed, "bank")
    for some in kernels.blocks(n, size):
        yield some, np.asarray(unit(draw.standard_normal((some.stop - some.start, dim), dtype=np.float32)))


def update(state: State, indices: Array, z: Array, *, mixing: float = 0.5) -> State:
    """Mix the batch's embeddings into its bank rows: ``bank[i] <- unit((1 - mixing) bank[i] + mixing unit(z))``.

    **Consumes** ``state``: write ``state = update(state, ...)`` and do not use the old one, whose bank may have been
    written in place (a read-only NumPy bank is copied). Call it after the loss and its backward pass.

    Parameters
    ----------
    state
        Bank (N, D) and labels.
    indices
        (B,) integers, the dataset index of each row of ``z``. Rows that share an index are averaged first, so the
        order of the batch does not matter.
    z
        (B, D) embeddings as the encoder gives them; made unit length here.
    mixing
        Weight of the new embedding, in [0, 1]. Both published codes use 0.5.

    Returns
    -------
    State
        Touched rows have unit length again, as far as half precision can hold it; every other row is bit-identical.
        Where old and new cancel exactly, and where ``z`` is zero and ``mixing`` is 1, the old row stays.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
        Before anything is written.
    """
    bank = state.bank
    check.together(bank=bank, indices=indices, z=z)
    check.bank(bank)
    check.embeddings(z, bank)
    check.indices("indices", indices, (z.shape[0],), bank.shape[0])
    return mixed(state, indices, z, check.number("mixing", mixing, 0.0, 1.0))


def mixed(state: State, indices: Array, z: Array, mixing: float) -> State:
    """:func:`update` of arguments that were checked already."""
    bank = state.bank
    xp = array_namespace(bank)
    fresh = kernels.mean_of_equals(unit(kernels.like(z, bank)), indices)
    old = kernels.wide(kernels.rows_at(bank, indices))
    between = (1.0 - mixing) * old + mixing * fresh
    scale = kernels.inverse_norm(between)
    rows = xp.astype(xp.where(scale > 0, between * scale, old), bank.dtype, copy=False)
    return state._replace(bank=kernels.put_rows(bank, indices, rows))
