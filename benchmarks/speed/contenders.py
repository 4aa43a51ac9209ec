"""Who takes part: for each task Local Aggregation's own code, and what people would use instead.

A contender is prepared once from a problem and its inputs, outside of the time; its ``run`` is timed; its ``answer`` is
made from what the run gave, again outside of the time, and is compared between the contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import numpy as np

import la_core
from la_core import kernels
from la_core.clusters import TOLERANCE
from speed.data import Inputs, Problem

Answer: TypeAlias = dict[str, np.ndarray]
TEMPERATURE = 0.07
BLOCK = 2**20
"""Scores of a block of the blocked product: 4 MB."""


class Work(NamedTuple):
    """A contender, ready to run."""

    run: Callable[[int], Any]
    """Takes the number of the repeat, which seeds whatever is random."""
    answer: Callable[[Any], Answer]


@dataclass(frozen=True)
class Contender:
    """A name, and how the work is prepared."""

    name: str
    prepare: Callable[[Problem, Inputs], Work]
    against: str | None = None
    """Which of our own contenders it is compared with. None: it is one of our own."""
    package: str = "numpy"
    """Without it, it cannot take part."""
    one_by_one: bool = False
    """Its clusterings have nothing in common: a run makes one, and its time counts as often as there are any."""

    @property
    def present(self) -> bool:
        """Whether it can take part here."""
        return find_spec(self.package) is not None

    @property
    def compiles(self) -> bool:
        """Whether its first run is longer for that."""
        return self.package == "jax"


# Exact search --------------------------------------------------------------------------------------------------------


def sorted_scores(scores: Any) -> Answer:
    """The set of the k best scores."""
    return {"scores": np.sort(np.asarray(scores), axis=1)}


def search(problem: Problem, x: Inputs, library: str = "torch") -> Work:
    """Ours, as a step calls it: the set and not its order."""
    backend = la_core.backend(library)
    z, bank = backend.asarray(x["z"]), backend.asarray(x["bank"])

    def run(_: int) -> Any:
        scores, indices = kernels.nearest(z, bank, problem.k)
        return scores, waited(indices)

    return Work(run, lambda found: sorted_scores(found[0]))


def search_float32(problem: Problem, x: Inputs) -> Work:
    """Ours with all products in float32, where it would make them in bfloat16."""
    from la_core.backends.torch import screen

    run, answer = search(problem, x)

    def without_screen(repeat: int) -> Any:
        with mock.patch.object(screen, "pays", return_value=False):
            return run(repeat)

    return Work(without_screen, answer)


def waited(x: Any) -> Any:
    """The same, when all of it is there: JAX gives an array before it is computed."""
    for part in x if isinstance(x, tuple) else (x,):
        if hasattr(part, "block_until_ready"):
            part.block_until_ready()
    return x


def search_torch(problem: Problem, x: Inputs) -> Work:
    """Product and selection."""
    import torch

    z, bank = torch.from_numpy(x["z"]), torch.from_numpy(x["bank"])
    return Work(lambda _: torch.topk(z @ bank.T, problem.k, sorted=False).values, sorted_scores)


def search_numpy(problem: Problem, x: Inputs) -> Work:
    """Product and selection."""
    z, bank = x["z"], x["bank"]

    def run(_: int) -> np.ndarray:
        scores = z @ bank.T
        chosen = np.argpartition(scores, len(bank) - problem.k, axis=1)[:, len(bank) - problem.k :]
        return np.take_along_axis(scores, chosen, axis=1)

    return Work(run, sorted_scores)


def search_jax(problem: Problem, x: Inputs) -> Work:
    """Product and selection, compiled together."""
    import jax

    z, bank = jax.numpy.array(x["z"]), jax.numpy.array(x["bank"])
    found = jax.jit(lambda z, bank: jax.lax.top_k(z @ bank.T, problem.k))
    return Work(lambda _: waited(found(z, bank)[0]), sorted_scores)


def search_faiss(problem: Problem, x: Inputs) -> Work:
    """The flat index, filled before."""
    import faiss

    index = faiss.IndexFlatIP(x["bank"].shape[1])
    index.add(x["bank"])
    return Work(lambda _: index.search(x["z"], problem.k)[0], sorted_scores)


def product(problem: Problem, x: Inputs) -> Work:
    """One product of the whole shape, into memory that is there already."""
    import torch

    z, bank = torch.from_numpy(x["z"]), torch.from_numpy(x["bank"])
    scores = torch.zeros(len(z), len(bank))
    return Work(
        lambda _: torch.mm(z, bank.T, out=scores), lambda s: sorted_scores(s.topk(problem.k, sorted=False).values)
    )


def blocked_product(problem: Problem, x: Inputs) -> Work:
    """The same numbers, a block of the bank at a time into one small buffer. It keeps none, and so has no answer."""
    import torch

    z, bank = torch.from_numpy(x["z"]), torch.from_numpy(x["bank"])
    blocks = bank.split(max(1, BLOCK // len(z)))
    room = torch.zeros(len(z) * len(blocks[0]))

    def run(_: int) -> None:
        for rows in blocks:
            torch.mm(z, rows.T, out=room[: len(z) * len(rows)].view(len(z), len(rows)))

    return Work(run, lambda _: {})


# The whole step ------------------------------------------------------------------------------------------------------


def step(problem: Problem, x: Inputs, library: str = "torch") -> Work:
    """Ours, as a run makes it: loss and cotangent in one evaluation, then the update."""
    backend = la_core.backend(library)
    z, indices = backend.asarray(x["z"]), backend.asarray(x["indices"])
    state = la_core.State(backend.asarray(x["bank"]), backend.asarray(x["labels"]))
    settings = {"n_background": problem.k, "temperature": TEMPERATURE}
    objective = backend.compile(partial(la_core.local_aggregation_and_cotangent, **settings))
    update = backend.compile(la_core.update, consumes=(0,))

    def run(_: int) -> Any:
        nonlocal state
        loss, cotangent = objective(z, state, indices)
        state = update(state, indices, z)
        return waited((loss, cotangent, state.bank))

    return Work(run, partial(of_step, indices=x["indices"]))


def step_module(problem: Problem, x: Inputs) -> Work:
    """Ours, as a module in a loop of the user's own: autograd calls for the cotangent and for the update."""
    import torch

    from la_core.backends.torch import LocalAggregation

    z, indices = torch.from_numpy(x["z"]), torch.from_numpy(x["indices"])
    n, dim = x["bank"].shape
    criterion = LocalAggregation(n, dim, n_background=problem.k, temperature=TEMPERATURE)
    criterion.bank, criterion.labels = torch.from_numpy(x["bank"]), torch.from_numpy(x["labels"])

    def run(_: int) -> Any:
        output = z.clone().requires_grad_()
        loss = criterion(output, indices)
        loss.backward()
        return loss.detach(), output.grad, criterion.bank

    return Work(run, partial(of_step, indices=x["indices"]))


