"""Several devices of one process make one run on JAX: that of one device, whatever their number is. Tier 1.

Laws are called in one process of their own that has eight devices; ``pytest`` itself stays with one.
"""

import json
import os
import sys
import traceback
import warnings
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from planting import mutated
from runs import CLASSES, FEATURES, KINDS, SIZES, VIEW, Stop
from serving import Warm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from devices import sent

import la_core
from la_core import Callback, evaluate, health, kernels, shards
from la_core.bank import State, random_rows, update
from la_core.errors import BackendError, LaCoreError, SettingsError
from la_core.evaluate.search import numbered
from la_core.objectives import local_aggregation_terms

pytest.importorskip("flax")
jax = pytest.importorskip("jax")
jnp = jax.numpy

from la_core.backends.jax import devices as mesh
from la_core.backends.jax.devices import Devices, Part

DEVICES, N, DIM = 8, 47, SIZES[-1]
TOLERANCE = {"float32": 2e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
"""By the dtype of what is compared: in half precision that of the bank."""
BARE = {"knn_every": 0, "health_every": 0}
QUICK = {"epochs": 4, "warmup_epochs": 1, "batch_size": N, **BARE}
"""One step an epoch: half of the shapes to compile."""
RUNS = {
    "plain": replace(KINDS["plain"], epochs=3, warmup_epochs=1),
    "two views": replace(KINDS["two views"], **QUICK),
    "lists": replace(KINDS["lists"], **QUICK),
    "nce": replace(KINDS["lists"], search="exact", **QUICK),
}
FLOAT32 = replace(RUNS["plain"], **BARE)
FLOAT64 = replace(RUNS["two views"], dtype="float64")


def eight_devices():
    """The process that has them."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    return Warm(__file__, XLA_FLAGS=flags)


def _serve():
    answers, sys.stdout = sys.stdout, sys.stderr
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time is the compiler's
    for line in sys.stdin:
        law, arguments = json.loads(line)
        try:
            said = True, globals()[law](*arguments)
        except BaseException:
            said = False, traceback.format_exc()
        jax.config.update("jax_enable_x64", False)
        print(json.dumps(said), file=answers, flush=True)


@pytest.fixture(scope="module")
def warm():
    process = eight_devices()
    yield process
    process.close()


# Functions ------------------------------------------------------------------------------------------------------------


class Case:
    """A bank, and what is asked of it."""

    def __init__(self, n, dtype="float64"):
        jax.config.update("jax_enable_x64", dtype == "float64")
        rng = np.random.default_rng(n)
        rows = random_rows(n, DIM, seed=0).astype(dtype)
        rows[5] = rows[n // 2] = rows[1]  # of equal scores the lowest rows win
        self.rows = rows
        z = random_rows(7, DIM, seed=1).astype(dtype)
        z[0], z[1] = rows[n - 1], -rows[n - 1]  # what is repeated weighs most, and least
        z[2], z[3] = rows[1], 0.9 * rows[n - 1] + 0.8 * rows[n - 2]
        self.numbers = {
            "z": 3 * z,
            "unit": z,
            "indices": np.array([n - 1, 0, n // 2, n - 2, 3, 2, n // 3]),
            "beside": rng.integers(0, n, (7, 5)),
            "weights": rng.standard_normal((7, 5)).astype(dtype),
            "labels": rng.integers(0, 4, (2, n)),
        }

    def on(self, size):
        """The bank dealt out to so many devices, the rest whole on each, and the backend."""
        backend = la_core.backend("jax", devices=size)
        bank = backend.asarray(self.rows) if size == 1 else backend.dealt(self.rows, "same")
        return bank, {name: backend.asarray(x) for name, x in self.numbers.items()}, backend


def terms(bank, x, **options):
    return local_aggregation_terms(
        *(x["z"], State(bank, x["labels"]), x["indices"]), n_background=9, temperature=0.07, **options
    )


def searched(bank, x, backend):
    return [part for k in (2, len(x["labels"][0])) for part in kernels.nearest(x["unit"], bank, k)]


def normalised(bank, x, backend):
    return [part for temperature in (0.02, 1.0) for part in kernels.softmax_mean(x["unit"], bank, temperature)]


def updated(bank, x, backend):
    """And what repeats the last row still does, or it could weigh more than all that is held beside it."""
    bank = jax.jit(lambda bank: update(State(bank), x["indices"], x["z"]).bank)(bank)
    last = np.asarray(shards.held(bank)[0])[len(x["labels"][0]) - 1 :]
    return shards.whole(bank, backend.to_host), np.ptp(last, axis=0)


def clustered(bank, x, backend):
    found = la_core.cluster(bank, n_clusters=9, seed=0, tolerance=0.0)
    again = la_core.cluster(bank, n_clusters=9, seed=0, start=x["labels"][:1], n_iter=1)  # five have no row
    return found.labels, found.inertia, *found.centroids, again.labels, again.inertia


FUNCTIONS = {
    "nearest": searched,
    "softmax_mean": normalised,
    "rows_at": lambda bank, x, backend: [kernels.rows_at(bank, x["indices"])],
    "scores_at": lambda bank, x, backend: [kernels.scores_at(x["unit"], bank, x["beside"])],
    "weighted_rows": lambda bank, x, backend: [kernels.weighted_rows(x["weights"], bank, x["beside"])],
    "update": updated,
    "terms": lambda bank, x, backend: terms(bank, x),
    "cluster": clustered,
    "moments": lambda bank, x, backend: health.moments(bank),
    "knn": lambda bank, x, backend: [evaluate.knn(bank, x["labels"][0], x["z"], own=x["indices"], k=5)],
}


def law_a_bank_on_many_devices_answers_as_on_one(n, size, names, dtype="float64"):
    many = Case(n, dtype).on(size)
    for name in names:
        for got, want in zip(FUNCTIONS[name](*many), on_one(name, n, dtype), strict=True):
            got = np.asarray(got)
            assert got.dtype == want.dtype
            if want.dtype.kind == "i":
                np.testing.assert_array_equal(got, want, err_msg=name)
            else:
                np.testing.assert_allclose(got, want, rtol=0, atol=10 * TOLERANCE[dtype], err_msg=name)


@cache
def on_one(name, n, dtype):
    return [np.asarray(x) for x in FUNCTIONS[name](*Case(n, dtype).on(1))]


@pytest.mark.parametrize(("n", "size", "names"), [(17, 4, list(FUNCTIONS)), (N, 8, ["nearest", "cluster", "update"])])
def test_a_bank_on_many_devices_answers_as_on_one(warm, n, size, names):
    """The first with three rows of five that are none on its last device."""
    warm("law_a_bank_on_many_devices_answers_as_on_one", n, size, names)


def law_a_batch_on_many_devices_has_the_terms_of_one(batch, size):
    case, found = Case(N), []
    for backend in (la_core.backend("jax", devices=size), la_core.backend("jax")):
        x = {name: backend.asarray(rows) for name, rows in case.numbers.items()}
        objective = partial(local_aggregation_terms, n_background=9, temperature=0.07)
        objective = objective if backend.devices is None else backend.devices.divide(objective)
        state = State(backend.asarray(case.rows), x["labels"])
        found.append(jax.jit(objective)(x["z"][:batch], state, x["indices"][:batch]))
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [7, 3])
def test_a_batch_on_many_devices_has_the_terms_of_one(warm, batch):
    """Also of fewer rows than devices."""
    warm("law_a_batch_on_many_devices_has_the_terms_of_one", batch, 4)


# Runs -----------------------------------------------------------------------------------------------------------------


def encoder(backend, settings):
    """With batch norm and dropout, all of it in the dtype of the settings."""
    from flax import nnx

    from la_core.backends.jax.encoder import NnxEncoder, decayed, make_optimizer

    dtype = jnp.dtype(settings.dtype)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(SIZES[0], SIZES[1], use_bias=False, rngs=rngs, param_dtype=dtype)
            self.norm = nnx.BatchNorm(SIZES[1], rngs=rngs, param_dtype=dtype)
            self.norm.mean = nnx.BatchStat(jnp.zeros(SIZES[1], dtype))
            self.norm.var = nnx.BatchStat(jnp.ones(SIZES[1], dtype))
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.head = nnx.Linear(SIZES[1], DIM, rngs=rngs, param_dtype=dtype)

        def __call__(self, x):
            return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))

    module = Net(nnx.Rngs(settings.seed))
    return NnxEncoder(module, make_optimizer(settings, decayed(module)), device=backend.device)


class Watch(Callback):
    """The loss of every step, and the most of a bank that a device has held between steps, in bytes."""

    def __init__(self):
        self.losses, self.held = [], 0

    def on_step(self, run, loss):
        self.losses.append(loss)
        n, dim = run.state.bank.shape
        banks = [x for x in jax.live_arrays() if x.ndim == 2 and x.shape[0] >= n and x.shape[1] == dim]
        self.held = max(self.held, *(part.data.nbytes for x in banks for part in x.addressable_shards))


def go(settings, size, layout="replicated", n=N, callbacks=(), **options):
    """A run of n samples on so many devices."""
    jax.config.update("jax_enable_x64", settings.dtype == "float64")
    backend, watch = la_core.backend("jax", devices=size), Watch()
    options = {"view": VIEW, "progress": False, "bank_layout": layout, "callbacks": [watch, *callbacks]} | options
    run = la_core.train(
        *(la_core.samples(FEATURES[:n], CLASSES[:n]), encoder(backend, settings)),
        backend=backend,
        settings=settings,
        **options,
    )
    host = backend.to_host
    return {
        "losses": watch.losses,
        "bank": shards.whole(run.state.bank, host),
        "labels": host(run.state.labels),
        "weights": run.encoder.weights(),
        "knn": [record.get("knn") for record in run.history],
        "health": [record.get("health", {}).get("clusters") for record in run.history],
    }, watch.held


@cache
def alone(settings):
    return go(settings, 1)[0]


def same(one, other, tolerance):
    losses = other["losses"][-len(one["losses"]) :]  # of a run that was gone on with
    np.testing.assert_allclose(one["losses"], losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one["bank"], other["bank"], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(one["labels"], other["labels"])
    for name in one["weights"]:
        np.testing.assert_allclose(one["weights"][name], other["weights"][name], rtol=0, atol=20 * tolerance)
    assert (one["knn"], one["health"]) == (other["knn"], other["health"])


def law_any_number_of_devices_makes_the_same_run(kind, dtype, layout, sizes, batch=None):
    dtypes = {"bank_dtype": dtype} if dtype.endswith("float16") else {"dtype": dtype}
    settings = replace(RUNS[kind], **dtypes, batch_size=batch or RUNS[kind].batch_size)
    for size in sizes:
        run, held = go(settings, size, layout)
        same(run, alone(settings), TOLERANCE[dtype])
        rows = -(-N // size) if layout == "sharded" else N
        assert held == rows * DIM * jnp.dtype(dtype).itemsize, "a device holds more of the bank than its part"


@pytest.mark.parametrize(
    ("kind", "dtype", "layout", "sizes"),
    [
        ("plain", "float32", "sharded", [2]),
        ("plain", "float32", "replicated", [8]),
        ("two views", "float64", "replicated", [4]),
        ("nce", "float16", "sharded", [4]),
    ],
)  # the soak has all of them
def test_any_number_of_devices_makes_the_same_run(warm, kind, dtype, layout, sizes):
    warm("law_any_number_of_devices_makes_the_same_run", kind, dtype, layout, sizes)


def law_a_checkpoint_goes_on_with_any_number(folder, plan):
    """One run, on another number of devices and in another layout after every stop."""
    for size, layout, after in plan:
        options = {"folder": folder, "resume": "auto", "checkpoint_every": 1, "checkpoint_unit": "steps"}
        try:
            run, _ = go(FLOAT64, size, layout, callbacks=[Stop(after)] if after else [], **options)
        except KeyboardInterrupt:
            assert after
        else:
            assert not after
    same(run, alone(FLOAT64), TOLERANCE["float64"])


def test_a_checkpoint_goes_on_with_any_number_of_devices(warm, tmp_path):
    plan = [(4, "sharded", 1), (1, "sharded", 1), (2, "replicated", 1), (8, "sharded", None)]
    warm("law_a_checkpoint_goes_on_with_any_number", tmp_path, plan)


# Planted bugs ---------------------------------------------------------------------------------------------------------

PLANTED = [
    (shards.best, "local + first(n, comm)", "local", "nearest"),
    (shards.softmax_mean, "xp.exp(lse - total)[:, None] * mean", "mean / bank.comm.size", "softmax_mean"),
    (shards.rows_at, "xp.where(mine[:, None], rows, xp.zeros_like(rows))", "rows", "rows_at"),
    (shards.weighted_rows, "xp.where(mine, weights, xp.zeros_like(weights))", "weights", "weighted_rows"),
    (shards.Shard.places, "indices - self.start", "indices", "scores_at"),
    (kernels.segment_mean, "all_sum(total)", "total", "cluster"),
    (mesh.AxisComm.all_sum, "_sum(x, AXIS)", "x", "moments"),
    (Part.nearest, "jnp.where(places + self.start < self.shape[0], scores, -jnp.inf)", "scores", "nearest"),
    (Part.nearest, "k + self.pads", "k", "nearest"),
    (Part.softmax_mean, "jnp.where(self._last, 1.0 - excess, 1.0)", "jnp.ones_like(excess)", "softmax_mean"),
    (Part.put, "again = jnp.where(self._last, written[-self.pads - 1, :], tail)", "again = tail", "update"),
    (mesh._assigned, "jnp.where(real, labels, centroids.shape[0])", "labels", "cluster"),
    (mesh.MeshBank.sums, "if len(extra) else found", "if False else found", "moments"),
    (Devices.divide, "(b / n)", "1.0", "a batch"),
    (Devices.divide, "(z, indices, *rest)]", "(z, indices[::-1], *rest)]", "a batch"),
]


def law_a_planted_bug_is_caught(number):
    function, before, after, by = PLANTED[number]
    plain = function.__code__
    mesh._on_each.cache_clear()
    function.__code__ = mutated(function, before, after)
    try:
        if by == "a batch":
            law_a_batch_on_many_devices_has_the_terms_of_one(7, 4)
        else:
            law_a_bank_on_many_devices_answers_as_on_one(17, 4, [by])
    finally:
        function.__code__ = plain
        mesh._on_each.cache_clear()


@pytest.mark.parametrize("number", range(len(PLANTED)), ids=lambda i: f"{PLANTED[i][0].__qualname__} {PLANTED[i][2]}")
def test_a_planted_bug_is_caught(warm, number):
    with pytest.raises(AssertionError, match=r"Not equal to tolerance|Arrays are not equal"):
        warm("law_a_planted_bug_is_caught", number)


# What it takes --------------------------------------------------------------------------------------------------------


def law_a_device_gives_what_the_model_says(size):
    """In a step of Local Aggregation with the bank dealt out, beside what the encoder does."""
    case = Case(N, "float32")
    bank, x, _ = case.on(size)
    batch, pads = len(case.numbers["z"]), -N % size
    searching = sent(jax.make_jaxpr(lambda bank: terms(bank, x))(bank).jaxpr)
    writing = sent(jax.make_jaxpr(lambda bank: update(State(bank), x["indices"], x["z"]).bank)(bank).jaxpr)
    candidates = min(9 + pads, -(-N // size))
    assert searching == (8 * batch * candidates + 4 * batch * DIM, 3)  # scores and rows; the background, weighted
    assert writing == (4 * batch * DIM, 1)  # old rows


@pytest.mark.parametrize("size", [2, 8])
def test_a_device_gives_what_the_model_says(warm, size):
    warm("law_a_device_gives_what_the_model_says", size)


def law_classes_are_numbered_wherever_they_are():
    labels = np.array([5, 0, 900, 5, 2, 0, 5, 5], np.int32)
    every = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    for sharding in (jax.sharding.SingleDeviceSharding(jax.devices()[1]), jax.sharding.NamedSharding(every, jax.P())):
        given = jax.device_put(labels, sharding)
        found, place = numbered(given)
        np.testing.assert_array_equal(np.asarray(found), [0, 2, 5, 900])
        np.testing.assert_array_equal(np.asarray(found)[np.asarray(place)], labels)
        assert found.devices() == place.devices() == given.devices()


def test_classes_are_numbered_wherever_they_are(warm):
    warm("law_classes_are_numbered_wherever_they_are")


def law_the_encoder_is_divided(batch, size):
    backend = la_core.backend("jax", devices=size)
    made = encoder(backend, FLOAT32)
    views = backend.asarray(np.zeros((batch, SIZES[0]), np.float32))
    forward = made._forward.lower(made.parameters, made.state, views).compile().as_text()
    rows = {int(line.split("f32[")[1].split(",")[0]) for line in forward.splitlines() if " dot(" in line}
    assert rows == {-(-batch // size)}, "a device embeds more than its part"
    z, through, _ = made._forward(made.parameters, made.state, views)
    backward = made._back.lower(through, z).compile().as_text()
    gathered = [text.count(" all-gather(") for text in (forward, backward)]
    assert gathered == [1, 0], "more than the embeddings is gathered"


@pytest.mark.parametrize("batch", [24, 19])
def test_the_encoder_is_divided(warm, batch):
    warm("law_the_encoder_is_divided", batch, 8)


# What cannot be done --------------------------------------------------------------------------------------------------


def law_what_cannot_be_done_is_said():
    said = []
    for make in (
        lambda: la_core.backend("jax", devices=9),
        lambda: la_core.backend("jax", "cpu:5", devices=4),
        lambda: la_core.backend("jax", devices=0),
        lambda: go(replace(FLOAT32, n_background=2, n_clusters=2, knn_k=1), 4, "sharded", n=3),
        lambda: go(RUNS["lists"], 2, "sharded"),
    ):
        try:
            make()
        except LaCoreError as error:
            said.append([type(error).__name__, str(error)])
    return said


def test_what_cannot_be_done_is_said(warm):
    many, beyond, none, few, lists = warm("law_what_cannot_be_done_is_said")
    assert many[0] == beyond[0] == none[0] == BackendError.__name__
    assert many[1].startswith("JAX has 8 devices from 'cpu' on, and not 9: set XLA_FLAGS=--xla_force_host_platform")
    assert beyond[1].startswith("JAX has 3 devices from 'cpu:5' on, and not 4")
    assert none[1] == "devices must be an integer of at least 1; got 0"
    assert few == [SettingsError.__name__, "3 rows of a bank cannot be sharded over 4 devices: take fewer"]
    assert lists[1].startswith("search='lists' reads the whole bank")


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    _serve()
