"""Background and close neighbours of a batch (Zhuang et al. 2019, section 3.1).

The *background* B of an embedding are the k bank rows nearest to it as it is now. The *close* neighbours C are the
samples that share its cluster, by the labels of its own sample at the last clustering; only C within B matters.
"""

from __future__ import annotations

from la_core import check, kernels
from la_core.kernels import BUDGET, Array

COMBINATIONS = ("union", "intersection", "majority")


def nearest(z: Array, bank: Array, k: int, *, budget: int = BUDGET) -> tuple[Array, Array]:
    """The k bank rows of largest dot product with each row of ``z``, exactly.

    Parameters
    ----------
    z
        (B, D), finite. Used as it comes: for cosines give unit rows (the set is the same either way).
    bank
        (N, D) float32 or float64, or stored in float16 or bfloat16.
    k
        1 to N.
    budget
        Bytes of temporary memory; the (B, N) matrix is never stored whole. Does not change the answer, but for which
        of two equal rows is taken where a library rounds products of other shapes otherwise (JAX).

    Returns
    -------
    scores, indices
        (B, k) each, scores falling along a row, equal scores by rising index. Where scores tie at the k-th place, the
        lowest indices are taken. ``scores`` is differentiable in ``z`` on libraries that differentiate.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    xp = check.together(z=z, bank=bank)
    check.bank(bank)
    check.embeddings(z, bank)
    k = check.count("k", k, bank.shape[0], "the rows of the bank")
    check.count("budget", budget)
    scores, indices = kernels.nearest(kernels.like(z, bank), bank, k, budget)
    order = xp.argsort(scores, axis=1, descending=True, stable=True)
    return kernels.along(scores, order), kernels.along(indices, order)


def close(labels: Array, indices: Array, neighbours: Array, *, combine: str = "union") -> Array:
    """Which of the neighbours are close: in the same cluster as the sample itself.

    Parameters
    ----------
    labels
        (H, N) integers, one row for each clustering; negative means no cluster.
    indices
        (B,) dataset index of each sample.
    neighbours
        (B, k) bank indices, as :func:`nearest` gives them.
    combine
        ``"union"``: the same cluster in at least one clustering (the paper). ``"intersection"``: in every one.
        ``"majority"``: in at least half of them.

    Returns
    -------
    mask
        (B, k) bool.

    Raises
    ------
    ShapeError, KindError, RangeError
    """
    check.together(labels=labels, indices=indices, neighbours=neighbours)
    check.labels(labels, labels.shape[-1] if labels.ndim else 0)
    check.indices("indices", indices, (None,), labels.shape[1])
    check.indices("neighbours", neighbours, (indices.shape[0], None), labels.shape[1])
    check.choice("combine", combine, COMBINATIONS)
    return close_mask(labels, indices, neighbours, combine)


def close_mask(labels: Array, indices: Array, neighbours: Array, combine: str) -> Array:
    """:func:`close` for arguments that were checked already."""
    return verdict(labels, indices, neighbours, combine)[0]


def verdict(labels: Array, indices: Array, neighbours: Array, combine: str) -> tuple[Array, Array | None]:
    """:func:`close_mask`, and with ``"majority"`` which are undecided: close in a clustering, though in too few.

    The undecided would be repelled for want of a vote, so an objective leaves them out of the background.
    """
    many = labels.shape[0]
    votes = kernels.votes(labels, indices, neighbours)
    if combine != "majority":
        return votes >= (1 if combine == "union" else many), None
    mask = votes >= (many + 1) // 2
    return mask, (votes > 0) & ~mask
