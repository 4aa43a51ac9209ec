"""NaN and infinity at step n: nothing of such a step reaches encoder or bank, on any library, and the run says so."""

from dataclasses import replace

import numpy as np
import pytest
import runs
from array_api_compat import array_namespace
from planting import mutated
from runs import KINDS, PLAIN, digest, go, lines

import la_core
from la_core.backends.jax import JaxEncoder
from la_core.backends.torch import TorchEncoder
from la_core.errors import NotFiniteError
from la_core.folder import read_metrics
from la_core.mlp import MLP
from la_core.train import _Trainer

NAMES = ("numpy", "torch", "jax")
SKIP = replace(PLAIN, on_not_finite="skip", health_every=0)
WHERE = [
    ("numpy", "row"),
    ("numpy", "gradients"),
    ("torch", "embeddings"),
    ("torch", "gradients"),
    ("jax", "gradients"),
]
PLACES = ("embeddings", "row", "gradients")

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


class Faulty:
    """An encoder that goes wrong at some steps, counted from 1: in all of a batch, in one row, or in its gradients."""

    def __init__(self, encoder, place, steps, value=np.nan):
        self.encoder, self.place, self.steps, self.value = encoder, place, set(steps), value
        self.number, self.fired = 0, []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def pullback(self, batch):
        self.number += 1
        now = self.number in self.steps
        z, back = self.encoder.pullback(batch * self.value if now and self.place == "embeddings" else batch)
        if now:
            self.fired.append(self.number)
        if now and self.place == "row":
            xp = array_namespace(z)
            z = z * xp.where(xp.arange(z.shape[0])[:, None] == 1, self.value, 1.0)

        def faulty(cotangent):
            back(cotangent * self.value if now and self.place == "gradients" else cotangent)

        return z, faulty


class Watch(la_core.Callback):
    """After every step: is the bank finite, and did a step that was skipped leave all as it was?"""

    def __init__(self):
        self.before = None
        self.skipped = []

    def now(self, run):
        assert np.isfinite(run.backend.to_host(run.state.bank)).all(), f"the bank after step {run.step}"
        weights = run.encoder.weights()
        assert all(np.isfinite(x).all() for x in weights.values()), f"the weights after step {run.step}"
        return run.backend.to_host(run.state.bank).copy(), weights

    def on_start(self, run):
        self.before = self.now(run)

    def on_step(self, run, loss):
        assert np.isfinite(loss)
        bank, _ = self.before
        self.before = self.now(run)
        assert (self.before[0] != bank).any()

    def on_skip(self, run, error):
        (bank, weights), self.before = self.before, self.now(run)
        np.testing.assert_array_equal(self.before[0], bank)
        for name, x in weights.items():
            np.testing.assert_array_equal(self.before[1][name], x, err_msg=name)
        self.skipped.append(run.step)


def law_a_step_that_is_not_finite_never_was(name, place, value, settings=SKIP, steps=(2, 3, 8), **options):
    """Returns the run and its metrics."""
    made, watch = [], Watch()

    def make(backend, settings):
        made.append(Faulty(runs.ENCODERS[name](backend, settings), place, steps, value))
        return made[0]

    with pytest.warns(UserWarning, match=r"at step \d+, epoch \d+\): the step is skipped") as told:
        run = go(name, make=make, settings=settings, callbacks=[watch], **options)
    assert made[0].fired == list(steps)
    assert watch.skipped == list(steps)
    assert len([w for w in told if "skipped" in str(w.message)]) == len(steps)
    assert [record["skipped"] for record in run.history] == [
        sum(3 * epoch < step <= 3 * epoch + 3 for step in steps) for epoch in range(settings.epochs)
    ]
    assert run.status == "finished"
    return run


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES[:2])
def test_a_step_that_is_not_finite_never_was(name, place, value):
    law_a_step_that_is_not_finite_never_was(name, place, value)


@pytest.mark.parametrize(("place", "value"), [("embeddings", np.inf), ("gradients", np.nan)])
def test_a_step_that_is_not_finite_never_was_on_jax(place, value):
    law_a_step_that_is_not_finite_never_was("jax", place, value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["two views", "lists"])
def test_nor_with_two_views_or_lists(kind, place):
    settings = replace(KINDS[kind], on_not_finite="skip", health_every=0)
    law_a_step_that_is_not_finite_never_was("torch", place, np.nan, settings)


