"""Arguments of what works on the host, as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from la_core import check
from la_core.errors import KindError, ShapeError


def host(name: str, x: Any) -> np.ndarray:
    """``x`` as a NumPy array, without a copy where it is one already."""
    try:
        found = np.asarray(x.detach() if hasattr(x, "detach") else x)
    except (TypeError, ValueError, RuntimeError):  # on a GPU, ragged, bfloat16
        found = None
    if found is None or found.dtype.kind == "V":
        raise KindError(f"{name} must be on the host, of a dtype that NumPy has: take it there by backend.to_host")
    return found


def matrix(name: str, x: Any) -> np.ndarray:
    """A finite matrix (N, F) of real floating numbers."""
    found = host(name, x)
    check.matrix(name, found, "N", "F")
    check.finite(name, found)
    return found


def integers(name: str, x: Any, n: int | None = None, of: str = "sample") -> np.ndarray:
    """A vector of at least one integer, of any size and sign; of ``n``, one for each of something."""
    found = host(name, x)
    if found.ndim != 1 or not found.size or (n is not None and len(found) != n):
        raise ShapeError(f"{name} must have shape ({'N' if n is None else n},), one for each {of}; got {found.shape}")
    if found.dtype.kind not in "iu":
        raise KindError(f"{name} must be integers; got dtype {found.dtype}")
    return found
