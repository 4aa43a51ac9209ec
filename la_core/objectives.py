"""What is minimised: Local Aggregation, and Instance Discrimination as its warm-up.

Each objective comes twice. The plain function gives the loss of every row and is differentiable where the library
differentiates; the ``_and_cotangent`` form gives in addition the derivative of the *mean* loss with respect to the
encoder's output in closed form, so that a framework has to differentiate its own encoder only.

With ``v = z / ||z||`` and ``s_j = v . bank_j / temperature``, Local Aggregation (Zhuang et al. 2019, equation 3) is

    L = -log( P(C and B) / P(B) ) = lse_B(s) - lse_{C and B}(s)
    dL/dv = ( E_B[bank] - E_{C and B}[bank] ) / temperature             E: softmax-weighted mean of the rows
    dL/dz = ( dL/dv - (dL/dv . v) v ) / ||z||

Everything stays in log space. The normaliser Z of the published codes cancels here, and no epsilon is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from la_core import check, kernels
from la_core import lists as among
from la_core.bank import State, direction, mixed, unit
from la_core.errors import InputError, ShapeError
from la_core.kernels import BUDGET, Array
from la_core.neighbours import COMBINATIONS, verdict
from la_core.spaces import array_namespace, device


class Terms(NamedTuple):
    """One evaluation of an objective over a batch."""

    loss: Array
    """(B,) loss of each row."""
    cotangent: Array
    """(B, D) derivative of the mean of ``loss`` with respect to the encoder's output."""
    n_close: Array | None = None
    """(B,) how many close neighbours each row has within its background; a row with 0 takes no part in the gradient."""


def fresh_rows(
    objective: Callable[[Array, State, Array], Terms], z: Array, state: State, indices: Array
) -> tuple[Terms, State]:
    """An objective over two views of every sample, each read against a bank in which the other is the batch's row.

    An extension of the paper, whose bank rows of the batch are as old as an epoch. Here the row of a sample is the
    embedding of its other view, from the same encoder, and takes no gradient; so are those of the rest of the batch.

    Parameters
    ----------
    objective
        One that takes ``(z, state, indices)``, for example ``partial(local_aggregation_terms, n_background=...,
        temperature=...)``.
    z
        (2 B, D) the encoder's output: the first view of every sample, then the second.
    state
        **Consumed**, as by :func:`la_core.update`.
    indices
        (B,) dataset index of each sample.

    Returns
    -------
    terms
        Of all 2 B rows.
    state
        As it was. To mix both views into the bank: ``update(state, concat([indices, indices]), z)``.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
        The bank is as it was. On JAX, whose arrays are given up and not written, it is gone outside of ``jax.jit``.
    """
    bank = state.bank
    xp = check.together(z=z, bank=bank, indices=indices)
    check.bank(bank)
    check.embeddings(z, bank)
    check.indices("indices", indices, (None,), bank.shape[0])
    if z.shape[0] != 2 * indices.shape[0]:
        raise ShapeError(f"z must hold two views of each of {indices.shape[0]} samples; got {z.shape[0]} rows")
    old = kernels.rows_at(bank, indices)
    halves = z[: indices.shape[0], :], z[indices.shape[0] :, :]
    terms = []
    for mine, other in (halves, halves[::-1]):
        # ... a row of zeros has no direction, and leaves the sample its old row
        full = mixed(State(bank), indices, other, 1.0)
        try:
            terms.append(objective(mine, state._replace(bank=full.bank), indices))
        finally:  # also where the objective refuses its arguments
            bank = kernels.put_rows(full.bank, indices, old)
    one, two = terms
    counted = one.n_close is not None
    return Terms(
        xp.concat([one.loss, two.loss]),
        xp.concat([one.cotangent, two.cotangent]) / 2,
        xp.concat([one.n_close, two.n_close]) if counted else None,
    ), state._replace(bank=bank)


