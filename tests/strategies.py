"""What the tests draw: everything in NumPy, from one seed and a few drawn sizes."""

from dataclasses import dataclass, fields, replace

import numpy as np
from hypothesis import strategies as st

import la_core

KINDS = ("generic", "copies", "near ties")
EVERY_KIND = (*KINDS, "zero rows", "integers")
TEMPERATURES = (0.005, 0.07, 0.5, 3.0)


@dataclass(frozen=True)
class Case:
    """One evaluation: arrays of the host, or of a library after :meth:`on`."""

    bank: np.ndarray  # (N, D)
    labels: np.ndarray  # (H, N)
    indices: np.ndarray  # (B,)
    z: np.ndarray  # (B, D)
    noise: np.ndarray  # (B, K)
    n_background: int
    temperature: float
    combine: str
    mixing: float
    kind: str = "generic"

    def on(self, variant):
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: variant.asarray(x) for k, x in arrays.items() if isinstance(x, np.ndarray)})

    def astype(self, dtype):
        return replace(self, bank=self.bank.astype(dtype), z=self.z.astype(dtype))

    @property
    def state(self):
        return la_core.State(self.bank, self.labels)

    @property
    def settings(self):
        return {"n_background": self.n_background, "temperature": self.temperature, "combine": self.combine}

    @property
    def dtype(self):
        return self.bank.dtype


def unit_rows(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def dyadic_rows(rng, n, dim):
    """Unit rows of 0 and one power of two: scores between them are exact on every library, and ties abound."""
    some = np.zeros((n, dim))
    for row in some:
        m = int(rng.choice([m for m in (1, 4, 16) if m <= dim]))
        row[rng.permutation(dim)[:m]] = rng.choice([-1, 1], m) / np.sqrt(m)
    return some


DECIDED = {"union": any, "intersection": all, "majority": lambda agree: sum(agree) >= len(agree) / 2}
"""Whether two samples are close, from the list of clusterings in which they share a cluster."""


def make_case(
    seed,
    *,
    kind="generic",
    n=33,
    dim=5,
    batch=4,
    n_clusterings=2,
    everything=False,
    temperature=0.07,
    combine="union",
    mixing=0.5,
    n_background=None,
):
    """Copies, near ties and zero rows share their labels, so that no result depends on which of them rounding prefers.
    Integers share none: of equal scores the lowest index must be taken. They are integers over a power of two.
    """
    rng = np.random.default_rng(seed)
    bank = unit_rows(rng, n, dim)
    labels = rng.integers(-1, max(2, n // 6), (n_clusterings, n))
    if kind in ("copies", "near ties"):
        origin = rng.integers(0, n, n)
        bank, labels = bank[origin], labels[:, origin]
    if kind == "near ties":
        bank = bank + 1e-7 * rng.standard_normal(bank.shape)
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)

    if kind == "zero rows":
        zero = np.flatnonzero(rng.random(n) < 0.3)
        bank[zero], labels[:, zero] = 0.0, labels[:, zero[:1]]
    if kind == "integers":
        bank = dyadic_rows(rng, n, dim)

    indices = rng.integers(0, n, batch)
    spread, norm = rng.choice([0.1, 1.0, 10.0]), 10.0 ** rng.uniform(-3, 3, (batch, 1))
    z = norm * (bank[indices] + spread * unit_rows(rng, batch, dim))
    if kind == "zero rows":
        z[rng.random(batch) < 0.3] = 0.0
    if kind == "integers":
        z = 2.0 ** rng.integers(-2, 6, (batch, 1)) * dyadic_rows(rng, batch, dim)
    return Case(
        bank=bank,
        labels=labels,
        indices=indices,
        z=z,
        noise=rng.integers(0, n, (batch, 6)),
        n_background=n_background or (n if everything else int(rng.integers(1, n + 1))),
        temperature=temperature,
        combine=combine,
        mixing=mixing,
        kind=kind,
    )


def cases(make=make_case, **fixed):
    drawn = {
        "seed": st.integers(0, 2**32 - 1),
        "kind": st.sampled_from(KINDS),
        "n": st.sampled_from([1, 2, 7, 33]),
        "dim": st.sampled_from([2, 5, 16]),
        "batch": st.sampled_from([1, 2, 5]),
        "n_clusterings": st.sampled_from([1, 2, 3]),
        "everything": st.booleans(),
        "temperature": st.sampled_from(TEMPERATURES),
        "combine": st.sampled_from(list(DECIDED)),
        "mixing": st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    }
    chosen = {name: x if isinstance(x, st.SearchStrategy) else st.just(x) for name, x in fixed.items()}
    return st.builds(make, **(drawn | chosen))


def integer_rows(seed, n, dim):
    """Integers in [-8, 8]: dot products of up to 16 of them are exact in float32 on every library. Few values, and
    copies of rows, so that ties abound.
    """
    rng = np.random.default_rng(seed)
    most = int(rng.choice([1, 3, 8]))
    return rng.integers(-most, most + 1, (n, dim))[rng.integers(0, n, n)]


@dataclass(frozen=True)
class Search:
    """Integer-valued queries and bank, as int64."""

    z: np.ndarray  # (B, D)
    bank: np.ndarray  # (N, D)
    k: int
    budget: int


def make_search(seed, *, n=40, dim=3, batch=4, share=0.3, budget=500):
    k = max(1, round(share * n))
    return Search(integer_rows(seed, batch, dim), integer_rows(seed + 1, n, dim), k, budget)


def searches():
    return st.builds(
        make_search,
        seed=st.integers(0, 2**32 - 1),
        n=st.sampled_from([1, 2, 9, 40]),
        dim=st.sampled_from([1, 3, 16]),
        batch=st.sampled_from([1, 3, 8]),
        share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
        budget=st.sampled_from([1, 500, 20_000, 2**26]),
    )