def step_in_jax(problem: Problem, x: Inputs) -> Work:
    """Ours, as a loss in a loop of the user's own, which JAX differentiates; the update compiled by itself."""
    import jax

    from la_core.backends.jax import local_aggregation_loss

    z, indices = (jax.numpy.array(x[name]) for name in ("z", "indices"))
    state = la_core.State(*(jax.numpy.array(x[name]) for name in ("bank", "labels")))
    loss = partial(local_aggregation_loss, n_background=problem.k, temperature=TEMPERATURE)
    differentiated = jax.jit(jax.value_and_grad(loss))
    update = jax.jit(la_core.update, donate_argnums=0)

    def run(_: int) -> Any:
        nonlocal state
        value, cotangent = differentiated(z, *state, indices)
        state = update(state, indices, z)
        return waited((value, cotangent, state.bank))

    return Work(run, partial(of_step, indices=x["indices"]))


def step_published(problem: Problem, x: Inputs) -> Work:
    """As in the published code."""
    import torch
    from published import Published

    z, indices = torch.from_numpy(x["z"]), torch.from_numpy(x["indices"])
    bank, labels = torch.from_numpy(x["bank"]), torch.from_numpy(x["labels"].astype(np.int64))
    objective = Published(bank, labels, problem.k, TEMPERATURE)
    return Work(lambda _: (*objective.step(z, indices), objective.bank), partial(of_step, indices=x["indices"]))


def of_step(found: tuple[Any, Any, Any], indices: np.ndarray) -> Answer:
    """Mean loss, cotangent, and the rows of the batch as they are after the update."""
    loss, cotangent, bank = (np.asarray(part) for part in found)
    return {"loss": loss.mean(), "cotangent": cotangent, "rows": bank[indices]}


# Clustering ----------------------------------------------------------------------------------------------------------


def clusters(problem: Problem, x: Inputs, tolerance: float = TOLERANCE, warm: bool = False) -> Work:
    """Ours. Warm: on from the labels of the bank as it was before it drifted."""
    backend = la_core.backend("torch")
    sizes = {"n_clusters": problem.m, "n_clusterings": problem.clusterings, "n_iter": problem.iterations}
    start = la_core.cluster(backend.asarray(x["before"]), seed=0, **sizes).labels if warm else None
    bank = backend.asarray(x["bank"])

    def run(repeat: int) -> Any:
        return la_core.cluster(bank, seed=repeat, tolerance=tolerance, start=start, **sizes).labels

    return Work(run, partial(of_clusters, bank=x["bank"]))