def with_instances(
    objective: Callable[[Array, State, Array], Terms], weight: float, temperature: float
) -> Callable[[Array, State, Array], Terms]:
    """An objective that is for a share ``weight`` Instance Discrimination within the batch.

    ``(1 - weight) * objective + weight * instance_discrimination``, the latter over the bank rows of the batch alone.
    An extension of the paper, for use inside :func:`fresh_rows`, where these rows are the other views: neighbours may
    be wrong, a sample's own view is not.

    Raises
    ------
    RangeError
        A weight outside 0 to 1, a temperature below 1e-4.
    """
    weight = check.number("weight", weight, 0.0, 1.0)
    temperature = check.temperature(temperature)

    def both(z: Array, state: State, indices: Array) -> Terms:
        terms = objective(z, state, indices)
        xp = array_namespace(z, indices)
        batch = kernels.wide(kernels.rows_at(state.bank, indices))
        own = xp.arange(indices.shape[0], dtype=indices.dtype, device=device(indices))
        loss, cotangent = _discriminated(z, batch, own, temperature)  # of what the objective has checked
        return terms._replace(
            loss=(1 - weight) * terms.loss + weight * loss,
            cotangent=(1 - weight) * terms.cotangent + weight * cotangent,
        )

    return both


# Local Aggregation -----------------------------------------------------------------------------------------------


