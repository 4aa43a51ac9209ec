"""The door: arguments of the public functions are checked here, on the host, before anything is computed or changed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from la_core import kernels, protocol, shards
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError
from la_core.kernels import BUDGET, Array, apart, library, read_in_blocks
from la_core.spaces import array_namespace, device


def together(**arrays: Array) -> Any:
    """All are arrays of one library on one device. Returns their namespace, with the backend's kernels ready."""
    for name, x in arrays.items():
        if not _is_array(x):
            raise KindError(
                f"{name} must be an array (NumPy, PyTorch, JAX, CuPy or another Array API library); got {_a(x)}"
            )
    (first, like), *rest = arrays.items()
    family, place = _family(like), None if traced(like) else _place(like)
    for name, x in rest:
        if _family(x) != family:
            raise KindError(
                f"{first} and {name} must be arrays of one library; got {_a(like)} and {_a(x)}. "
                f"Convert one of them first"
            )
        if place is not None and not traced(x) and _place(x) != place:
            raise KindError(
                f"{first} and {name} must be on one device; {first} is on {device(like)} and {name} on {device(x)}"
            )
    protocol.ready(library(like))
    return array_namespace(like)


def matrix(name: str, x: Array, rows: str = "N", columns: str = "D") -> None:
    """``x`` is a real floating matrix with at least one row and one column."""
    if x.ndim != 2 or 0 in x.shape:
        raise ShapeError(f"{name} must have shape ({rows}, {columns}) with at least one row; got {tuple(x.shape)}")
    if not array_namespace(x).isdtype(x.dtype, "real floating"):
        raise KindError(f"{name} must be real floating; got dtype {x.dtype}")


def bank(x: Array) -> None:
    """A memory bank: (N, D) in float32 or float64, or stored in float16 or bfloat16 where the library has them."""
    matrix("bank", x)
    xp = array_namespace(x)
    stored = [getattr(xp, name) for name in ("float32", "float64", "float16", "bfloat16") if hasattr(xp, name)]
    if x.dtype not in stored:
        raise KindError(f"bank must be float32, float64, float16 or bfloat16; got dtype {x.dtype}")


def embeddings(z: Array, bank: Array) -> None:
    """``z`` is (B, D) with the width of the bank, any real floating dtype, finite."""
    matrix("z", z, "B")
    if z.shape[1] != bank.shape[1]:
        raise ShapeError(
            f"z must have the width of the bank, (B, {bank.shape[1]}); "
            f"got {tuple(z.shape)} for a bank {tuple(bank.shape)}"
        )
    finite("z", z)


def finite(name: str, x: Array) -> None:
    """No NaN and no infinity anywhere in ``x``, where its numbers can be seen."""
    x = _seen(shards.held(x)[0])
    if x is None:
        return
    xp = array_namespace(x)
    if apart(x) and x.ndim == 2 and x.shape[0] * x.shape[1] > BUDGET:
        for rows in read_in_blocks(x):
            if not kernels.finite(x[rows, :]):
                bad = int(xp.argmax(xp.astype(xp.any(~xp.isfinite(x[rows, :]), axis=1), xp.int32)))
                raise NotFiniteError(f"{name} must be finite; row {rows.start + bad} holds NaN or infinity")
        return
    if not kernels.finite(x):
        bad = xp.any(xp.reshape(~xp.isfinite(x), (x.shape[0], -1)), axis=1)
        row = int(xp.argmax(xp.astype(bad, xp.int32)))
        many = int(xp.sum(xp.astype(bad, xp.int32)))
        raise NotFiniteError(
            f"{name} must be finite; {many} of {x.shape[0]} rows hold NaN or infinity, first row {row}"
        )


def indices(name: str, x: Array, shape: tuple[int | None, ...], n: int) -> None:
    """Integers in [0, n) of the given shape, as far as they can be seen; ``None`` in ``shape`` is any length."""
    _integers(name, x, shape)
    xp = array_namespace(x)
    if x.dtype not in (xp.int32, xp.int64):
        raise KindError(f"{name} must be int32 or int64; got dtype {x.dtype}")
    if 0 in x.shape:
        raise ShapeError(f"{name} must not be empty; got shape {tuple(x.shape)}")
    x = _seen(x)
    if x is None:
        return
    xp = array_namespace(x)
    low, high = int(xp.min(x)), int(xp.max(x))
    if low < 0 or high >= n:
        worst = low if low < 0 else high
        raise RangeError(f"{name} must lie in [0, {n}), since the bank has {n} rows; got {worst}")


