"""Bad input: which exception, which words, and nothing changed."""
# ruff: noqa: E501  (one line for each mistake)

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from strategies import make_case
from variants import DEVICE1, NUMPY, STRICT, TORCH, assert_same, every_variant

import la_core
from la_core.errors import InputError, KindError, NotFiniteError, RangeError, ShapeError

N, DIM, BATCH = 12, 5, 4
GOOD = replace(make_case(0, n=N, dim=DIM, batch=BATCH), n_background=6)


def aggregate(c):
    la_core.local_aggregation(c.z, c.state, c.indices, **c.settings)


def aggregate_and_cotangent(c):
    la_core.local_aggregation_and_cotangent(c.z, c.state, c.indices, **c.settings)


def discriminate(c):
    la_core.instance_discrimination(c.z, c.bank, c.indices, temperature=c.temperature)


def discriminate_and_cotangent(c):
    la_core.instance_discrimination_and_cotangent(c.z, c.bank, c.indices, temperature=c.temperature)


def estimate(c):
    la_core.instance_discrimination(c.z, c.bank, c.indices, temperature=c.temperature, noise=c.noise)


def update(c):
    la_core.update(c.state, c.indices, c.z, mixing=c.mixing)


def nearest(c):
    la_core.nearest(c.z, c.bank, c.n_background)


def close(c):
    la_core.close(c.labels, c.indices, c.noise, combine=c.combine)


def cluster(c, **options):
    la_core.cluster(c.bank, **({"n_clusters": 3, "n_clusterings": 2, "seed": 0} | options))


LA = (aggregate, aggregate_and_cotangent)
OBJECTIVES = (*LA, discriminate, discriminate_and_cotangent, estimate)
READS_Z = (*OBJECTIVES, update, nearest)
READS_INDICES = (*OBJECTIVES, update)


@dataclass(frozen=True)
class Bad:
    """One argument wrong, for each of some functions."""

    what: str
    functions: tuple[Any, ...]
    changes: dict[str, Any]
    error: type[Exception]
    words: tuple[str, ...]


def poisoned(value, row=2):
    z = GOOD.z.copy()
    z[row, 1] = value
    return z


