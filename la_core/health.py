"""Is a run well? What its bank, its clusterings and its close neighbours look like, and what to do where it is not.

One record an epoch, of numbers that need no class; and warnings in plain sentences, each with a remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from la_core import check, kernels, shards
from la_core.bank import unit
from la_core.data import batches
from la_core.evaluate import nmi
from la_core.kernels import BUDGET, Array
from la_core.neighbours import COMBINATIONS, close, close_mask, nearest
from la_core.randomness import generator
from la_core.run import Run
from la_core.settings import Settings
from la_core.spaces import array_namespace, device

SAMPLE = 48
"""Samples that are embedded anew for a record, the same through the whole run. A mean over them is good to a few
hundredths, and a record costs 1 to 2 % of an epoch of 1438 small images."""

COLLAPSED_SIMILARITY = 0.9
"""Mean cosine between two bank rows. Spread rows have 0; at 0.9 all lie within some 18 degrees of one direction, and at
temperature 0.07 the whole softmax has little more than a factor of 4 to tell them apart."""
COLLAPSED_RANK = 0.05
"""Share of the bank's dimensions that its effective rank reaches, from 0 (one direction) to 1 (all alike). A good run
on digits has 0.2, a collapsed one 0.04."""
WITHOUT_CLOSE = 0.25
"""Share of a batch with no close neighbour in its background, which has zero gradient: a quarter of the work for
nothing. A good run on digits has under 0.01, a collapsed one 0.3."""
PER_CLUSTER = (25, 150)
"""Samples per cluster (N / m). Fewer: a cluster is little more than its sample, and Local Aggregation becomes Instance
Discrimination. More: unlike things are called close. The paper's ImageNet settings have 43 to 128."""
IDENTICAL = 0.95
"""Agreement of two clusterings of a round, above chance. Their union is then worth no more than one of them."""
CERTAIN = 0.999
"""Agreement by chance above which there is nothing left to tell."""
CHANGING = 0.3
"""Agreement of the labels of two successive rounds, above chance. Below, most of what was close an epoch ago is so no
more. A good run on digits has 0.6 to 0.75, a collapsed one 0.28."""


# Measures ------------------------------------------------------------------------------------------------------------


def moments(bank: Array) -> tuple[Array, Array]:
    """Sum of the rows and Gram matrix: ``(N, D) -> (D,), (D, D)``, on the bank's device, in N D^2 operations.

    Raises
    ------
    ShapeError, KindError
    """
    check.together(bank=bank)
    check.bank(bank)
    total, gram = shards.sums(_sums, bank)
    return total, gram


def _sums(rows: Array) -> tuple[Array, Array]:
    xp = array_namespace(rows)
    if not kernels.apart(rows):
        return xp.sum(rows, axis=0), xp.matrix_transpose(rows) @ rows
    total: Any = 0.0
    gram: Any = 0.0
    for some in kernels.read_in_blocks(rows):
        block = kernels.wide(rows[some, :])
        total, gram = total + xp.sum(block, axis=0), gram + xp.matrix_transpose(block) @ block
    return total, gram


def effective_rank(gram: np.ndarray) -> float:
    """Effective rank of a matrix from its Gram matrix (D, D): between 1 and D; 0 where all is zero.

    The exponential of the entropy of the singular values, taken as a distribution (Roy and Vetterli, EUSIPCO 2007).
    Singular values that rounding could have made are taken for zero.
    """
    squares = np.linalg.eigvalsh(gram)
    squares = squares[squares > len(gram) * np.finfo(gram.dtype).eps * squares[-1]].astype(np.float64)
    if not squares.size:
        return 0.0
    p = np.sqrt(squares)
    p /= p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def mean_similarity(total: np.ndarray, gram: np.ndarray, n: int) -> float:
    """Mean dot product over all pairs of two different rows, from their :func:`moments`; 1 for a single row.

    ``(|sum_i b_i|^2 - sum_i |b_i|^2) / (N (N - 1))``: no pair is ever formed.
    """
    if n < 2:
        return 1.0
    square = float(np.sum(total.astype(np.float64) ** 2))
    return (square - float(np.trace(gram, dtype=np.float64))) / (n * (n - 1))


