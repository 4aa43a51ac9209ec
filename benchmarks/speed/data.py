"""How large a task is, and the bank, batch and labels that it is done on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np

Inputs: TypeAlias = Mapping[str, np.ndarray]
"""By name: bank (N, D), z (B, D), indices (B,), labels (H, N), and of a bank that has drifted what it was before."""

TOPS, SUBS = 50, 40
"""Of the hierarchical mixture: groups, and groups in each."""
SPREADS = 0.6, 0.5
"""Of groups about theirs, and of rows about theirs: the length of what is added to a unit vector."""
FRESH = 0.5
"""The same, of a new embedding about the sample's row."""
BITS = 3
"""Halvings of a group that make a clustering's labels, different ones for each clustering."""


@dataclass(frozen=True)
class Problem:
    """Sizes, and the kind of bank."""

    n: int = 1_000_000
    dim: int = 128
    batch: int = 64
    k: int = 4096
    m: int = 4000
    """Clusters of each clustering."""
    clusterings: int = 3
    iterations: int = 20
    bank: str = "isotropic"
    """"isotropic", "hierarchical", "trained", or a file of rows (N, D)."""
    drift: float = 0.0
    """Of the new embedding that each row was mixed with since the last clustering. With 0 there was none."""

    def scaled(self, by: float) -> Problem:
        """Less of all that is large."""
        n, k, m = (max(1, round(by * value)) for value in (self.n, self.k, self.m))
        return replace(self, n=max(n, self.batch), k=min(k, n), m=min(m, n))


def inputs(problem: Problem) -> dict[str, np.ndarray]:
    """Made by one seed. A bank from elsewhere may have fewer rows than asked for, and another width."""
    rng = np.random.default_rng(0)
    bank, group = bank_of(problem, rng)
    made = {}
    if problem.drift:
        made["before"] = bank
        bank = unit(bank + around(bank, problem.drift, rng))
    sides = bank @ rng.standard_normal((bank.shape[1], problem.clusterings * BITS), dtype=np.float32) > 0
    halves = sides.reshape(len(bank), problem.clusterings, BITS) @ 2 ** np.arange(BITS)
    indices = rng.choice(len(bank), problem.batch, replace=False)
    return {
        **made,
        "bank": bank,
        "z": around(bank[indices], FRESH, rng),
        "indices": indices,
        "labels": np.ascontiguousarray((2**BITS * group[:, None] + halves).T, np.int32),
    }


def first(x: Inputs, n: int) -> dict[str, np.ndarray]:
    """A copy of the first ``n`` samples of such inputs, with a batch of as many rows as before."""
    short = {name: x[name][:n].copy() for name in ("bank", "before") if name in x}
    return {**short, "z": x["z"].copy(), "indices": x["indices"] % n, "labels": x["labels"][:, :n].copy()}


def bank_of(problem: Problem, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (N, D), and the group of each (N,)."""
    n, dim = problem.n, problem.dim
    if problem.bank == "isotropic":
        return scattered(np.zeros((1, dim), np.float32), 1.0, n, rng)
    if problem.bank == "hierarchical":
        tops = around(np.zeros((TOPS, dim), np.float32), 1.0, rng)
        return scattered(around(np.repeat(tops, SUBS, axis=0), SPREADS[0], rng), SPREADS[1], n, rng)
    rows = trained(n, dim) if problem.bank == "trained" else np.load(Path(problem.bank))
    rows = unit(rng.permutation(rows)[:n].astype(np.float32))
    return rows, np.zeros(len(rows), np.int64)


def unit(rows: np.ndarray) -> np.ndarray:
    """Each divided by its length."""
    units: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units


def around(rows: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    """A unit vector near each; near zero, any."""
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    return unit(rows + np.float32(spread / np.sqrt(rows.shape[1])) * noise)


def scattered(centres: np.ndarray, spread: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n unit vectors about centres drawn at random, some at a time, and the centre of each."""
    group = rng.integers(len(centres), size=n)
    rows = np.empty((n, centres.shape[1]), np.float32)
    for start in range(0, n, 65_536):
        some = slice(start, start + 65_536)
        rows[some] = around(centres[group[some]], spread, rng)
    return rows, group


@cache
def trained(n: int, dim: int) -> np.ndarray:
    """Embeddings of handwritten digits, each placed many times, by an encoder that has learnt for a few epochs."""
    import la_core
    from la_core import digits, evaluate
    from la_core.backends.torch import SmallCNN, TorchEncoder, initialise, make_optimizer

    images, _ = digits.placed_digits()
    settings = replace(digits.SETTINGS, epochs=6, warmup_epochs=4, knn_every=0, health_every=0).resolved(len(images))
    module = initialise(SmallCNN(1, dim, width=8), settings.seed)
    encoder, backend = TorchEncoder(module, make_optimizer(module, settings)), la_core.backend("torch")
    la_core.train(images, encoder, backend=backend, settings=settings, view=digits.VIEW, progress=False)
    many, _ = digits.placed_digits(seed=1, copies=-(-n // len(images)))
    embeddings, _ = evaluate.embed(encoder, backend, many, digits.VIEW)
    return np.asarray(embeddings)
