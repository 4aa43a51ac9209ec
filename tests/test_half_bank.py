"""A bank that is stored in half precision is computed with in float32: its numbers are those of the widened bank.

Tier 1 against the same library's float32; and how far rounding may move what is made of it, the error budget.
"""

from dataclasses import replace

import numpy as np
import pytest
from planting import mutated
from runs import KINDS, PLAIN, go, outcome, stopped

import la_core
from la_core import health, kernels, lists, objectives
from la_core.bank import State, unit
from la_core.errors import KindError
from la_core.evaluate import densities, knn

STORED = [("numpy", "float16"), ("torch", "float16"), ("torch", "bfloat16"), ("jax", "float16"), ("jax", "bfloat16")]
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of a number, relative; and so of a row, by its length."""
TIER1 = 2e-6
every = pytest.mark.parametrize(("name", "dtype"), STORED, ids=[f"{n}-{d}" for n, d in STORED])


def rows_of(rng, *shape):
    return np.asarray(la_core.unit(rng.standard_normal(shape, dtype=np.float32)))


class Case:
    """A bank in half precision and the same numbers in float32, with what a step needs, on a backend."""

    def __init__(self, name, dtype, n=300, dim=24, batch=7, m=12, seed=0):
        self.backend, rng = la_core.backend(name), np.random.default_rng(seed)
        centres = rows_of(rng, m, dim)
        rows = np.asarray(la_core.unit(centres[rng.integers(m, size=n)] + 0.5 * rows_of(rng, n, dim)))
        self.half = la_core.bank.stored(rows, self.backend, dtype)
        self.full = kernels.wide(self.half)
        self.exact = self.backend.asarray(rows)
        self.indices = self.backend.asarray(rng.permutation(n)[:batch])
        self.z = self.backend.asarray((3 * rows_of(rng, batch, dim) + rows[:batch]).astype(np.float32))
        self.labels = self.backend.asarray(rng.integers(0, m, (2, n)))
        self.noise = self.backend.asarray(rng.integers(0, n, (batch, 20)))
        self.settings = {"n_background": 40, "temperature": 0.07}

    def host(self, x):
        return np.asarray(self.backend.to_host(x), np.float64)


FUNCTIONS = {
    "nearest": lambda c, bank: la_core.nearest(c.z, bank, 9),
    "local_aggregation": lambda c, bank: (
        la_core.local_aggregation(c.z, State(bank, c.labels), c.indices, **c.settings),
    ),
    "terms": lambda c, bank: objectives.local_aggregation_terms(
        c.z, State(bank, c.labels), c.indices, **c.settings, combine="majority"
    ),
    "through lists": lambda c, bank: objectives.local_aggregation_terms(
        *(c.z, State(bank, c.labels), c.indices), **c.settings, lists=lists.lists(bank, c.labels, 12), probes=4
    ),
    "instances": lambda c, bank: la_core.instance_discrimination_and_cotangent(c.z, bank, c.indices, temperature=0.07),
    "instances, not differentiated": lambda c, bank: (
        la_core.instance_discrimination(c.z, bank, c.indices, temperature=0.07),
    ),
    "by noise": lambda c, bank: la_core.instance_discrimination_and_cotangent(
        c.z, bank, c.indices, temperature=0.07, noise=c.noise
    ),
    "cluster": lambda c, bank: la_core.cluster(bank, n_clusters=12, n_clusterings=2, seed=0, tolerance=0)[:2],
    "from labels": lambda c, bank: la_core.cluster(bank, n_clusters=12, n_clusterings=2, seed=0, start=c.labels)[:2],
    "moments": lambda c, bank: health.moments(bank),
    "knn": lambda c, bank: (knn(bank, c.labels[0, :], c.z, k=5, as_it_is=True),),
}


def law_computed_in_float32(name, dtype, function, **sizes):
    case = Case(name, dtype, **sizes)
    mine, theirs = FUNCTIONS[function](case, case.half), FUNCTIONS[function](case, case.full)
    for x, y in zip(mine, theirs, strict=True):
        if x is None:
            assert y is None
            continue
        assert x.dtype == y.dtype
        x, y = case.host(x), case.host(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=TIER1 * max(1, np.abs(y).max()))


ON = [(name, dtype, f) for name, dtype in STORED for f in FUNCTIONS if name != "jax" or f in ("terms", "instances")]


@pytest.mark.parametrize(("name", "dtype", "function"), ON)
def test_computed_in_float32(name, dtype, function):
    law_computed_in_float32(name, dtype, function)


@pytest.mark.parametrize(("name", "dtype"), STORED[:3])
def test_also_where_a_scan_answers(name, dtype):
    law_computed_in_float32(name, dtype, "nearest", n=17_000, dim=8, m=12)


@pytest.mark.parametrize(("name", "dtype"), [STORED[0], STORED[2]])
def test_also_where_tiles_answer(name, dtype, monkeypatch):
    """And read in blocks of 3 000 rows, the last one ragged."""
    monkeypatch.setattr(kernels.read_in_blocks, "__defaults__", (3000 * 4 * 8,))
    case = Case(name, dtype, n=17_000, dim=8, m=1100)
    options = {"n_clusters": 1100, "seed": 0, "n_iter": 2}
    mine, theirs = (la_core.cluster(bank, **options) for bank in (case.half, case.full))
    np.testing.assert_allclose(case.host(mine.inertia), case.host(theirs.inertia), rtol=1e-4)


def test_arithmetic_in_half_is_caught(monkeypatch):
    monkeypatch.setattr(kernels.wide, "__code__", mutated(kernels.wide, "if itemsize(x) < 4", "if False"))
    monkeypatch.setattr(kernels.like, "__code__", mutated(kernels.like, "if itemsize(stored) < 4", "if False"))
    with pytest.raises((AssertionError, RuntimeWarning)):
        law_computed_in_float32("numpy", "float16", "terms")


@every
def test_a_search_is_differentiated(name, dtype):
    """Natively, on the libraries that differentiate: the derivative is that of the widened bank."""
    case = Case(name, dtype)

    def loss(z, bank):
        return la_core.local_aggregation(z, State(bank, case.labels), case.indices, **case.settings).sum()

    found = []
    for bank in (case.half, case.full):
        if name == "torch":
            z = case.z.clone().requires_grad_()
            loss(z, bank).backward()
            found.append(z.grad)
        elif name == "jax":
            found.append(pytest.importorskip("jax").grad(loss)(case.z, bank))
    if found:
        np.testing.assert_allclose(*map(case.host, found), atol=1e-5)


# The error budget -----------------------------------------------------------------------------------------------------


@every
def test_a_row_is_off_by_the_rounding_of_a_number(name, dtype):
    case = Case(name, dtype)
    off = np.linalg.norm(case.host(case.half) - case.host(case.exact), axis=1)
    assert 0 < off.max() <= ROUNDING[dtype]


@every
def test_a_loss_is_off_by_twice_that_over_the_temperature(name, dtype):
    """With every row in the background, so that no neighbour is another one."""
    case, bound = Case(name, dtype), 2 * ROUNDING[dtype] / 0.07
    settings = {"n_background": 300, "temperature": 0.07}
    losses = [
        case.host(objectives.local_aggregation_terms(case.z, State(bank, case.labels), case.indices, **settings).loss)
        for bank in (case.half, case.exact)
    ]
    assert np.abs(losses[0] - losses[1]).max() <= bound
    losses = [case.host(FUNCTIONS["instances"](case, bank)[0]) for bank in (case.half, case.exact)]
    assert np.abs(losses[0] - losses[1]).max() <= bound


@every
def test_rows_that_are_updated_again_and_again_stay_within_three_roundings(name, dtype):
    """Of embeddings within 60 degrees, with mixing 0.5: each update halves what was off before, about, and rounds."""
    case = Case(name, dtype)
    rng = np.random.default_rng(1)
    rows, half, full = case.backend.asarray(np.arange(50)), State(case.half), State(case.exact)
    before = case.host(case.half)[50:]
    for _ in range(20):
        old = case.host(full.bank)[:50]
        z = case.backend.asarray((old + 0.8 * rows_of(rng, 50, 24)).astype(np.float32))
        half, full = la_core.update(half, rows, z), la_core.update(full, rows, z)
        off = np.linalg.norm(case.host(half.bank)[:50] - case.host(full.bank)[:50], axis=1)
        assert off.max() <= 3 * ROUNDING[dtype]
        assert np.abs(np.linalg.norm(case.host(half.bank), axis=1) - 1).max() <= ROUNDING[dtype] + 1e-6
    assert str(half.bank.dtype).endswith(dtype)
    np.testing.assert_array_equal(case.host(half.bank)[50:], before)


# A run ----------------------------------------------------------------------------------------------------------------

HALF = [("numpy", "float16"), ("torch", "bfloat16")]


@pytest.mark.parametrize("kind", ["plain", "two views", "lists"])
@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_a_run_stays_near_that_of_float32(name, dtype, kind):
    """Within what a loss may be off by; a neighbour more or less, and where the encoder then goes, are in it."""
    settings = KINDS[kind]
    half, full = (go(name, settings=replace(settings, bank_dtype=kind)) for kind in (dtype, "same"))
    assert str(half.state.bank.dtype).endswith(dtype)
    assert np.isfinite(half.backend.to_host(half.state.bank)).all()
    bound = 3 * 2 * ROUNDING[dtype] / settings.temperature
    for mine, theirs in zip(half.history, full.history, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) <= bound
        assert abs(mine["knn"] - theirs["knn"]) <= 0.1


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_it_goes_on_to_the_bit(tmp_path, name, dtype):
    settings = replace(PLAIN, bank_dtype=dtype)
    stopped(name, tmp_path / "run", 7, settings=settings)
    assert outcome(go(name, tmp_path / "run", settings=settings), tmp_path / "run") == outcome(
        go(name, settings=settings)
    )


def test_a_run_on_jax():
    """Short, for each shape is compiled; ``make soak`` stops such a run and goes on with it."""
    run = go("jax", settings=replace(PLAIN, epochs=2, warmup_epochs=1, bank_dtype="bfloat16", health_every=0))
    assert str(run.state.bank.dtype) == "bfloat16"


def test_a_dtype_that_a_library_lacks_is_refused_before_anything_is_learnt(tmp_path):
    with pytest.raises(KindError, match="bank_dtype cannot be 'bfloat16' on the numpy backend"):
        go("numpy", settings=replace(PLAIN, bank_dtype="bfloat16"))


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_densities_of_a_run_are_recorded(tmp_path, name, dtype):
    from la_core.report import Recorder

    settings = replace(PLAIN, bank_dtype=dtype, epochs=2, warmup_epochs=1)
    recorder = Recorder(tmp_path)
    run = go(name, tmp_path / "run", settings=settings, callbacks=[recorder])
    assert run.status == "finished"
    whole = densities(unit(run.backend.to_host(run.state.bank).astype(np.float32)), k_local=30)
    last = recorder.arrays[max(name for name in recorder.arrays if name.startswith("density_"))]
    np.testing.assert_allclose(last[0], whole.local, atol=0.02)