TABLE = (
    Bad("z too wide", READS_Z, {"z": np.ones((BATCH, 9))}, ShapeError, ("z ", f"(B, {DIM})", f"({BATCH}, 9)")),
    Bad("z a vector", READS_Z, {"z": np.ones(DIM)}, ShapeError, ("z must have shape", f"({DIM},)")),
    Bad("z empty", READS_Z, {"z": np.ones((0, DIM))}, ShapeError, ("z must have shape", f"(0, {DIM})")),
    Bad("z integers", READS_Z, {"z": np.ones((BATCH, DIM), dtype=np.int64)}, KindError, ("z ", "real floating", "int")),
    Bad("z NaN", READS_Z, {"z": poisoned(np.nan)}, NotFiniteError, ("z ", f"1 of {BATCH} rows", "first row 2")),
    Bad("z infinite", READS_Z, {"z": poisoned(-np.inf, 0)}, NotFiniteError, ("z ", "first row 0")),
    Bad("z a list", READS_Z, {"z": [[1.0] * DIM] * BATCH}, KindError, ("z must be an array", "builtins.list")),
    Bad("bank a cube", READS_Z, {"bank": np.ones((N, DIM, 1))}, ShapeError, ("bank must have shape (N, D)",)),
    Bad("bank empty", READS_Z, {"bank": np.ones((0, DIM))}, ShapeError, ("bank must have shape (N, D)", "at least one")),
    Bad("bank integers", READS_Z, {"bank": np.ones((N, DIM), dtype=np.int64)}, KindError, ("bank ", "int64")),
    Bad("indices too many", READS_INDICES, {"indices": np.zeros(BATCH + 1, dtype=np.int64)}, ShapeError, (
        "indices must have shape", f"({BATCH},)", f"({BATCH + 1},)")),
    Bad("indices a column", READS_INDICES, {"indices": np.zeros((BATCH, 1), dtype=np.int64)}, ShapeError, (
        "indices must have shape", f"({BATCH}, 1)")),
    Bad("indices floating", READS_INDICES, {"indices": np.zeros(BATCH)}, KindError, ("indices must be integers", "float64")),
    Bad("indices boolean", READS_INDICES, {"indices": np.zeros(BATCH, dtype=bool)}, KindError, ("indices must be integers",)),
    Bad("index N", READS_INDICES, {"indices": np.array([0, N, 1, 2])}, RangeError, ("indices", f"[0, {N})", f"got {N}")),
    Bad("index negative", READS_INDICES, {"indices": np.array([0, -1, 1, 2])}, RangeError, ("indices", "got -1")),
    Bad("index negative", (close,), {"indices": np.array([0, -1, 1, 2])}, RangeError, ("indices", "got -1")),
    Bad("neighbour N", (close,), {"noise": np.full((BATCH, 2), N)}, RangeError, ("neighbours", f"got {N}")),
    Bad("neighbours a vector", (close,), {"noise": np.zeros(BATCH, dtype=np.int64)}, ShapeError, ("neighbours must have",)),
    Bad("noise N", (estimate,), {"noise": np.full((BATCH, 2), N)}, RangeError, ("noise", f"got {N}")),
    Bad("noise negative", (estimate,), {"noise": np.full((BATCH, 2), -3)}, RangeError, ("noise", "got -3")),
    Bad("noise of another batch", (estimate,), {"noise": np.zeros((2, 3), dtype=np.int64)}, ShapeError, ("noise", "(2, 3)")),
    Bad("noise empty", (estimate,), {"noise": np.zeros((BATCH, 0), dtype=np.int64)}, ShapeError, ("noise", "empty")),
    Bad("labels missing", LA, {"labels": None}, InputError, ("labels is None", "la_core.cluster")),
    Bad("labels of another width", LA, {"labels": np.zeros((2, N - 1), dtype=np.int64)}, ShapeError, (
        "labels", "(H, N)", f"N = {N}", f"(2, {N - 1})")),
    Bad("labels a vector", LA, {"labels": np.zeros(N, dtype=np.int64)}, ShapeError, ("labels must have shape", f"({N},)")),
    Bad("labels a vector", (close,), {"labels": np.zeros(N, dtype=np.int64)}, ShapeError, ("labels must have shape", f"({N},)")),
    Bad("no clusterings", LA, {"labels": np.zeros((0, N), dtype=np.int64)}, ShapeError, ("labels", "H >= 1")),
    Bad("labels floating", (*LA, close), {"labels": np.zeros((2, N))}, KindError, ("labels must be integers", "float64")),
    Bad("k above N", (*LA,), {"n_background": N + 1}, RangeError, ("n_background", f"between 1 and {N}", f"got {N + 1}")),
    Bad("k = 0", LA, {"n_background": 0}, RangeError, ("n_background", "between 1", "got 0")),
    Bad("k real", LA, {"n_background": 3.0}, KindError, ("n_background must be an integer", "3.0")),
    Bad("k a bool", LA, {"n_background": True}, KindError, ("n_background must be an integer", "True")),
    Bad("k above N", (nearest,), {"n_background": N + 1}, RangeError, ("k must be between", f"got {N + 1}")),
    Bad("k = 0", (nearest,), {"n_background": 0}, RangeError, ("k must be between", "got 0")),
    Bad("temperature 0", OBJECTIVES, {"temperature": 0.0}, RangeError, ("temperature", "at least 0.0001", "got 0")),
    Bad("temperature negative", OBJECTIVES, {"temperature": -0.1}, RangeError, ("temperature", "at least 0.0001", "got -0.1")),
    Bad("temperature so low that scores overflow", OBJECTIVES, {"temperature": 1e-40}, RangeError, ("temperature", "at least 0.0001")),
    Bad("temperature NaN", OBJECTIVES, {"temperature": float("nan")}, RangeError, ("temperature", "finite", "nan")),
    Bad("temperature infinite", OBJECTIVES, {"temperature": float("inf")}, RangeError, ("temperature", "finite", "inf")),
    Bad("temperature a word", OBJECTIVES, {"temperature": "0.07"}, KindError, ("temperature must be a number", "'0.07'")),
    Bad("combine unknown", (*LA, close), {"combine": "any"}, RangeError, ("combine", "'union'", "'intersection'", "'any'")),
    Bad("mixing above 1", (update,), {"mixing": 1.01}, RangeError, ("mixing", "at most 1", "1.01")),
    Bad("mixing negative", (update,), {"mixing": -0.01}, RangeError, ("mixing", "at least 0", "-0.01")),
    Bad("mixing NaN", (update,), {"mixing": float("nan")}, RangeError, ("mixing", "nan")),
)  # fmt: skip


def there(variant, **changes):
    changes = {k: variant.asarray(x) if isinstance(x, np.ndarray) else x for k, x in changes.items()}
    return replace(GOOD.on(variant), **changes)


def assert_refused(call, error, words, *args, **options):
    with pytest.raises(la_core.LaCoreError) as caught:
        call(*args, **options)
    assert isinstance(caught.value, error), f"{type(caught.value).__name__}, expected {error.__name__}"
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@every_variant
@pytest.mark.parametrize(
    ("function", "bad"),
    [(function, bad) for bad in TABLE for function in bad.functions],
    ids=lambda x: x.what if isinstance(x, Bad) else x.__name__,
)
def test_bad_input_is_refused_before_anything_changes(variant, function, bad):
    case = there(variant, **bad.changes)
    before = variant.to_host(case.bank)
    assert_refused(function, bad.error, bad.words, case)
    assert_same(variant.to_host(case.bank), before)
    function(there(variant))