def close_sizes(labels: Array, indices: Array, *, combine: str = "union", budget: int = BUDGET) -> Array:
    """Members of C over the whole bank, the sample itself among them: ``(H, N), (S,) -> (S,)`` integers.

    Raises
    ------
    ShapeError, KindError, RangeError
    """
    xp = check.together(labels=labels, indices=indices)
    n = labels.shape[-1] if labels.ndim else 0
    check.labels(labels, n)
    check.indices("indices", indices, (None,), n)
    check.choice("combine", combine, COMBINATIONS)
    check.count("budget", budget)
    everyone = xp.arange(n, dtype=indices.dtype, device=device(indices))[None, :]
    sizes = []
    for some in kernels.blocks(indices.shape[0], budget // (24 * n)):
        mine = indices[some]
        mask = close_mask(labels, mine, xp.broadcast_to(everyone, (mine.shape[0], n)), combine)
        sizes.append(xp.sum(xp.astype(mask, indices.dtype), axis=1))
    return xp.concat(sizes)


def cluster_sizes(labels: np.ndarray, n_clusters: int | Sequence[int] | None = None) -> np.ndarray:
    """Members of every cluster of every clustering, one after the other: ``(H, N) -> (sum of m,)``.

    ``n_clusters`` is m, or one for each clustering; by default only clusters that have members count. A negative label
    means none.
    """
    held = [row[row >= 0] for row in labels]
    if n_clusters is None:
        return np.concatenate([np.unique(row, return_counts=True)[1] for row in held])
    many = n_clusters if isinstance(n_clusters, Sequence) else [n_clusters] * len(labels)
    return np.concatenate([np.bincount(row, minlength=m) for row, m in zip(held, many, strict=True)])


def agreement(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Mean NMI over pairs of labellings (N,), and what of it is chance: NMI with the second labelling shuffled.

    Chance alone makes NMI large where clusters are many and small: 0.6 for the paper's 30 000 clusters. ``(nmi -
    chance) / (1 - chance)`` is 0 for unrelated labellings and 1 for equal ones (Vinh et al., JMLR 2010, with the
    expectation estimated by one shuffle for each two numbers of clusters).
    """
    order = generator(0, "chance").permutation(len(pairs[0][0]))
    once = {id(x): x for pair in pairs for x in pair}  # one labelling is in many pairs
    many = {key: len(np.unique(x)) for key, x in once.items()}
    chance: dict[tuple[int, int], float] = {}
    both = []
    for a, b in pairs:
        sizes = many[id(a)], many[id(b)]
        if sizes not in chance:
            chance[sizes] = nmi(a, b[order])
        both.append((nmi(a, b), chance[sizes]))
    mean, by_chance = np.mean(both, axis=0)
    return float(mean), float(by_chance)


# Record --------------------------------------------------------------------------------------------------------------


class Health:
    """Measures a run at the end of an epoch, and says once what is wrong with it."""

    def __init__(self) -> None:
        self.labels: np.ndarray | None = None
        """(H, N) labels at the last record, with which the next round is compared."""
        self.said: set[str] = set()
        """Short names of what was found wrong in the last record."""

    def record(self, run: Run, *, brought: bool = False) -> dict[str, Any]:
        """What the run looks like: numbers, lists and None only, as in ``metrics.jsonl``.

        Labels that were ``brought`` along have as many clusters as have members, whatever the settings say.

        ``rows``, ``dim``, ``effective_rank``, ``mean_similarity``
            Of the bank.
        ``staleness``
            ``cosine``: mean cosine between bank rows and fresh embeddings of the same samples, seen in evaluation
            view; ``age_mean``, ``age_max``: steps since a row was written.
        ``clusters``, from the first clustering on
            Members of a cluster: ``quantiles`` (least, quarter, half, three quarters, most); ``n``; ``empty``; and
            ``histogram``, of clusters with 0, 1, 2-3, 4-7, ... members; ``brought``, whether the labels were.
        ``close``, from the first clustering on
            C of the chosen samples: ``quantiles`` of its size over the whole bank; ``in_background``, the mean share
            of it that lies in B; ``without``, the share of samples that have none of it there.
        ``agreement``, from the first clustering on
            NMI ``within`` the H clusterings of this round (None where H = 1), ``between`` this round and the one at
            the last record (None where there was none), each with what ``chance`` gives.
        """
        host = run.backend.to_host
        n, dim = run.state.bank.shape
        total, gram = (host(x) for x in moments(run.state.bank))
        record: dict[str, Any] = {
            "rows": n,
            "dim": dim,
            "effective_rank": _short(effective_rank(gram)),
            "mean_similarity": _short(mean_similarity(total, gram, n)),
        }
        chosen = np.sort(generator(run.settings.seed, "health").choice(n, min(n, SAMPLE), replace=False))
        rows = run.backend.asarray(chosen)
        fresh = run.embed(run.data.part(chosen)).embeddings.astype(run.settings.dtype, copy=False)
        z = unit(run.backend.asarray(fresh))
        record["staleness"] = self._staleness(run, rows, z)
        if run.state.labels is not None:
            record["close"] = self._close(run, rows, z)
            labels = host(run.state.labels)
            sizes = cluster_sizes(labels, None if brought else run.settings.n_clusters)
            record["clusters"] = {
                "n": sizes.size,
                "empty": int((sizes == 0).sum()),
                "quantiles": _quantiles(sizes),
                "histogram": np.bincount(np.ceil(np.log2(sizes + 1)).astype(int)).tolist(),
                "brought": brought,
            }
            record["agreement"] = self._agreement(labels)
            self.labels = labels
        return record

    def warnings(self, record: Mapping[str, Any], settings: Settings, n: int) -> list[str]:
        """What :func:`warnings` finds in a line of metrics, save what was found in the line before as well."""
        found = warnings(record, settings, n)
        new = [sentence for name, sentence in found.items() if name not in self.said]
        self.said = set(found)
        return new

    def _staleness(self, run: Run, rows: Array, z: Array) -> dict[str, float]:
        xp = array_namespace(z)
        cosine = xp.vecdot(kernels.wide(kernels.rows_at(run.state.bank, rows)), z)
        order = batches(len(run.data), run.settings.batch(run.epoch), seed=run.settings.seed, epoch=run.epoch)
        ages = np.repeat(np.arange(len(order))[::-1], [len(b) for b in order])
        return {
            "cosine": _short(float(xp.mean(cosine))),
            "age_mean": _short(float(ages.mean())),
            "age_max": int(ages.max()),
        }

    def _close(self, run: Run, rows: Array, z: Array) -> dict[str, Any]:
        settings, state = run.settings, run.state
        assert settings.n_background is not None  # resolved
        assert state.labels is not None
        _, found = nearest(z, state.bank, settings.n_background, budget=settings.budget)
        inside = run.backend.to_host(close(state.labels, rows, found, combine=settings.combine)).sum(axis=1)
        sizes = run.backend.to_host(close_sizes(state.labels, rows, combine=settings.combine, budget=settings.budget))
        return {
            "quantiles": _quantiles(sizes),
            "in_background": _short(float((inside / np.maximum(sizes, 1)).mean())),
            "without": _short(float((inside == 0).mean())),
        }

    def _agreement(self, labels: np.ndarray) -> dict[str, float | None]:
        before = self.labels
        names = ("within", "within_chance", "between", "between_chance")
        facts: dict[str, float | None] = dict.fromkeys(names)
        if len(labels) > 1:
            facts["within"], facts["within_chance"] = map(_short, agreement(list(combinations(labels, 2))))
        if before is not None and before.shape == labels.shape and not np.array_equal(before, labels):
            pairs = list(zip(before, labels, strict=True))
            facts["between"], facts["between_chance"] = map(_short, agreement(pairs))
        return facts


# Warnings ------------------------------------------------------------------------------------------------------------


def warnings(record: Mapping[str, Any], settings: Settings, n: int) -> dict[str, str]:
    """What is wrong, and what to do, in plain sentences by a short name; empty where all is well.

    Parameters
    ----------
    record
        A line of metrics, with ``"health"`` as :meth:`Health.record` gives it; without, nothing is found.
    settings
        Resolved: of the run.
    n
        Samples of the run.
    """
    if "health" not in record:
        return {}
    found = ((name, rule(record, settings, n)) for name, rule in _RULES.items())
    return {name: sentence for name, sentence in found if sentence}


def above_chance(health: Mapping[str, Any], which: str) -> float | None:
    """Agreement ``"within"`` a round or ``"between"`` two: 0 at chance, 1 for equal labels.

    None where it was not measured, or where chance alone makes all agree, as with a cluster for each sample.
    """
    found = health.get("agreement", {})
    value, chance = found.get(which), found.get(f"{which}_chance")
    return None if value is None or chance > CERTAIN else float((value - chance) / (1.0 - chance))


def _collapsed(record: Mapping[str, Any], settings: Settings, n: int) -> str | None:
    mean = record["health"]["mean_similarity"]
    if n < 2 or mean <= COLLAPSED_SIMILARITY or _early(record, settings):
        return None
    return (
        f"The embeddings have collapsed: two of them have a cosine of {mean:.2f} on average, so all lie in nearly one "
        f"direction. Start again with a lower learning_rate (it is {settings.learning_rate:g}) or a longer warm-up, "
        f"and see that two views of a sample still show the same thing."
    )


def _few_dimensions(record: Mapping[str, Any], settings: Settings, n: int) -> str | None:
    rank, most = record["health"]["effective_rank"], min(record["health"]["dim"], n)
    if most < 2 or rank - 1 >= COLLAPSED_RANK * (most - 1) or _early(record, settings):
        return None
    return (
        f"The embeddings use {rank:.1f} of {most} dimensions (effective rank of the bank). Start again with a lower "
        f"learning_rate (it is {settings.learning_rate:g}) or a lower temperature (it is {settings.temperature:g}), "
        f"or give the encoder fewer outputs if this is all that the data hold."
    )


def _without_close(record: Mapping[str, Any], settings: Settings, n: int) -> str | None:
    share = record.get("without_close", 0.0)
    if share <= WITHOUT_CLOSE:
        return None
    return (
        f"{share:.0%} of the samples have no close neighbour in their background and learn nothing. Raise n_background "
        f"(it is {settings.n_background} of {n}), make the clusters larger by a lower n_clusters (it is "
        f"{settings.n_clusters}), or warm up for more than {settings.warmup_epochs} epochs."
    )


def _cluster_size(record: Mapping[str, Any], settings: Settings, n: int) -> str | None:
    low, high = PER_CLUSTER
    sizes = settings.n_clusters if isinstance(settings.n_clusters, tuple) else (settings.n_clusters,)
    wrong = [n / m for m in sizes if m and not low <= n / m <= high]
    clusters = record["health"].get("clusters")
    if not wrong or n < low or clusters is None or clusters.get("brought"):
        return None
    return (
        f"n_clusters is {settings.n_clusters} for {n} samples, about {wrong[0]:.0f} in a cluster; Local Aggregation "
        f"is at its best with {low} to {high}. Set n_clusters between {-(-n // high)} and {n // low}."
    )


def _identical(record: Mapping[str, Any], settings: Settings, n: int) -> str | None:
    above = above_chance(record["health"], "within")
    if above is None or above <= IDENTICAL:
        return None
    return (
        f"The {settings.n_clusterings} clusterings of a round are nearly identical (agreement {above:.2f}, where 0 is "
        f"chance and 1 equal): one would do as well. Lower n_clusterings, or give each its own n_clusters."
    )


def _changing(record: Mapping[str, Any], settings: Settings, n: int) -> str | None:
    above = above_chance(record["health"], "between")
    if above is None or above >= CHANGING:
        return None
    return (
        f"The clusters of this round have little to do with those of the round before (agreement {above:.2f}, where 0 "
        f"is chance and 1 equal). Warm up for more than {settings.warmup_epochs} epochs, lower the learning_rate (it "
        f"is {settings.learning_rate:g}), or raise recluster_every (it is {settings.recluster_every})."
    )


_RULES: dict[str, Callable[[Mapping[str, Any], Settings, int], str | None]] = {
    "collapsed": _collapsed,
    "few dimensions": _few_dimensions,
    "without close neighbours": _without_close,
    "cluster size": _cluster_size,
    "identical clusterings": _identical,
    "changing clusters": _changing,
}


def _early(record: Mapping[str, Any], settings: Settings) -> bool:
    """In the first half of the warm-up, where many a healthy run lies in one direction before it spreads."""
    return bool(2 * record["epoch"] <= settings.warmup_epochs)


def _quantiles(sizes: np.ndarray) -> list[float]:
    return [float(q) for q in np.quantile(sizes if sizes.size else [0], [0, 0.25, 0.5, 0.75, 1])]


def _short(x: float) -> float:
    return round(x, 4)