def clusters_faiss(problem: Problem, x: Inputs, kind: str = "Clustering") -> Work:
    """Full Lloyd by faiss from random rows, and the labels of the final centroids, as the published code does."""
    import faiss

    bank = x["bank"]
    dim = bank.shape[1]

    def one(seed: int) -> np.ndarray:
        settings = faiss.SuperKMeansParameters() if kind == "SuperKMeans" else faiss.ClusteringParameters()
        settings.niter, settings.seed = problem.iterations, 1 + seed
        settings.max_points_per_centroid, settings.min_points_per_centroid = 10**7, 1
        index = faiss.IndexFlatL2(dim)
        job = getattr(faiss, kind)(dim, problem.m, settings)
        if kind == "SuperKMeans":
            job.train(bank)
            index.add(faiss.vector_to_array(job.centroids).reshape(problem.m, dim))
        else:
            job.train(bank, index)  # which holds the final centroids after it
        labels: np.ndarray = index.search(bank, 1)[1][:, 0]
        return labels

    return Work(partial(each, one, problem.clusterings), partial(of_clusters, bank=bank))


def clusters_sklearn(problem: Problem, x: Inputs) -> Work:
    """Full Lloyd by scikit-learn from random rows."""
    from sklearn.cluster import KMeans

    settings = {"n_init": 1, "init": "random", "max_iter": problem.iterations, "algorithm": "lloyd", "tol": 0.0}

    def one(seed: int) -> np.ndarray:
        labels: np.ndarray = KMeans(problem.m, random_state=seed, **settings).fit(x["bank"]).labels_
        return labels

    return Work(partial(each, one, problem.clusterings), partial(of_clusters, bank=x["bank"]))


def each(one: Callable[[int], np.ndarray], clusterings: int, repeat: int) -> np.ndarray:
    """Labels (H, N) of clusterings one after the other, each from a seed of its own."""
    return np.stack([one(repeat * clusterings + h) for h in range(clusterings)])


def of_clusters(labels: Any, bank: np.ndarray) -> Answer:
    """The mean inertia of the clusterings, in double precision, about the means of the rows of each cluster."""
    return {"inertia": np.asarray(np.mean([inertia(bank, row) for row in np.asarray(labels)]))}


def inertia(bank: np.ndarray, labels: np.ndarray) -> float:
    """``sum |x|^2 - sum over clusters |sum of rows|^2 / rows``, some columns at a time."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)

    def of_columns() -> Iterator[float]:
        for columns in kernels.blocks(bank.shape[1], 16):
            x = bank[order, columns].astype(np.float64)
            sums = np.add.reduceat(x, starts, axis=0)
            yield float(np.sum(x * x) - np.sum(sums * sums / counts[:, None]))

    return sum(of_columns())


# All -----------------------------------------------------------------------------------------------------------------

OURS = "la_core, torch"
TORCH_SEARCH = (
    Contender(OURS, search, package="torch"),
    Contender("torch matmul + topk", search_torch, OURS, "torch"),
)
SEARCH = (
    *TORCH_SEARCH,
    Contender("the same, float32 alone", search_float32, OURS, "torch"),
    Contender("faiss IndexFlatIP", search_faiss, OURS, "faiss"),
    Contender("one sgemm", product, OURS, "torch"),
    Contender("one sgemm, in blocks", blocked_product, OURS, "torch"),
    Contender("la_core, numpy", partial(search, library="numpy")),
    Contender("numpy matmul + argpartition", search_numpy, "la_core, numpy"),
    Contender("la_core, jax", partial(search, library="jax"), package="jax"),
    Contender("jax matmul + top_k", search_jax, "la_core, jax", "jax"),
)
STEP = (
    Contender(OURS, step, package="torch"),
    Contender("published arithmetic", step_published, OURS, "torch"),
    Contender("la_core as a torch module", step_module, OURS, "torch"),
    Contender("la_core, jax", partial(step, library="jax"), package="jax"),
    Contender("la_core in a loop of JAX", step_in_jax, "la_core, jax", "jax"),
)
FAISS = Contender("faiss Clustering", clusters_faiss, OURS, "faiss", one_by_one=True)
COLD = (Contender(OURS, clusters, package="torch"), FAISS)
SKLEARN = Contender("scikit-learn KMeans", clusters_sklearn, OURS, "sklearn", one_by_one=True)
FULL = Contender("la_core, full Lloyd", partial(clusters, tolerance=0.0), OURS, "torch", one_by_one=True)
SUPER = Contender("faiss SuperKMeans", partial(clusters_faiss, kind="SuperKMeans"), OURS, "faiss", one_by_one=True)
"""Made for data with structure; without, it takes minutes, and so does ours in full."""
CLUSTER = (*COLD, SKLEARN, FULL, SUPER)
WARM = (Contender(OURS, partial(clusters, warm=True), package="torch"), FAISS)