def local_aggregation(
    z: Array,
    state: State,
    indices: Array,
    *,
    n_background: int,
    temperature: float,
    combine: str = "union",
    budget: int = BUDGET,
) -> Array:
    """Local Aggregation loss of each row: ``-log( P(C and B) / P(B) )``.

    Parameters
    ----------
    z
        (B, D) the encoder's output, not normalised, of any real floating dtype. Computed in the bank's, or in float32
        where that is half precision.
    state
        Bank (N, D) with unit rows, and labels (H, N).
    indices
        (B,) dataset index of each row of ``z``.
    n_background
        k, the size of the background: 1 to N. With N the background is everything.
    temperature
        tau, at least 1e-4.
    combine
        How clusterings combine into C: ``"union"`` (the paper), ``"intersection"``, or ``"majority"`` of at least half.
        With the last, rows that are close in fewer clusterings are in neither C nor B.
    budget
        Bytes of temporary memory for the search.

    Returns
    -------
    loss
        (B,) in the dtype that is computed in; at least 0, and 0 when C covers B. A row without any close neighbour in
        its background has the loss ``log(n_background)``, that of one close row among k equally near ones, and zero
        gradient.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    labels = _door(z, state, indices, n_background, temperature, combine, budget)
    n_background, temperature = int(n_background), float(temperature)  # also of NumPy scalars, which would promote
    v = unit(kernels.like(z, state.bank))
    scores, neighbours = kernels.nearest(v, state.bank, n_background, budget)
    mask, undecided = verdict(labels, indices, neighbours, combine)
    return kernels.softmax_ratio(_without(scores / temperature, undecided), mask)[0]


def local_aggregation_and_cotangent(
    z: Array,
    state: State,
    indices: Array,
    *,
    n_background: int,
    temperature: float,
    combine: str = "union",
    budget: int = BUDGET,
) -> tuple[Array, Array]:
    """Loss of each row (B,), and the derivative of the mean loss with respect to ``z`` (B, D), in ``z``'s dtype.

    Arguments and errors are those of :func:`local_aggregation`.
    """
    terms = local_aggregation_terms(
        z, state, indices, n_background=n_background, temperature=temperature, combine=combine, budget=budget
    )
    return terms.loss, terms.cotangent


def local_aggregation_terms(
    z: Array,
    state: State,
    indices: Array,
    *,
    n_background: int,
    temperature: float,
    combine: str = "union",
    budget: int = BUDGET,
    lists: among.Lists | None = None,
    probes: int = 1,
) -> Terms:
    """Loss, cotangent and the number of close neighbours of each row, in one evaluation.

    Arguments and errors are those of :func:`local_aggregation`. With ``lists`` the background is sought in the
    ``probes`` nearest of each clustering only (:mod:`la_core.lists`), and has fewer than ``n_background`` rows where
    these hold fewer.
    """
    labels = _door(z, state, indices, n_background, temperature, combine, budget)
    v, scale = direction(kernels.like(z, state.bank))
    loss, pull, n_close = aggregate(
        *(v, state.bank, labels, indices),
        n_background=int(n_background),
        temperature=float(temperature),  # a NumPy scalar would promote
        combine=combine,
        budget=budget,
        lists=lists,
        probes=probes,
        batch=z.shape[0],
    )
    pull = _through_unit(pull, v, scale)
    return Terms(loss, array_namespace(z).astype(pull, z.dtype, copy=False), n_close)


@kernels.by_bank
def aggregate(
    v: Array,
    bank: Array,
    labels: Array,
    indices: Array,
    *,
    n_background: int,
    temperature: float,
    combine: str,
    budget: int,
    lists: among.Lists | None,
    probes: int,
    batch: int,
) -> tuple[Array, Array, Array]:
    """Of unit rows the loss (B,), ``dL/dv`` of its mean over a ``batch`` (B, D), and how many are close (B,).

    No row depends on another, so some rows of a batch may be evaluated apart.
    """
    xp = array_namespace(v)
    valid = None
    if lists is None:
        scores, neighbours = kernels.nearest(v, bank, n_background, budget)
    else:
        scores, neighbours, valid = among.nearest(v, bank, lists, n_background, probes, budget)
    mask, undecided = verdict(labels, indices, neighbours, combine)
    s = _without(scores / temperature, undecided)
    if valid is not None:
        s, mask = _without(s, ~valid), mask & valid
    loss, weights = kernels.softmax_ratio(s, mask)
    pull = kernels.weighted_rows(weights / (temperature * batch), bank, neighbours)
    return loss, pull, xp.sum(xp.astype(mask, xp.int32), axis=1, dtype=xp.int32)


_NOTHING = -1e30
"""A score whose mass is 0, and which is finite."""


def _without(s: Array, left_out: Array | None) -> Array:
    """Scores of a background from which some have no mass."""
    xp = array_namespace(s)
    return s if left_out is None else xp.where(left_out, xp.full_like(s, _NOTHING), s)


def _through_unit(pull: Array, v: Array, scale: Array) -> Array:
    """dL/du from dL/dv, with ``v = u / ||u||`` and ``scale = 1 / ||u||``: ``(dL/dv - (dL/dv . v) v) / ||u||``."""
    xp = array_namespace(pull)
    return (pull - xp.sum(pull * v, axis=1, keepdims=True) * v) * scale


def _door(
    z: Array, state: State, indices: Array, n_background: int, temperature: float, combine: str, budget: int
) -> Array:
    if state.labels is None:
        raise InputError(
            "state.labels is None, and Local Aggregation needs labels (H, N): call la_core.cluster first, "
            "or bring your own, and put them into State(bank, labels)"
        )
    check.together(z=z, bank=state.bank, labels=state.labels, indices=indices)
    check.bank(state.bank)
    check.labels(state.labels, state.bank.shape[0])
    check.embeddings(z, state.bank)
    check.indices("indices", indices, (z.shape[0],), state.bank.shape[0])
    check.count("n_background", n_background, state.bank.shape[0], "the rows of the bank")
    check.temperature(temperature)
    check.choice("combine", combine, COMBINATIONS)
    check.count("budget", budget)
    return state.labels


# Instance Discrimination -----------------------------------------------------------------------------------------


def instance_discrimination(
    z: Array,
    bank: Array,
    indices: Array,
    *,
    temperature: float,
    noise: Array | None = None,
    log_z: float | None = None,
    budget: int = BUDGET,
) -> Array:
    """Instance Discrimination loss of each row (Wu et al. 2018): every sample is its own class.

    Without ``noise`` it is the exact softmax over the bank, ``lse_all(s) - s_i``, which is Local Aggregation with
    C = {i} and B = everything. With ``noise`` it is noise-contrastive estimation with ``P_j = exp(s_j) / Z``:

        L = -log( P_i / (P_i + K/N) ) - sum over noise j of log( (K/N) / (P_j + K/N) )
          = softplus(a - s_i) + sum_j softplus(s_j - a)                        a = log(K/N) + log Z

    Parameters
    ----------
    z
        (B, D) the encoder's output, not normalised.
    bank
        (N, D) unit rows, float32 or float64.
    indices
        (B,) dataset index of each row.
    temperature
        tau, at least 1e-4.
    noise
        (B, K) bank indices drawn uniformly with replacement, for NCE.
    log_z
        Logarithm of the constant Z, for NCE. By default that of a uniform bank: :func:`log_normaliser`.
    budget
        Bytes of temporary memory for the exact form, which never stores (B, N).

    Returns
    -------
    loss
        (B,) in the bank's dtype, or float32 if that is stored in half.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    xp = _instance_door(z, bank, indices, temperature, noise, log_z, budget)
    temperature = float(temperature)
    v = unit(kernels.like(z, bank))
    own = xp.squeeze(kernels.scores_at(v, bank, indices[:, None]), axis=1) / temperature
    if noise is None:
        return kernels.softmax_mean(v, bank, temperature, budget)[0] - own
    offset = _nce_offset(bank, noise, temperature, log_z)
    others = kernels.scores_at(v, bank, noise) / temperature
    return _softplus(offset - own) + xp.sum(_softplus(others - offset), axis=1)


