"""Steps so small that they take as long as their calls: on a CPU NumPy makes them, in the tensors' own memory.

And by one thread (:mod:`la_core.backends.threads`). Those of PyTorch stay at work for a while after each of its calls,
and so do those of NumPy's BLAS library: where they take turns each waits for the other longer than either computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from la_core import kernels, protocol
from la_core.backends import threads

SMALL = 4 * kernels.CACHE
"""Bytes of all arguments, up to which NumPy's shorter calls count for more than PyTorch's threads."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def by_numpy(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function of arrays and tuples of them, without derivative: of small tensors on a CPU it is NumPy's."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = list(_tensors(args))
        if sum(x.nbytes for x in tensors) > SMALL or not all(map(_shared, tensors)):
            return function(*args, **kwargs)
        protocol.ready("numpy")  # its kernels
        lent: dict[int, tuple[np.ndarray, Tensor]] = {}

        def lend(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            array = x.detach().numpy()
            lent[id(array)] = array, x.detach() if x.requires_grad else x
            return array

        def back(x: Any) -> Any:
            if id(x) in lent:  # else each step's tensor would hold the one before it
                return lent[id(x)][1]
            return torch.from_numpy(x if x.flags.writeable else x.copy()) if isinstance(x, np.ndarray) else x

        with threads.alone():
            return _mapped(function(*_mapped(args, lend), **kwargs), back)

    return run


def _shared(x: Tensor) -> bool:
    """Whether NumPy can work in its memory."""
    return type(x) is Tensor and x.device.type == "cpu" and x.dtype is not torch.bfloat16


def _tensors(x: Any) -> Iterator[Tensor]:
    """All in a tree of tuples."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple):
        for part in x:
            yield from _tensors(part)


def _mapped(x: Any, leaf: Callable[[Any], Any]) -> Any:
    """A tree of tuples with ``leaf`` of all that is in it."""
    if not isinstance(x, tuple):
        return leaf(x)
    parts = [_mapped(part, leaf) for part in x]
    return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