def test_nor_where_the_objective_is_compiled_over_two_views():
    law_a_step_that_is_not_finite_never_was(
        *("jax", "embeddings", np.nan, replace(KINDS["two views"], on_not_finite="skip", health_every=0))
    )


MOVED = "run.state = self._update(run.state, rows, z)"
BACK, NAMED = "back(team.mine(terms.cotangent, n, n_views))", 'f"the gradient of {name}"'
BUGS = {
    "the bank before the loss": (_Trainer._step, 'check.finite("loss", loss)', MOVED, "jax", "row"),
    "the bank before the gradients": (_Trainer._step, BACK, f"{MOVED}; {BACK}", "torch", "gradients"),
    "statistics of the batch are kept": (_Trainer._hold_back, "run.encoder.revert()", "pass", "torch", "embeddings"),
    "gradients go unseen": (TorchEncoder.step, "if not self._scaler.is_enabled():", "if False:", "torch", "gradients"),
    "gradients go unseen on JAX": (JaxEncoder.step, "if not self._finite:", "if False:", "jax", "gradients"),
    "gradients go unseen on NumPy": (MLP.step, f"check.finite({NAMED}, gradient)", "pass", "numpy", "gradients"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_that_lets_it_through_is_caught(monkeypatch, bug):
    function, before, after, name, place = BUGS[bug]
    monkeypatch.setattr(function, "__code__", mutated(function, before, after))
    with pytest.raises((AssertionError, NotFiniteError, pytest.fail.Exception)):
        law_a_step_that_is_not_finite_never_was(name, place, np.nan)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in NAMES[:2] for place in PLACES] + [("jax", "gradients")]
)
def test_by_default_the_run_ends_there(name, place, tmp_path):
    watch = Watch()

    def make(*steps):
        return lambda backend, settings: Faulty(runs.ENCODERS[name](backend, settings), place, steps)

    with pytest.raises(NotFiniteError, match=r"at step 5, epoch 2\): lower the learning rate.*samples \[\d+"):
        go(name, tmp_path / "run", make=make(5), callbacks=[watch])
    assert watch.skipped == []
    with np.load(tmp_path / "run" / "embeddings.npz") as saved:
        np.testing.assert_array_equal(saved["bank"], watch.before[0])
    with np.load(tmp_path / "run" / "encoder.npz") as saved:
        for key, x in watch.before[1].items():
            np.testing.assert_array_equal(saved[key], x, err_msg=key)
    assert go(name, tmp_path / "run", make=make()).status == "finished"  # from the last checkpoint


def test_it_ends_after_so_many_steps_in_a_row():
    def faults(steps):
        return lambda backend, settings: Faulty(MLP(backend, runs.SIZES, settings), "embeddings", steps)

    patient = replace(SKIP, most_skipped=2)
    with pytest.warns(UserWarning, match="is skipped"), pytest.raises(NotFiniteError, match=r"6, .*after 2 steps in a"):
        go("numpy", make=faults([1, 4, 5, 6]), settings=patient)
    with pytest.warns(UserWarning, match="is skipped"):
        assert go("numpy", make=faults([1, 2, 4, 5, 7, 8]), settings=patient).status == "finished"
    with (
        pytest.warns(UserWarning, match="is skipped"),
        pytest.raises(NotFiniteError, match="every step of epoch 2 was"),
    ):
        go("numpy", make=faults([4, 5, 6]), settings=SKIP)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.filterwarnings("ignore:.*the step is skipped:UserWarning")
def test_a_run_that_skipped_goes_on_to_the_bit(name, tmp_path):
    """Also how many were skipped in a row, before it was stopped, counts."""
    steps = (3, 4, 11)

    def make(done):
        return lambda backend, settings: Faulty(
            runs.ENCODERS[name](backend, settings), "gradients", [step - done for step in steps]
        )

    whole = go(name, make=make(0), settings=SKIP)
    with pytest.raises(KeyboardInterrupt):  # on_step is not told of a step that is skipped
        go(name, tmp_path / "run", make=make(0), settings=SKIP, callbacks=[runs.Stop(3)])
    saved = 4  # a checkpoint every two steps: that of the fourth, which was skipped
    run = go(name, tmp_path / "run", make=make(saved), settings=SKIP)
    assert digest(run) == digest(whole)
    assert lines(read_metrics(tmp_path / "run")) == lines(whole.history)