def labels(x: Array, n: int) -> None:
    """Cluster labels (H, N): one row for each clustering, as wide as the bank."""
    _integers("labels", x, (None, None))
    if x.shape[0] < 1 or x.shape[1] != n:
        raise ShapeError(
            f"labels must have shape (H, N) with H >= 1 clusterings and N = {n}, the rows of the bank; "
            f"got {tuple(x.shape)}"
        )


def _integers(name: str, x: Array, shape: tuple[int | None, ...]) -> None:
    fits = x.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, x.shape, strict=False))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"{name} must have shape ({wanted}{',' if len(shape) == 1 else ''}); got {tuple(x.shape)}")
    if not array_namespace(x).isdtype(x.dtype, "integral"):
        raise KindError(f"{name} must be integers; got dtype {x.dtype}")


def count(name: str, value: object, most: int | None = None, of: str = "", least: int = 1) -> int:
    """An integer in [least, most]."""
    _static(name, value, "integer")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise KindError(f"{name} must be an integer; got {value!r}")
    if int(value) < least or (most is not None and int(value) > most):
        limit = f"at least {least}" if most is None else f"between {least} and {most}{of and f', {of}'}"
        raise RangeError(f"{name} must be {limit}; got {int(value)}")
    return int(value)


def number(name: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> float:
    """A finite number in [low, high], or in (low, high] when ``open_low``."""
    _static(name, value, "number")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise KindError(f"{name} must be a number; got {value!r}")
    x = float(value)
    if not math.isfinite(x) or x > high or x < low or (open_low and x == low):
        limit = f"above {low:g}" if open_low else f"at least {low:g}"
        if high < math.inf:
            limit += f" and at most {high:g}"
        raise RangeError(f"{name} must be finite, {limit}; got {x:g}")
    return x


COLDEST = 1e-4
"""The lowest temperature: below it scores over it leave what a float32 can tell apart."""


def temperature(value: object, name: str = "temperature") -> float:
    """A temperature of scores."""
    return number(name, value, COLDEST)


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise RangeError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def traced(x: object) -> bool:
    """Whether JAX stands in for ``x`` while it compiles or differentiates, so that its numbers cannot be seen."""
    return library(x) == "jax"  # arrays themselves are of jaxlib


def concrete(what: str, **arrays: Array) -> None:
    """No array is traced: ``what`` looks at numbers, and so it cannot be compiled."""
    for name, x in arrays.items():
        if traced(x):
            raise KindError(f"{what} looks at the numbers of {name}, which JAX is tracing: call it outside of a jit")


def _seen(x: Array) -> Array | None:
    """``x`` in a form whose numbers can be seen now; None where it is traced."""
    if traced(x):
        return None
    # While JAX traces, whatever is made of a concrete array is traced too: look at its numbers on the host.
    if library(x) != "jaxlib" or not traced(array_namespace(x).zeros(())):
        return x
    host = np.asarray(x)
    return host.astype(np.float32) if host.dtype.kind == "V" else host  # bfloat16, which NumPy does not know


def _static(name: str, value: object, kind: str) -> None:
    if traced(value):
        raise KindError(
            f"{name} must be a Python {kind}, not a traced value: mark it static, "
            f"as in jax.jit(..., static_argnames={name!r})"
        )


def _is_array(x: object) -> bool:
    kind = type(x)
    if kind not in _ARRAYS and is_array_api_obj(x):
        _ARRAYS.add(kind)
    return kind in _ARRAYS


_ARRAYS: set[type] = set()
"""Classes of arrays that were met."""


def _family(x: Array) -> str:
    """The library of ``x``; an array of JAX and what stands in for one while it is traced are of one family."""
    name = library(shards.held(x)[0])
    return {"jaxlib": "jax"}.get(name, name)


def _place(x: Array) -> Any:
    """The device of ``x``, or the devices: an array of JAX may lie on several, in parts or whole on each."""
    return getattr(device(x), "device_set", device(x))


def _a(x: object) -> str:
    kind = type(x)
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
