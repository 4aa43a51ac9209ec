"""The objectives as functions to be differentiated: inside a ``jax.grad`` and a ``jax.jit`` of your own."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from la_core import check, kernels, objectives
from la_core.bank import State


def local_aggregation_loss(
    z: Array,
    bank: Array,
    labels: Array,
    indices: Array,
    *,
    n_background: int,
    temperature: float,
    combine: str = "union",
) -> Array:
    """Mean Local Aggregation loss of a batch, differentiable in ``z`` by its closed form; the bank is a constant.

    Arguments and errors are those of :func:`la_core.local_aggregation`. Under ``jax.jit`` the keyword arguments are
    static, and traced values cannot be checked: check ``indices`` before they go in, since JAX clamps in silence.
    After the gradient, ``la_core.update`` moves the bank: in place where it is compiled by itself with
    ``donate_argnums=0``. In one ``jax.jit`` with the loss XLA copies the bank first, which takes as long as the search.
    """
    _door(z, bank, indices, temperature)
    z = kernels.like(z, bank)  # half precision is left before the cotangent
    loss: Array = _aggregation(z, bank, labels, indices, n_background, temperature, combine)
    return loss


def instance_discrimination_loss(
    z: Array, bank: Array, indices: Array, noise: Array | None = None, *, temperature: float, log_z: float | None = None
) -> Array:
    """Mean Instance Discrimination loss of a batch, the warm-up; with ``noise`` (B, K) by contrastive estimation.

    Arguments and errors are those of :func:`la_core.instance_discrimination`; see :func:`local_aggregation_loss`.
    """
    _door(z, bank, indices, temperature)
    loss: Array = _discrimination(kernels.like(z, bank), bank, indices, noise, temperature, log_z)
    return loss


def _door(z: Array, bank: Array, indices: Array, temperature: float) -> None:
    """What can be seen is looked at here: behind the derivative, under ``jax.jit``, all is traced."""
    check.temperature(temperature)
    check.together(z=z, bank=bank, indices=indices)
    check.bank(bank)
    check.embeddings(z, bank)
    check.indices("indices", indices, (z.shape[0],), bank.shape[0])


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _aggregation(
    z: Array, bank: Array, labels: Array, indices: Array, n_background: int, temperature: float, combine: str
) -> Array:
    return _aggregation_forward(z, bank, labels, indices, n_background, temperature, combine)[0]


def _aggregation_forward(
    z: Array, bank: Array, labels: Array, indices: Array, n_background: int, temperature: float, combine: str
) -> tuple[Array, Array]:
    loss, cotangent = objectives.local_aggregation_and_cotangent(
        z, State(bank, labels), indices, n_background=n_background, temperature=temperature, combine=combine
    )
    return jnp.mean(loss), cotangent


def _aggregation_back(
    n_background: int, temperature: float, combine: str, cotangent: Array, g: Array
) -> tuple[Array, None, None, None]:
    return g * cotangent, None, None, None


_aggregation.defvjp(_aggregation_forward, _aggregation_back)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _discrimination(
    z: Array, bank: Array, indices: Array, noise: Array | None, temperature: float, log_z: float | None
) -> Array:
    return _discrimination_forward(z, bank, indices, noise, temperature, log_z)[0]


def _discrimination_forward(
    z: Array, bank: Array, indices: Array, noise: Array | None, temperature: float, log_z: float | None
) -> tuple[Array, Array]:
    loss, cotangent = objectives.instance_discrimination_and_cotangent(
        z, bank, indices, temperature=temperature, noise=noise, log_z=log_z
    )
    return jnp.mean(loss), cotangent


def _discrimination_back(
    temperature: float, log_z: float | None, cotangent: Array, g: Array
) -> tuple[Array, None, None, None]:
    return g * cotangent, None, None, None


_discrimination.defvjp(_discrimination_forward, _discrimination_back)
