"""The public functions, as data: what they take, what they give, and how exactly it must be the same everywhere.

A deviation is relative: to the number itself or, where parts of a result cancel, to the size of these parts
(``Output.scale``).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import DECIDED, EVERY_KIND, TEMPERATURES, Case, cases, make_case

import la_core
from la_core import State, kernels, objectives

BANK, Z, INTEGRAL, BOOL = "as the bank", "as z", "integral", "bool"


@dataclass(frozen=True)
class Output:
    name: str
    kind: str
    scale: Callable[[Case], Any] = lambda case: 0.0
    """Size of the parts that the result is made of, broadcast against it."""
    when: Callable[[Case], bool] = lambda case: True
    """Whether every library must give this very answer: ids among near ties need not."""


@dataclass(frozen=True)
class Function:
    name: str
    call: Callable[..., tuple]
    arrays: Callable[[Case], dict[str, np.ndarray]]
    settings: Callable[[Case], dict[str, Any]]
    outputs: tuple[Output, ...]
    law: Callable[[Case, dict[str, np.ndarray]], None] = lambda case, results: None
    """What the results must satisfy by themselves."""
    suits: Callable[[Case], bool] = lambda case: True
    consumes: tuple[str, ...] = ()
    smallest: int = 1
    on_host: str = ""
    """Why the function cannot be traced as a whole, if it cannot."""

    def __str__(self):
        return self.name

    def example(self, seed, **sizes):
        """The first suitable case from ``seed`` on."""
        for attempt in range(1000):
            case = make_case(seed + attempt, **sizes)
            if self.suits(case) and self.suits(case.astype(np.float32)):
                return case
        raise AssertionError(f"{self}: no example of {sizes} has the margins that it needs")

    def examples(self, guise):
        """Of hypothesis: kinds, sizes and settings for ``guise``."""
        fixed = {"kind": st.sampled_from(EVERY_KIND)}
        if guise.costly:
            fixed |= ONE_SHAPE
        elif self.smallest > 1:
            fixed |= {"n": st.sampled_from([self.smallest, 33])}
        if guise.traces:
            fixed |= ONE_SETTING
        return cases(**fixed, make=self.example)

    def drawn(self, seed, guise):
        """Without hypothesis: example number ``seed`` of the table."""
        rng = np.random.default_rng(seed)
        sizes = {
            "n": int(rng.choice([self.smallest, 7, 33])),
            "dim": int(rng.choice([2, 5, 16])),
            "batch": int(rng.choice([1, 2, 5])),
            "n_clusterings": int(rng.choice([1, 2, 3])),
            "temperature": float(rng.choice(TEMPERATURES)),
            "combine": str(rng.choice(list(DECIDED))),
            "mixing": float(rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])),
        }
        sizes |= ONE_SHAPE if guise.costly else {}
        sizes |= ONE_SETTING if guise.traces else {}
        return self.example(1000 * seed, kind=EVERY_KIND[seed % len(EVERY_KIND)], **sizes)


ONE_SHAPE = {"n": 12, "dim": 5, "batch": 3, "n_clusterings": 2, "n_background": 5}
ONE_SETTING = {"temperature": 0.07, "combine": "union", "mixing": 0.5, "everything": False}


def chosen(*names):
    return lambda case: {name: getattr(case, name) for name in names}


def nothing(case):
    return {}


# The scales ------------------------------------------------------------------------------------------------------


def lengths(case):
    """||z||, (B, 1); 1 for a row of zeros."""
    norm = np.linalg.norm(case.z.astype(np.float64), axis=1, keepdims=True)
    return np.where(norm > 0, norm, 1.0)


def loss_scale(case):
    return 1.0 / case.temperature + 1.0


def pull_scale(case):
    """What a cotangent is made of; a rounding of a score moves its softmax by 1 / temperature times as much."""
    return loss_scale(case) / (case.temperature * len(case.z) * lengths(case))


def noisy(scale):
    """The same with all noise samples added up."""
    return lambda case: (1 + case.noise.shape[1]) * scale(case)


def one(case):
    return 1.0


# Nearest ---------------------------------------------------------------------------------------------------------


def exact(case):
    return case.kind == "integers"


def scores_are_of_the_rows_found(case, results):
    rows = case.bank.astype(np.float64)[results["ids"]]
    want = np.einsum("bd,bkd->bk", case.z.astype(np.float64), rows)
    error = np.abs(results["scores"] - want) / lengths(case)
    assert np.all(error <= 16 * np.finfo(case.dtype).eps), f"scores are not those of the ids: off by {error.max():.1e}"
    assert np.all(np.diff(np.sort(results["ids"], axis=1), axis=1) > 0), "an id came twice"


NEAREST = Function(
    "nearest",
    lambda z, bank, k: tuple(la_core.nearest(z, bank, k)),
    chosen("z", "bank"),
    lambda case: {"k": case.n_background},
    (Output("scores", BANK, lengths), Output("ids", INTEGRAL, when=exact)),
    scores_are_of_the_rows_found,
)

CLOSE = Function(
    "close",
    lambda labels, indices, noise, combine: (la_core.close(labels, indices, noise, combine=combine),),
    chosen("labels", "indices", "noise"),
    chosen("combine"),
    (Output("mask", BOOL),),
)


# Clusters --------------------------------------------------------------------------------------------------------


def rows_to_cluster(case):
    """Integers: multiples of all numbers up to their count, so that their means are integers too, and every k-means
    is exact; few enough for the dtype to hold the sums of their squares.
    """
    if case.kind != "integers":
        return {"bank": case.bank}
    n = 6 if case.dtype == np.float32 else 12
    return {"bank": 4 * math.lcm(*range(1, n + 1)) * case.bank[:n]}


def clusterings(case):
    n = len(rows_to_cluster(case)["bank"])
    return {"n_clusters": min(4, n), "n_clusterings": 2, "n_iter": 4, "seed": 11}


def call_cluster(bank, **settings):
    result = la_core.cluster(bank, **settings)
    return (result.labels, result.inertia, *result.centroids)


def no_row_is_between_clusters(case):
    """No rounding decides where a row belongs, in any iteration."""
    if case.kind == "integers":
        return True
    margin = 1e-4 if case.dtype == np.float32 else 1e-10
    gaps = []

    def watched(x, centroids, budget=kernels.CACHE):
        scores = np.sort(x @ centroids.T - 0.5 * np.sum(centroids**2, axis=1), axis=1)
        gaps.append(np.min(scores[:, -1] - scores[:, -2]) if scores.shape[1] > 1 else np.inf)
        return kernels.assign.reference(x, centroids, budget)

    before = kernels.assign.overrides.get("numpy", kernels.assign.reference)
    kernels.assign.overrides["numpy"] = watched
    try:
        call_cluster(**rows_to_cluster(case), **clusterings(case))
    finally:
        kernels.assign.overrides["numpy"] = before
    return min(gaps) > margin


CLUSTER = Function(
    "cluster",
    call_cluster,
    rows_to_cluster,
    clusterings,
    (
        Output("labels", INTEGRAL),
        Output("inertia", BANK, lambda case: float(np.sum(rows_to_cluster(case)["bank"].astype(np.float64) ** 2))),
        Output("centroids 0", BANK, one),
        Output("centroids 1", BANK, one),
    ),
    suits=no_row_is_between_clusters,
    smallest=7,
    on_host="how many iterations it makes depends on the values",
)


# Bank ------------------------------------------------------------------------------------------------------------

UNIT = Function("unit", lambda z: (la_core.unit(z),), chosen("z"), nothing, (Output("rows", Z, one),))

UPDATE = Function(
    "update",
    lambda bank, labels, indices, z, mixing: (la_core.update(State(bank, labels), indices, z, mixing=mixing).bank,),
    chosen("bank", "labels", "indices", "z"),
    chosen("mixing"),
    (Output("bank", BANK, one),),
    consumes=("bank",),
)


# Objectives ------------------------------------------------------------------------------------------------------


def of_the_state(function):
    def call(z, bank, labels, indices, **settings):
        results = function(z, State(bank, labels), indices, **settings)
        return tuple(results) if isinstance(results, tuple) else (results,)

    return call


def of_the_bank(function):
    def call(z, bank, indices, **arrays_and_settings):
        results = function(z, bank, indices, **arrays_and_settings)
        return tuple(results) if isinstance(results, tuple) else (results,)

    return call


def loss_and_cotangent(loss, pull):
    return Output("loss", BANK, loss), Output("cotangent", Z, pull)


of_aggregation = {
    "arrays": chosen("z", "bank", "labels", "indices"),
    "settings": chosen("n_background", "temperature", "combine"),
}
by_softmax = {"arrays": chosen("z", "bank", "indices"), "settings": chosen("temperature")}
by_noise = {"arrays": chosen("z", "bank", "indices", "noise"), "settings": chosen("temperature")}

AGGREGATION = (
    Function(
        "local_aggregation",
        of_the_state(la_core.local_aggregation),
        **of_aggregation,
        outputs=(Output("loss", BANK, loss_scale),),
    ),
    Function(
        "local_aggregation_and_cotangent",
        of_the_state(la_core.local_aggregation_and_cotangent),
        **of_aggregation,
        outputs=loss_and_cotangent(loss_scale, pull_scale),
    ),
    Function(
        "local_aggregation_terms",
        of_the_state(objectives.local_aggregation_terms),
        **of_aggregation,
        outputs=(*loss_and_cotangent(loss_scale, pull_scale), Output("n_close", INTEGRAL)),
    ),
)


def two_views(case):
    return {**chosen("bank", "labels", "indices")(case), "z": np.concatenate([case.z, case.z[::-1]])}


def call_fresh_rows(z, bank, labels, indices, **settings):
    objective = partial(objectives.local_aggregation_terms, **settings)
    terms, state = objectives.fresh_rows(objective, z, State(bank, labels), indices)
    return (*terms, state.bank)


def twice(scale):
    """The same for the rows of both views."""
    return lambda case: scale(replace(case, z=two_views(case)["z"]))


FRESH_ROWS = Function(
    "fresh_rows",
    call_fresh_rows,
    two_views,
    of_aggregation["settings"],
    (*loss_and_cotangent(loss_scale, twice(pull_scale)), Output("n_close", INTEGRAL), Output("bank", BANK)),
    consumes=("bank",),
)


def call_with_instances(z, bank, labels, indices, **settings):
    objective = partial(objectives.local_aggregation_terms, **settings)
    mixed = objectives.with_instances(objective, 0.25, settings["temperature"])
    return tuple(objectives.fresh_rows(mixed, z, State(bank, labels), indices)[0])


WITH_INSTANCES = replace(
    FRESH_ROWS,
    name="... with instances",
    call=call_with_instances,
    outputs=FRESH_ROWS.outputs[:-1],
)

DISCRIMINATION = (
    Function(
        "instance_discrimination",
        of_the_bank(la_core.instance_discrimination),
        **by_softmax,
        outputs=(Output("loss", BANK, loss_scale),),
    ),
    Function(
        "... by noise",
        of_the_bank(la_core.instance_discrimination),
        **by_noise,
        outputs=(Output("loss", BANK, noisy(loss_scale)),),
    ),
    Function(
        "instance_discrimination_and_cotangent",
        of_the_bank(la_core.instance_discrimination_and_cotangent),
        **by_softmax,
        outputs=loss_and_cotangent(loss_scale, pull_scale),
    ),
    Function(
        "... by noise, and cotangent",
        of_the_bank(la_core.instance_discrimination_and_cotangent),
        **by_noise,
        outputs=loss_and_cotangent(noisy(loss_scale), noisy(pull_scale)),
    ),
)


# Nearest-neighbour classification --------------------------------------------------------------------------------


def labelled(case):
    return {"embeddings": case.bank, "labels": case.labels[0] % 3, "queries": case.z, "own": case.indices}


def voters(case):
    return {"k": min(case.n_background, len(case.bank) - 1), "temperature": case.temperature}


def call_knn(embeddings, labels, queries, own, **settings):
    knn = partial(la_core.evaluate.knn, embeddings, labels, queries, **settings)
    return knn(), knn(own=own)


def no_vote_is_a_draw(case):
    """No rounding decides between two classes."""
    margin = 1e-3 if case.dtype == np.float32 else 1e-9
    host = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in labelled(case).items()}
    rows, lines = la_core.unit(host["embeddings"]), la_core.unit(host["queries"])
    scores = lines @ rows.T
    k, temperature = voters(case).values()
    for without in (False, True):
        held = scores.copy()
        if without:
            held[np.arange(len(lines)), host["own"]] = -np.inf
        order = np.argsort(-held, axis=1, kind="stable")
        for q, line in enumerate(order):
            ranked = held[q, line]
            tied = not exact(case) and k < len(ranked) and ranked[k - 1] - ranked[k] < margin
            votes = np.exp((ranked[:k] - ranked[0]) / temperature)
            sums = np.sort(np.bincount(host["labels"][line[:k]], votes, minlength=3))
            if tied or sums[-1] - sums[-2] < margin:
                return False
    return True


KNN = Function(
    "evaluate.knn",
    call_knn,
    labelled,
    voters,
    (Output("classes", INTEGRAL), Output("classes, leaving one out", INTEGRAL)),
    suits=no_vote_is_a_draw,
    smallest=7,
    on_host="how many classes there are depends on the values",
)

FUNCTIONS = (NEAREST, CLOSE, CLUSTER, *AGGREGATION, FRESH_ROWS, WITH_INSTANCES, *DISCRIMINATION, UPDATE, KNN, UNIT)
