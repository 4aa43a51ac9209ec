"""Queries with their nearest neighbours, chosen by how sure the neighbours are: the pictures of the paper."""

from __future__ import annotations

from typing import NamedTuple

from la_core import check
from la_core.evaluate.knn import bytes_per_query, checked_k, votes
from la_core.evaluate.search import labelled, numbered, search
from la_core.kernels import BUDGET, Array


class Gallery(NamedTuple):
    """M queries: successes from the surest down, then failures from the least sure up."""

    kind: tuple[str, ...]
    """(M,) ``"success"`` or ``"failure"``."""
    queries: Array
    """(M,) index of each query."""
    predicted: Array
    """(M,) class that its neighbours vote for."""
    confidence: Array
    """(M,) share of that class in all votes, in (0, 1]."""
    neighbours: Array
    """(M, k) rows of the labelled side, nearest first, equal cosines by rising index."""
    cosines: Array
    """(M, k)."""


def gallery(
    embeddings: Array,
    labels: Array,
    queries: Array,
    query_labels: Array,
    *,
    k: int = 10,
    n: int = 8,
    voters: int | None = None,
    temperature: float = 0.07,
    own: Array | None = None,
    budget: int = BUDGET,
) -> Gallery:
    """The ``n`` most confident successes and the ``n`` least confident failures, with their k nearest neighbours.

    Confidence is the share of the winning class in the votes of weighted kNN (:func:`la_core.evaluate.knn`):
    max_c V_c / sum_c V_c with V_c = sum over neighbours j of class c of exp(cosine_j / temperature). A query is a
    success where the winner is its class and a failure elsewhere. Of equal confidence the lowest index comes first.

    Parameters
    ----------
    embeddings
        (N, D) float32 or float64: the bank, or samples embedded anew; made unit length here, as are the queries.
    labels
        (N,) class of each row, integers of at least 0.
    queries
        (Q, D).
    query_labels
        (Q,) class of each query.
    k
        Neighbours to show.
    n
        Queries of each kind. Where there are fewer, all of them.
    voters
        Neighbours that vote; by default 200, or all there are.
    temperature
        Of the votes, at least 1e-4.
    own
        (Q,) row of ``embeddings`` that is the query itself, neither shown nor voting.
    budget
        Bytes of temporary memory beside the unit-length copy of either side.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    xp, bank, lines = labelled("gallery", embeddings, labels, queries, own, query_labels=query_labels)
    k = checked_k("k", k, embeddings, own)
    most = embeddings.shape[0] - (own is not None)
    voters = checked_k("voters", min(200, most) if voters is None else voters, embeddings, own)
    check.count("n", n)
    temperature = check.temperature(temperature)
    check.count("budget", budget)

    there, label = numbered(labels)
    n_classes = there.shape[0]
    winners, shares = [], []
    for _, scores, found in search(lines, bank, voters, own, bytes_per_query(voters, n_classes), budget):
        cast = votes(scores, found, label, n_classes, temperature)
        winners.append(xp.argmax(cast, axis=1))
        shares.append(xp.max(cast, axis=1) / xp.sum(cast, axis=1))
    predicted, confidence = xp.take(there, xp.concat(winners)), xp.concat(shares)

    right = predicted == query_labels
    n_right = int(xp.sum(xp.astype(right, xp.int32)))
    after_all = xp.full_like(confidence, 2.0)  # a share is at most 1
    sure = xp.argsort(xp.where(right, -confidence, after_all), stable=True)[: min(n, n_right)]
    unsure = xp.argsort(xp.where(right, after_all, confidence), stable=True)[: min(n, lines.shape[0] - n_right)]
    chosen = xp.concat([sure, unsure])

    shown = []
    mine = None if own is None else xp.take(own, chosen)
    for _, scores, found in search(xp.take(lines, chosen, axis=0), bank, k, mine, bytes_per_query(k, 1), budget):
        order = xp.argsort(scores, axis=1, descending=True, stable=True)
        shown.append((xp.take_along_axis(found, order, axis=1), xp.take_along_axis(scores, order, axis=1)))
    return Gallery(
        ("success",) * sure.shape[0] + ("failure",) * unsure.shape[0],
        chosen,
        xp.take(predicted, chosen),
        xp.take(confidence, chosen),
        *(xp.concat(column) for column in zip(*shown, strict=True)),
    )
