"""What an encoder makes of samples, and how good that is: weighted nearest-neighbour classification."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from la_core import check, kernels
from la_core.bank import unit
from la_core.data import Samples, load
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError
from la_core.kernels import BUDGET, Array
from la_core.protocol import Backend, Encoder
from la_core.views import View


class Embedded(NamedTuple):
    """Samples as an encoder sees them, on the host, in order of their index."""

    embeddings: np.ndarray
    """(N, D), not normalised."""
    features: np.ndarray
    """(N, F), the layer before."""


def embed(
    encoder: Encoder, backend: Backend, data: Samples, view: View, batch_size: int = 256, dtype: str = "float32"
) -> Embedded:
    """Embeddings and features of the evaluation view of every sample.

    Raises
    ------
    NotFiniteError
        The encoder gives NaN or infinity: names the first such sample.
    """
    parts = []
    for rows in kernels.blocks(len(data), batch_size):
        batch = load(data, range(rows.start, rows.stop), view, None).astype(dtype, copy=False)
        z, features = encoder.apply(backend.asarray(batch))
        parts.append((backend.to_host(z), backend.to_host(features)))
    embedded = Embedded(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    bad = np.flatnonzero(~np.isfinite(embedded.embeddings).all(axis=1))
    if bad.size:
        raise NotFiniteError(
            f"the encoder gives NaN or infinity for {bad.size} of {len(data)} samples, first for sample {bad[0]}"
        )
    return embedded


def knn(
    embeddings: Array,
    labels: Array,
    queries: Array,
    *,
    k: int = 200,
    temperature: float = 0.07,
    own: Array | None = None,
    budget: int = BUDGET,
) -> Array:
    """Classify queries by their k nearest labelled embeddings, each voting with weight exp(cosine / temperature).

    The protocol of Wu et al. (2018), section 3.4. Both sides are made unit length here.

    Parameters
    ----------
    embeddings
        (N, D) float32 or float64: the labelled side, for example the bank or re-embedded training samples.
    labels
        (N,) class of each, integers of at least 0.
    queries
        (Q, D).
    k
        Neighbours that vote: 1 to N (to N - 1 with ``own``). The protocol's 200 is for large N.
    temperature
        Above 0.
    own
        (Q,) row of ``embeddings`` that is the query itself and must not vote, for leave-one-out.
    budget
        Bytes of temporary memory; queries are taken in blocks.

    Returns
    -------
    predicted
        (Q,) class of each query; of equal votes the lowest class.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    extra = {} if own is None else {"own": own}
    xp = check.together(embeddings=embeddings, labels=labels, queries=queries, **extra)
    check.concrete("knn", embeddings=embeddings, labels=labels, queries=queries, **extra)
    check.bank(embeddings)
    check.finite("embeddings", embeddings)
    check.embeddings(queries, embeddings)
    n = embeddings.shape[0]
    if labels.shape != (n,):
        raise ShapeError(f"labels must have shape ({n},), one class for each embedding; got {tuple(labels.shape)}")
    if not xp.isdtype(labels.dtype, "integral"):
        raise KindError(f"labels must be integers; got dtype {labels.dtype}")
    if int(xp.min(labels)) < 0:
        raise RangeError(f"labels must be at least 0; got {int(xp.min(labels))}")
    spare = 0 if own is None else 1
    k = check.count("k", k, n - spare, "the embeddings that may vote")
    temperature = check.number("temperature", temperature, 0.0, open_low=True)
    check.count("budget", budget)
    if own is not None:
        check.indices("own", own, (queries.shape[0],), n)

    classes = int(xp.max(labels)) + 1
    rows = unit(embeddings)
    lines = unit(xp.astype(queries, rows.dtype, copy=False))
    predicted = []
    for some in kernels.blocks(lines.shape[0], budget // (32 * (k + spare) + 16 * classes)):
        scores, neighbours = kernels.nearest(lines[some, :], rows, k + spare, budget)
        votes = xp.exp((scores - xp.max(scores, axis=1, keepdims=True)) / temperature)
        if own is not None:
            votes = _without(votes, scores, neighbours == own[some][:, None])
        predicted.append(xp.argmax(_tally(votes, neighbours, labels, classes), axis=1))
    return xp.astype(xp.concat(predicted), labels.dtype, copy=False)


def _without(votes: Array, scores: Array, mine: Array) -> Array:
    """Votes of k of k + 1 neighbours: without the query itself or, where it is not among them, without the last."""
    xp = array_namespace(votes)
    last = xp.argmin(scores, axis=1)[:, None]
    columns = xp.arange(votes.shape[1], dtype=last.dtype, device=device(votes))[None, :]
    drop = xp.where(xp.any(mine, axis=1, keepdims=True), mine, columns == last)
    return xp.where(drop, xp.zeros_like(votes), votes)


def _tally(votes: Array, neighbours: Array, labels: Array, classes: int) -> Array:
    """Sum of the votes for each class: (Q, k) -> (Q, classes), as one segment sum and not through a one-hot."""
    xp = array_namespace(votes)
    q, k = votes.shape
    label = xp.astype(xp.take(labels, xp.reshape(neighbours, (-1,))), neighbours.dtype, copy=False)
    line = xp.repeat(xp.arange(q, dtype=neighbours.dtype, device=device(votes)), k)
    sums = kernels.segment_sum(xp.reshape(votes, (-1, 1)), line * classes + label, q * classes)
    return xp.reshape(sums, (q, classes))