def instance_discrimination_and_cotangent(
    z: Array,
    bank: Array,
    indices: Array,
    *,
    temperature: float,
    noise: Array | None = None,
    log_z: float | None = None,
    budget: int = BUDGET,
) -> tuple[Array, Array]:
    """Loss of each row (B,), and the derivative of the mean loss with respect to ``z`` (B, D), in ``z``'s dtype.

    Arguments and errors are those of :func:`instance_discrimination`.
    """
    _instance_door(z, bank, indices, temperature, noise, log_z, budget)
    return _discriminated(z, bank, indices, float(temperature), noise, log_z, budget)


def _discriminated(
    z: Array,
    bank: Array,
    indices: Array,
    temperature: float,
    noise: Array | None = None,
    log_z: float | None = None,
    budget: int = BUDGET,
) -> tuple[Array, Array]:
    """:func:`instance_discrimination_and_cotangent` of arguments that were checked already."""
    xp = array_namespace(z)
    v, scale = direction(kernels.like(z, bank))
    mine = kernels.wide(kernels.rows_at(bank, indices))
    own = xp.sum(v * mine, axis=1) / temperature
    if noise is None:
        lse, mean = kernels.softmax_mean(v, bank, temperature, budget)
        loss, pull = lse - own, mean - mine
    else:
        offset = _nce_offset(bank, noise, temperature, log_z)
        others = kernels.scores_at(v, bank, noise) / temperature
        loss = _softplus(offset - own) + xp.sum(_softplus(others - offset), axis=1)
        pull = kernels.weighted_rows(_sigmoid(others - offset), bank, noise)
        pull = pull - _sigmoid(offset - own)[:, None] * mine
    pull = pull / (temperature * z.shape[0])
    return loss, xp.astype(_through_unit(pull, v, scale), z.dtype, copy=False)


def log_normaliser(n: int, dim: int, temperature: float) -> float:
    """log Z for NCE: Z = n E[exp(cos / temperature)] over directions drawn uniformly from the sphere in ``dim``.

    The expectation is ``0F1(; dim/2; 1/(4 temperature^2))``, summed here as its power series in log space. It holds
    for any (dim, temperature), where the published codes carry one constant that is right for (128, 0.07) only.
    """
    check.count("n", n)
    check.count("dim", dim)
    check.temperature(temperature)
    x = 1.0 / (2.0 * temperature)
    # Terms x^2j / (j! (dim/2)_j) rise until j (j + dim/2) = x^2, that is before j = x, and fall ever faster after.
    terms = [
        2 * j * math.log(x) - math.lgamma(j + 1) - math.lgamma(dim / 2 + j) + math.lgamma(dim / 2)
        for j in range(int(3 * x) + 64)
    ]
    top = max(terms)
    return math.log(n) + top + math.log(math.fsum(math.exp(t - top) for t in terms))


def _nce_offset(bank: Array, noise: Array, temperature: float, log_z: float | None) -> float:
    n, dim = bank.shape
    if log_z is None:
        log_z = log_normaliser(n, dim, temperature)
    return math.log(noise.shape[1] / n) + float(log_z)


def _softplus(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.clip(x, min=0.0) + xp.log1p(xp.exp(-xp.abs(x)))


def _sigmoid(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.exp(-_softplus(-x))


def _instance_door(
    z: Array,
    bank: Array,
    indices: Array,
    temperature: float,
    noise: Array | None,
    log_z: float | None,
    budget: int,
) -> Array:
    extra = {} if noise is None else {"noise": noise}
    xp = check.together(z=z, bank=bank, indices=indices, **extra)
    check.bank(bank)
    check.embeddings(z, bank)
    check.indices("indices", indices, (z.shape[0],), bank.shape[0])
    check.temperature(temperature)
    check.count("budget", budget)
    if noise is not None:
        check.indices("noise", noise, (z.shape[0], None), bank.shape[0])
    elif log_z is not None:
        raise ShapeError("log_z is for noise-contrastive estimation: give noise (B, K) with it, or leave it out")
    if log_z is not None:
        check.number("log_z", log_z, -math.inf)
    return xp
