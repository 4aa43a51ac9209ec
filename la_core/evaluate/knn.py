"""Weighted nearest-neighbour classification: the protocol of Wu et al. (2018), section 3.4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from la_core import check, kernels
from la_core.errors import ShapeError
from la_core.evaluate.search import best, labelled, numbered, search
from la_core.kernels import BUDGET, Array
from la_core.spaces import array_namespace, device


def knn(
    embeddings: Array,
    labels: Array,
    queries: Array,
    *,
    k: int = 200,
    temperature: float = 0.07,
    own: Array | None = None,
    budget: int = BUDGET,
    as_it_is: bool = False,
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
        At least 1e-4.
    own
        (Q,) row of ``embeddings`` that is the query itself and must not vote, for leave-one-out.
    budget
        Bytes of temporary memory beside the unit-length copy of either side; queries are taken in blocks.
    as_it_is
        The embeddings are a bank, in any dtype that it may be stored in: its rows are of unit length, and no copy is
        made of them.

    Returns
    -------
    predicted
        (Q,) class of each query; of equal votes the lowest class.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    xp, bank, lines = labelled("knn", embeddings, labels, queries, own, as_it_is)
    k = checked_k("k", k, embeddings, own)
    temperature = check.temperature(temperature)
    check.count("budget", budget)
    there, label = numbered(labels)
    n_classes = there.shape[0]
    predicted = [
        xp.argmax(votes(scores, found, label, n_classes, temperature), axis=1)
        for _, scores, found in search(lines, bank, k, own, bytes_per_query(k, n_classes), budget)
    ]
    return xp.take(there, xp.concat(predicted))


@dataclass(frozen=True, eq=False)
class KnnGrid:
    """Weighted-kNN accuracy over k and temperature, with the protocol that it was measured by."""

    ks: tuple[int, ...]
    temperatures: tuple[float, ...]
    accuracy: np.ndarray
    """(len(ks), len(temperatures)) float64."""
    n_embeddings: int
    n_queries: int
    leave_one_out: bool
    source: str
    layer: str
    crop: str

    def __str__(self) -> str:
        out = ", the query itself left out" if self.leave_one_out else ""
        lines = [
            f"weighted kNN accuracy, votes exp(cosine / temperature): {self.n_queries} queries against "
            f"{self.n_embeddings} embeddings{out}",
            f"embeddings: {self.source}; layer: {self.layer}; crop: {self.crop}",
            "",
            f"{'temperature':>12}" + "".join(f"{t:>8g}" for t in self.temperatures),
            *(
                f"{f'k = {k}':>12}" + "".join(f"{x:>8.1%}" for x in row)
                for k, row in zip(self.ks, self.accuracy, strict=True)
            ),
        ]
        return "\n".join(lines)


def knn_grid(
    embeddings: Array,
    labels: Array,
    queries: Array,
    truth: Array,
    *,
    ks: Sequence[int] = (1, 10, 20, 50, 200),
    temperatures: Sequence[float] = (0.03, 0.07, 0.1, 0.2, 0.5),
    own: Array | None = None,
    budget: int = BUDGET,
    source: str = "not said",
    layer: str = "not said",
    crop: str = "not said",
) -> KnnGrid:
    """Accuracy of :func:`knn` for every k and every temperature, from one search for the largest k.

    Parameters
    ----------
    embeddings, labels, queries, own
        As for :func:`knn`.
    truth
        (Q,) class of each query, integers of at least 0.
    ks, temperatures
        As for :func:`knn`, at least one of each.
    budget
        Bytes of temporary memory beside the unit-length copy of either side. At N = 1 281 167, Q = 50 000, D = 128 in
        float32 these copies are 656 MB and 26 MB; with 1000 classes and k = 200 the default 64 MiB are scores of 910
        queries against 3687 rows at a time, and the candidates and votes of the 910, whatever N and Q are.
    source, layer, crop
        What the accuracy depends on beside k and temperature, in words for the record: where the embeddings come from
        (``"running bank"``, ``"re-embedded"``), of which layer, and from which crop of an image.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    xp, bank, lines = labelled("knn_grid", embeddings, labels, queries, own, truth=truth)
    if not len(ks) or not len(temperatures):
        raise ShapeError("ks and temperatures must have at least one value each")
    ks = tuple(checked_k("each of ks", k, embeddings, own) for k in ks)
    temperatures = tuple(check.temperature(t, "each of temperatures") for t in temperatures)
    check.count("budget", budget)
    there, label = numbered(labels)
    n_classes, most = there.shape[0], max(ks)
    right = np.zeros((len(ks), len(temperatures)), dtype=np.int64)
    for some, scores, found in search(lines, bank, most, own, bytes_per_query(most, n_classes), budget):
        for i, k in enumerate(ks):
            nearer, which = best(scores, found, k)
            for j, temperature in enumerate(temperatures):
                cast = votes(nearer, which, label, n_classes, temperature)
                predicted = xp.take(there, xp.argmax(cast, axis=1))
                right[i, j] += int(xp.sum(xp.astype(predicted == truth[some], xp.int32)))
    return KnnGrid(
        ks, temperatures, right / lines.shape[0], bank.shape[0], lines.shape[0], own is not None, source, layer, crop
    )


def checked_k(name: str, k: int, embeddings: Array, own: Array | None) -> int:
    """A number of neighbours that there are."""
    return check.count(name, k, embeddings.shape[0] - (own is not None), "the embeddings that may vote")


def bytes_per_query(k: int, n_classes: int) -> int:
    """What a query needs beside its scores: its neighbours, their votes and how these are sorted, and the sums."""
    return 64 * (k + 1) + 24 * n_classes


@kernels.Kernel
def votes(scores: Array, indices: Array, labels: Array, n_classes: int, temperature: float) -> Array:
    """Votes of the neighbours for each class, the nearest one's being 1: (Q, k), (Q, k), (N,) -> (Q, n_classes).

    Labels are places among the classes that occur (:func:`numbered`).
    """
    xp = array_namespace(scores)
    q, k = scores.shape
    weights = xp.exp((scores - xp.max(scores, axis=1, keepdims=True)) / temperature)
    label = xp.astype(xp.take(labels, xp.reshape(indices, (-1,))), indices.dtype, copy=False)
    line = xp.repeat(xp.arange(q, dtype=indices.dtype, device=device(scores)), k)
    # One segment sum and not a one-hot: (Q, k, n_classes) is never built.
    sums = kernels.segment_sum(xp.reshape(weights, (-1, 1)), line * n_classes + label, q * n_classes)
    return xp.reshape(sums, (q, n_classes))
