"""Whitening of embeddings in groups of coordinates, written once for the networks of every library.

Batch norm gives each coordinate mean 0 and variance 1 over a batch. Whitening leaves the coordinates of a group
uncorrelated as well (Huang et al. 2018, "Decorrelated Batch Normalization"), so that an encoder gains nothing by saying
one thing in several of them. The inverse root of the covariance is found by Newton's iteration (Huang et al. 2019,
"Iterative Normalization"), which is products alone. A few steps whiten in part: the variances along the principal axes
of a group come nearer to each other, and an axis with next to none is left alone. An embedding is normalised
afterwards, so that its scale does not count.
"""

from __future__ import annotations

from typing import Any

from la_core import check
from la_core.errors import RangeError
from la_core.spaces import array_namespace, device

STEPS = 3
"""Of Newton's iteration, where five are published: variances at a ratio of 100 are left at one of about 18. Chosen on
validation splits, where five took more from the layer before the embedding (``docs/learning.md``)."""
EPSILON = 1e-5
"""Added to every variance, as in batch norm."""


def groups(dim: int, size: int) -> int:
    """How many groups of ``size`` coordinates there are.

    Raises
    ------
    RangeError
        They do not come out even, or a group has fewer than two.
    """
    size = check.count("whiten", size)
    if size < 2 or dim % size:
        raise RangeError(f"whiten must divide the embedding's {dim} coordinates into groups of at least 2; got {size}")
    return dim // size


def moments(x: Any, size: int) -> tuple[Any, Any]:
    """Mean (D,), and covariance (D / size, size, size) of each group, over the rows of ``x`` (B, D)."""
    xp = array_namespace(x)
    mean = xp.mean(x, axis=0)
    y = _grouped(x - mean, size)
    return mean, y @ xp.matrix_transpose(y) / x.shape[0]


def whitened(x: Any, mean: Any, covariance: Any, steps: int = STEPS) -> Any:
    """Rows (B, D) from which ``mean`` is taken, and each group turned to a covariance near 1.

    By the symmetric root, which moves rows least (ZCA). Differentiable in all arguments where the library
    differentiates.
    """
    y = inverse_root(covariance, steps) @ _grouped(x - mean, covariance.shape[-1])
    xp = array_namespace(x)
    return xp.reshape(xp.permute_dims(y, (2, 0, 1)), x.shape)


def inverse_root(covariance: Any, steps: int = STEPS) -> Any:
    """About ``covariance^(-1/2)`` of each (G, size, size).

    With ``S = covariance / trace``, whose eigenvalues lie in [0, 1]: ``P <- (3 P - P^3 S) / 2`` from ``P = 1`` goes to
    ``S^(-1/2)``, from below; an eigenvalue that is small is followed up to ``1.5^steps`` only.
    """
    xp = array_namespace(covariance)
    one = xp.eye(covariance.shape[-1], dtype=covariance.dtype, device=device(covariance))
    shifted = covariance + EPSILON * one
    trace = xp.sum(shifted * one, axis=(1, 2), keepdims=True)
    scaled, root = shifted / trace, one
    for _ in range(steps):
        root = 1.5 * root - 0.5 * (root @ root @ root @ scaled)
    return root / xp.sqrt(trace)


def _grouped(x: Any, size: int) -> Any:
    """(B, D) -> (D / size, size, B)."""
    xp = array_namespace(x)
    return xp.permute_dims(xp.reshape(x, (x.shape[0], -1, size)), (1, 2, 0))
