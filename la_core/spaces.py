"""The namespace of an array's library, and its device: array-api-compat's answers, looked up once for each class.

A step on a small bank makes hundreds of calls on arrays so small that to ask for the namespace takes longer than what
is then done in it.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

_SPACES: dict[type, Any] = {}


def array_namespace(x: Any, *others: Any) -> Any:
    """The namespace of ``x``. That the ``others`` are of the same library was checked at the door."""
    kind = type(x)
    if kind in _SPACES:
        return _SPACES[kind]
    found = array_api_compat.array_namespace(x)
    if not kind.__module__.startswith("la_core"):  # a shard's is that of its rows
        _SPACES[kind] = found
    return found


def device(x: Any) -> Any:
    """Where ``x`` is."""
    kind = type(x)
    if kind is np.ndarray:
        return "cpu"
    return x.device if kind.__module__ == "torch" else array_api_compat.device(x)