CLUSTERING = (
    ({"n_clusters": N + 1}, RangeError, ("n_clusters", f"between 1 and {N}", f"got {N + 1}")),
    ({"n_clusters": 0}, RangeError, ("n_clusters", "got 0")),
    ({"n_clusters": [3, 0]}, RangeError, ("n_clusters", "got 0")),
    ({"n_clusters": [3, 4, 5]}, RangeError, ("n_clusters", "2, one for each", "got 3")),
    ({"n_clusters": True}, KindError, ("n_clusters must be an integer", "True")),
    ({"n_clusters": 2.5}, KindError, ("n_clusters must be an integer", "2.5")),
    ({"n_clusters": [2.5, 3]}, KindError, ("n_clusters must be an integer", "2.5")),
    ({"n_clusterings": 0}, RangeError, ("n_clusterings", "at least 1", "got 0")),
    ({"n_iter": 0}, RangeError, ("n_iter", "at least 1")),
    ({"seed": -1}, RangeError, ("seed", "at least 0", "got -1")),
    ({"seed": 0.5}, KindError, ("seed must be an integer",)),
    ({"tolerance": -1e-3}, RangeError, ("tolerance", "at least 0")),
)


@every_variant
@pytest.mark.parametrize(("options", "error", "words"), CLUSTERING, ids=[str(row[0]) for row in CLUSTERING])
def test_bad_clustering_is_refused(variant, options, error, words):
    assert_refused(cluster, error, words, there(variant), **options)


@every_variant
def test_clusters_take_a_finite_bank(variant):
    bank = GOOD.bank.copy()
    bank[7, 0] = np.nan
    assert_refused(cluster, NotFiniteError, ("bank must be finite", "row 7"), there(variant, bank=bank))


@every_variant
def test_number_of_clusters_may_be_a_numpy_integer(variant):
    bank = variant.asarray(GOOD.bank)
    got = la_core.cluster(bank, n_clusters=np.int64(3), n_clusterings=np.int64(2), seed=0)
    want = la_core.cluster(bank, n_clusters=3, n_clusterings=2, seed=0)
    assert_same(variant.to_host(got.labels), variant.to_host(want.labels))


@every_variant
def test_log_z_without_noise_is_refused(variant):
    c = there(variant)
    assert_refused(
        la_core.instance_discrimination,
        ShapeError,
        ("log_z", "noise"),
        c.z,
        c.bank,
        c.indices,
        temperature=1,
        log_z=0.0,
    )
    assert_refused(
        la_core.instance_discrimination,
        RangeError,
        ("log_z", "nan"),
        *(c.z, c.bank, c.indices),
        temperature=1,
        noise=c.noise,
        log_z=float("nan"),
    )


@pytest.mark.parametrize("function", [*READS_Z, cluster])
def test_a_bank_of_integers_is_refused(function):
    assert_refused(function, KindError, ("bank", "int32"), there(NUMPY, bank=GOOD.bank.astype(np.int32)))
    c = there(TORCH)
    assert_refused(function, KindError, ("bank", "int32"), replace(c, bank=c.bank.to(torch.int32)))


@pytest.mark.parametrize("function", READS_Z)
def test_libraries_do_not_mix(function):
    for mine, other in ((NUMPY, TORCH), (TORCH, NUMPY), (STRICT, NUMPY), (NUMPY, STRICT)):
        for name in ("z", "bank"):
            mixed = replace(there(mine), **{name: other.asarray(getattr(GOOD, name))})
            assert_refused(function, KindError, (name, "one library", "Convert"), mixed)


@pytest.mark.parametrize("function", READS_INDICES)
def test_indices_come_from_the_same_library(function):
    mixed = replace(there(TORCH), indices=GOOD.indices)
    assert_refused(function, KindError, ("indices", "one library", "numpy", "torch"), mixed)


@pytest.mark.parametrize(
    ("function", "name"),
    [(f, "z") for f in READS_Z] + [(f, "indices") for f in READS_INDICES] + [(estimate, "noise"), (close, "noise")],
)
def test_devices_do_not_mix(function, name):
    for mine, other in ((STRICT, DEVICE1), (DEVICE1, STRICT)):
        mixed = replace(there(mine), **{name: other.asarray(getattr(GOOD, name))})
        assert_refused(function, KindError, ("one device", "device1", "CPU_DEVICE"), mixed)


def test_every_exception_is_in_the_family():
    assert issubclass(InputError, la_core.LaCoreError)
    assert issubclass(InputError, ValueError)
    assert issubclass(KindError, TypeError)
    for error in (ShapeError, KindError, RangeError, NotFiniteError):
        assert issubclass(error, InputError)
