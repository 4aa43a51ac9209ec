"""Weights of flax NNX modules under PyTorch's names and in its layouts, so that they move to and from a torch twin.

A twin has the same attributes and the same order of layers: ``SmallCNN`` here and there, for example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from la_core.errors import KindError, ShapeError
from la_core.initial import draws

_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "covariance": "running_covariance",
}


def torch_weights(module: nnx.Module) -> dict[str, np.ndarray]:
    """A copy of the parameters and running statistics: ``{"head.weight": (out, in), ...}``."""
    return {name: _turned(np.array(variable[...]), out=True) for name, variable in _variables(module)}


def load_torch_weights(module: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Take over weights by PyTorch's names; ``num_batches_tracked``, which flax does not have, may be among them.

    Raises
    ------
    KindError, ShapeError
        Names that are missing or unknown, or another shape: nothing is changed then.
    """
    mine = dict(_variables(module))
    given = {name: x for name, x in weights.items() if not name.endswith("num_batches_tracked")}
    if set(mine) != set(given):
        missing, unknown = sorted(set(mine) - set(given)), sorted(set(given) - set(mine))
        raise KindError(f"weights of another network: missing {missing[:3]}, unknown {unknown[:3]}")
    _write(mine, given)


def initialise(module: nnx.Module, seed: int, rule: str | None = None) -> nnx.Module:
    """Draw the weights anew by :func:`la_core.initial.draws`: those of the torch twin for the same seed.

    By default with the rule that the module names as ``initial``, or ``"uniform"``.
    """
    mine = dict(_variables(module))
    shapes = {name: _turned(np.empty(variable.shape), out=True).shape for name, variable in mine.items()}
    _write(mine, draws(shapes, seed, rule or str(getattr(module, "initial", "uniform"))))
    return module


def _variables(module: nnx.Module) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    leaves: Any = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    for path, variable in leaves:
        *owners, last = (str(part) for part in path)
        yield ".".join([*(owner for owner in owners if owner != "layers"), _NAMES[last]]), variable


def _write(mine: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    turned = {name: _turned(np.asarray(x), out=False) for name, x in weights.items()}
    for name, x in turned.items():
        if mine[name].shape != x.shape:
            raise ShapeError(
                f"{name} must have shape {_turned(np.empty(mine[name].shape), out=True).shape}; "
                f"got {np.shape(weights[name])}"
            )
    for name, x in turned.items():
        mine[name][...] = jnp.asarray(x, mine[name].dtype)


def _turned(x: np.ndarray, *, out: bool) -> np.ndarray:
    """Between flax's (in, out) or (h, w, in, out) and PyTorch's (out, in) or (out, in, h, w)."""
    if x.ndim == 4:
        return x.transpose(3, 2, 0, 1) if out else x.transpose(2, 3, 1, 0)
    return x.T if x.ndim == 2 else x
