"""A run that is stopped, anyhow and as often as one likes, ends as the one that was not: to the bit. Tier 0."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from killing import apart, killed
from planting import mutated
from runs import CLASSES, FEATURES, KINDS, PLAIN, Stop, go, outcome, stopped

import la_core
from la_core import Settings, resume
from la_core.backends.torch import encoder as torch_encoder
from la_core.checkpoint import Checkpoints
from la_core.errors import CheckpointError, RunFolderError, SettingsError, Terminated
from la_core.folder import read_metrics
from la_core.layout import Layout
from la_core.mlp import MLP

TESTS = Path(__file__).parent
STEPS = 15
whole = {}


def uninterrupted(name, kind):
    """The outcome of the run that nobody stopped; made once."""
    if (name, kind) not in whole:
        whole[name, kind] = outcome(go(name, settings=KINDS[kind]))
    return whole[name, kind]


def law_a_stopped_run_ends_as_the_whole_one(folder, name, kind, stops):
    for after in stops:
        stopped(name, folder, after, settings=KINDS[kind])
    assert outcome(go(name, folder, settings=KINDS[kind]), folder) == uninterrupted(name, kind)


# Stopped between two steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_stopped_run_ends_as_the_whole_one(tmp_path, name, kind):
    law_a_stopped_run_ends_as_the_whole_one(tmp_path, name, kind, (1, 4, 1, 2, 5))


def test_a_stopped_run_ends_as_the_whole_one_on_jax(tmp_path):
    pytest.importorskip("jax")
    law_a_stopped_run_ends_as_the_whole_one(tmp_path, "jax", "lists", (11,))


@pytest.mark.parametrize("after", range(1, STEPS + 1))
def test_a_run_can_be_stopped_after_any_step(tmp_path, after):
    law_a_stopped_run_ends_as_the_whole_one(tmp_path, "numpy", "lists", (after,))


def test_saving_by_epochs_ends_in_the_same_run_too(tmp_path):
    options = {"checkpoint_every": 2, "checkpoint_unit": "epochs"}
    for after in (4, 8, 3):
        stopped("numpy", tmp_path, after, **options)
    assert outcome(go("numpy", tmp_path, **options), tmp_path) == uninterrupted("numpy", "plain")
    assert [place.epoch for place in Checkpoints(tmp_path / "checkpoints").places()] == [4, 5]


def test_workers_go_on_in_the_middle_of_an_epoch(tmp_path):
    stopped("numpy", tmp_path, 5)
    assert outcome(go("numpy", tmp_path, workers=1), tmp_path) == uninterrupted("numpy", "plain")


def test_labels_that_were_brought_go_on(tmp_path):
    mine = {"labels": 100 * CLASSES[None]}
    stopped("numpy", tmp_path, 11, **mine)
    with pytest.raises(CheckpointError, match="labels brought along"):
        go("numpy", tmp_path, labels=1 - CLASSES[None] // 2)
    assert outcome(go("numpy", tmp_path, **mine), tmp_path) == outcome(go("numpy", **mine))


# Stopped anywhere ---------------------------------------------------------------------------------------------------


class Gone(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("event", ["on_start", "on_resume", "on_epoch", "on_phase_end", "on_end"])
def test_a_callback_may_be_the_end(tmp_path, event):
    class Dies(la_core.Callback):
        pass

    def die(*args):
        raise Gone

    setattr(Dies, event, die)
    if event == "on_resume":
        stopped("numpy", tmp_path, 3)
    for _ in range(2):
        with pytest.raises(Gone):
            go("numpy", tmp_path, callbacks=[Dies()])
    assert outcome(go("numpy", tmp_path), tmp_path) == uninterrupted("numpy", "plain")


@pytest.mark.parametrize("kind", ["plain", "lists"])
def test_a_clustering_that_was_never_used_is_made_again(tmp_path, monkeypatch, kind):
    """Gone between a clustering and its first use, at the first and at a later one."""
    train = sys.modules["la_core.train"]
    for round_ in (0, 1):
        left = [round_]

        def clustered(*args, left=left, **options):
            result = la_core.cluster(*args, **options)
            if not left[0]:
                raise Gone
            left[0] -= 1
            return result

        monkeypatch.setattr(train, "cluster", clustered)
        with pytest.raises(Gone):
            go("numpy", tmp_path, settings=KINDS[kind])
    monkeypatch.undo()
    assert outcome(go("numpy", tmp_path, settings=KINDS[kind]), tmp_path) == uninterrupted("numpy", kind)


def test_a_finished_run_is_given_back_and_nothing_is_learnt(tmp_path):
    first = go("numpy", tmp_path)
    again = go("numpy", tmp_path, resume="must", callbacks=[Stop(1)])
    assert again.status == "finished"
    assert outcome(again, tmp_path) == outcome(first)
    longer = replace(PLAIN, epochs=7)
    with pytest.warns(UserWarning, match="goes on with epochs 7; the checkpoint has 5"):
        more = go("numpy", tmp_path, settings=longer)
    assert len(more.history) == 7
    assert runs.lines(more.history[:5]) == runs.lines(first.history)
    with pytest.raises(CheckpointError, match="the run has begun 7 epochs already, more than the 2 that are asked for"):
        go("numpy", tmp_path, settings=replace(PLAIN, epochs=2))


def test_an_epoch_that_was_begun_counts_as_one_that_is_there(tmp_path):
    each = -(-len(FEATURES) // PLAIN.batch_size)
    stopped("numpy", tmp_path, 2 * each + 2, checkpoint_unit="steps", checkpoint_every=1)
    with pytest.raises(CheckpointError, match="has begun 3 epochs already, more than the 2"):
        go("numpy", tmp_path, settings=replace(PLAIN, epochs=2))


def test_a_folder_that_is_not_there_is_not_made_where_a_checkpoint_must_be(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        go("numpy", tmp_path / "mistyped" / "run", resume="must")
    assert not any(tmp_path.iterdir())


def test_fewer_clusters_than_there_were_begin_anew(tmp_path):
    last = replace(PLAIN, cluster_start="last")
    go("numpy", tmp_path, settings=last)
    with pytest.warns(UserWarning, match="goes on with"):
        run = go("numpy", tmp_path, settings=replace(last, epochs=6, n_clusters=3))
    assert run.status == "finished"
    assert run.state.labels.max() == 2


# Killed -------------------------------------------------------------------------------------------------------------


def law_killed_runs_end_as_the_whole_one(folder, name, count, seed, least):
    """Runs, each killed at random instants until it comes to its end: so many, or more until there were enough kills.

    Enough are ``least`` for each run. Forked from here, where everything is warm, save on JAX: once it has begun, it
    does not survive a fork. So it begins in each anew, for seconds, and the instants count from its first step.
    Returns the runs and the kills.
    """
    rng, kinds, kills, number = np.random.default_rng(seed), list(KINDS), 0, 0
    late = name == "jax"
    if late:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    else:
        go(name)
    wanted, long = {}, {}
    while number < count or kills < count * least:
        kind, place, mine = kinds[number % len(kinds)], Path(folder) / str(number), 0

        def attempt(tell, kind=kind, place=place):
            began = Began(tell)
            run = go(name, place, settings=KINDS[kind], callbacks=[began])
            tell([outcome(run, place), time.monotonic() - ((late and began.at) or began.made)])

        if kind not in wanted:
            _, (wanted[kind],) = killed(lambda tell, kind=kind: tell(outcome(go(name, settings=KINDS[kind]))), 300)
            _, (*_, (same, long[kind])) = killed(attempt, 300)
            assert same == wanted[kind]
            shutil.rmtree(place)
        while True:
            most = long[kind] * (1.5 / least if mine < least else 1.2)
            status, told = killed(attempt, rng.uniform(0, most), begun=late)
            if status == 0:
                break
            assert status == -signal.SIGKILL, f"it failed by itself with {status}"
            mine += 1
        assert told[-1][0] == wanted[kind], f"run {number} ({kind}) ended as another one after {mine} kills"
        shutil.rmtree(place)
        kills, number = kills + mine, number + 1
    return number, kills


class Began(la_core.Callback):
    """Tells when a run has made its first step."""

    def __init__(self, tell):
        self.tell, self.made, self.at = tell, time.monotonic(), None

    def on_step(self, run, loss):
        if self.at is None:
            self.at = time.monotonic()
            self.tell(None)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_killed_runs_end_as_the_whole_one(tmp_path, name):
    count, kills = apart("test_resume:law_killed_runs_end_as_the_whole_one", tmp_path, name, 3, 0, 2)
    assert (count >= 3, kills >= 6) == (True, True)


# Asked to end -------------------------------------------------------------------------------------------------------


class Asks(la_core.Callback):
    """SIGTERM to this process during a step, twice."""

    def __init__(self, at):
        self.at, self.steps = at, []

    def on_step(self, run, loss):
        self.steps.append(run.step)
        if run.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [1, 6, STEPS])
def test_sigterm_finishes_the_step_saves_and_ends(tmp_path, at):
    asks = Asks(at)
    with pytest.raises(Terminated, match=f"after step {at}; it goes on by resume='auto'") as caught:
        go("numpy", tmp_path, callbacks=[asks], checkpoint_every=100)
    assert caught.value.code == 143
    assert asks.steps[-1] == at
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["status"] == "terminated"
    assert Checkpoints(tmp_path / "checkpoints").latest().facts["step"] == at
    assert outcome(go("numpy", tmp_path), tmp_path) == uninterrupted("numpy", "plain")


def test_a_program_that_handles_sigterm_itself_keeps_its_handler(tmp_path):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *args: came.append(1))
    try:
        assert go("numpy", tmp_path, callbacks=[Asks(4)]).status == "finished"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(came) == 2


def test_without_the_main_thread_a_run_runs_as_well(tmp_path):
    told = []
    thread = threading.Thread(target=lambda: told.append(outcome(go("numpy", tmp_path))))
    thread.start()
    thread.join()
    assert told == [uninterrupted("numpy", "plain")]


COMMAND = """
import sys
sys.path.insert(0, sys.argv[2])
import la_core, runs
class Slow(la_core.Callback):
    def on_step(self, run, loss):
        print(run.step, flush=True)
        __import__("time").sleep(0.05)
runs.go("numpy", sys.argv[1], callbacks=[Slow()], checkpoint_every=100)
"""


def command(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder), str(TESTS)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_process_that_is_terminated_exits_with_143_and_loses_no_step(tmp_path):
    for wait in (0.01, 0.12):
        with command(tmp_path) as process:
            first = int(process.stdout.readline())
            time.sleep(wait)
            process.send_signal(signal.SIGTERM)
            told = [first, *map(int, process.stdout.read().split())]
        assert process.returncode == 143
        assert Checkpoints(tmp_path / "checkpoints").latest().facts["step"] == told[-1]
    assert outcome(go("numpy", tmp_path), tmp_path) == uninterrupted("numpy", "plain")


# One at a time ------------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_while_one_is_at_work_and_a_killed_one_locks_nothing(tmp_path):
    with command(tmp_path / "run") as process:
        process.stdout.readline()
        for mode in ("auto", "must"):
            with pytest.raises(RunFolderError, match=rf"a run is at work in .*\(process {process.pid} on .*\)"):
                go("numpy", tmp_path / "run", resume=mode)
        process.kill()
    assert (tmp_path / "run" / "run.lock").is_file()
    assert outcome(go("numpy", tmp_path / "run"), tmp_path / "run") == uninterrupted("numpy", "plain")
    assert not (tmp_path / "run" / "run.lock").exists()


# What does not fit --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run of NumPy, stopped; copy it, for the fixture is shared."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    stopped("numpy", folder, 10)
    return folder


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "run")


def test_every_setting_is_either_fixed_or_free():
    assert {field.name for field in fields(Settings)} == resume.FIXED | resume.FREE
    assert not resume.FIXED & resume.FREE


OTHER = {
    "seed": 1, "dtype": "float64", "bank_dtype": "float16", "warmup_epochs": 1, "batch_size": 16,
    "warmup_batch_size": 16, "optimizer": "adam", "views": 2, "bank_start": "random", "n_clusterings": 3,
    "search": "lists",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(resume.FIXED))
def test_a_setting_that_a_run_is_made_of_cannot_change(halfway, tmp_path, name):
    folder = copied(halfway, tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} is .* there and .* here"):
        go("numpy", folder, settings=replace(PLAIN, **{name: OTHER[name]}))
    assert outcome(go("numpy", folder), folder) == uninterrupted("numpy", "plain")


def test_a_setting_that_may_change_is_told(halfway, tmp_path):
    with pytest.warns(UserWarning, match=r"goes on with learning_rate 0.05; the checkpoint has 0.1"):
        run = go("numpy", copied(halfway, tmp_path), settings=replace(PLAIN, learning_rate=0.05))
    assert run.history[-1]["learning_rate"] == 0.05
    assert run.history[0]["learning_rate"] == 0.1


@pytest.mark.parametrize(
    "data",
    [
        la_core.samples(FEATURES[:-1], CLASSES[:-1]),
        la_core.samples(FEATURES[::-1], CLASSES[::-1]),
        la_core.samples(FEATURES, CLASSES[::-1].copy()),
        la_core.samples(FEATURES),
        la_core.samples(FEATURES, CLASSES).part(np.arange(48)[::-1].copy()),
    ],
    ids=["fewer", "reversed", "other classes", "no classes", "a part"],
)
def test_other_samples_are_refused(halfway, tmp_path, data):
    with pytest.raises(CheckpointError, match="the samples are not those of the checkpoint"):
        go("numpy", copied(halfway, tmp_path), data=data)


def test_another_network_is_refused_and_stays_as_it_is(halfway, tmp_path):
    other = MLP(la_core.backend("numpy"), (10, 17, 8), PLAIN)
    before = other.weights()
    with pytest.raises(CheckpointError, match=r"does not fit the encoder: .*0\.bias"):
        go("numpy", copied(halfway, tmp_path), make=lambda *args: other)
    for name, x in other.weights().items():
        np.testing.assert_array_equal(x, before[name])


def test_other_views_are_told(halfway, tmp_path):
    with pytest.warns(UserWarning, match=r"goes on with FeatureView\(noise=0.3.*the checkpoint has FeatureView"):
        go("numpy", copied(halfway, tmp_path), view=la_core.FeatureView(noise=0.3, drop=0.1))


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    for mode, error, words in (
        ("auto", RunFolderError, "holds notes.txt"),
        ("must", CheckpointError, "no checkpoint to go on from"),
        ("never", RunFolderError, "not empty"),
    ):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(error, match=words):
            go("numpy", tmp_path, resume=mode)
        assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    go("numpy", tmp_path / "new")
    with pytest.raises(RunFolderError, match="go on with its run by resume='auto'"):
        go("numpy", tmp_path / "new", resume="never")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": "maybe"}, "resume must be one of 'never', 'auto', 'must'"),
        ({"checkpoint_every": -1}, "checkpoint_every must be an integer of at least 0"),
        ({"checkpoint_unit": "days"}, "checkpoint_unit must be one of 'epochs', 'steps'"),
        ({"folder": None, "resume": "auto"}, "needs the folder"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(tmp_path, options, words):
    with pytest.raises(SettingsError, match=words):
        go("numpy", **{"folder": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_no_checkpoints_where_none_are_wanted(tmp_path):
    go("numpy", tmp_path, checkpoint_every=0)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(Terminated, match="without a checkpoint"):
        go("numpy", tmp_path / "other", checkpoint_every=0, callbacks=[Asks(3)])


def test_a_damaged_newest_is_passed_over_and_said(tmp_path):
    stopped("numpy", tmp_path, 9)
    newest = max((tmp_path / "checkpoints").iterdir())
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=r"state.safetensors is damaged: .* going back to"):
        run = go("numpy", tmp_path)
    assert outcome(run, tmp_path) == uninterrupted("numpy", "plain")


def test_lines_of_metrics_beyond_the_checkpoint_go(tmp_path):
    stopped("numpy", tmp_path, 8)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99}\n{"cut o')
    stopped("numpy", tmp_path, 1)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2]


def changed(array, value):
    return np.where(np.arange(array.size).reshape(array.shape) == 3, value, array).astype(array.dtype)


FORGED = {
    "no bank": lambda state, facts: state.pop("bank"),
    "a bank of other rows": lambda state, facts: state.update(bank=state["bank"][:-1]),
    "a bank of other numbers": lambda state, facts: state.update(bank=state["bank"].astype(np.float64)),
    "a bank with NaN": lambda state, facts: state.update(bank=changed(state["bank"], np.nan)),
    "labels beyond N": lambda state, facts: state.update(labels=changed(state["labels"], 48)),
    "labels of floats": lambda state, facts: state.update(labels=state["labels"].astype(np.float32)),
    "rows beyond N": lambda state, facts: state.update({"lists.rows": changed(state["lists.rows"], 48)}),
    "half of the lists": lambda state, facts: state.pop("lists.centroids"),
    "another step": lambda state, facts: facts.update(step=facts["step"] + 1),
    "no step": lambda state, facts: facts.pop("step"),
    "no epoch": lambda state, facts: facts.pop("epoch"),
    "an epoch of words": lambda state, facts: facts["epoch"].update(inertia="much"),
    "a phase that is none": lambda state, facts: facts.update(phase=3),
    "warnings that are none": lambda state, facts: facts.update(warnings={"a": 1}),
    "settings that are none": lambda state, facts: facts.update(settings=[]),
    "an unknown setting": lambda state, facts: facts["settings"].update(call="os.system"),
    "other samples": lambda state, facts: facts.update(data=None),
}


@pytest.fixture(scope="module")
def lists_halfway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists") / "run"
    stopped("numpy", folder, 12, settings=KINDS["lists"])
    return folder


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_state_is_refused_before_anything_changes(lists_halfway, forged):
    found = Checkpoints(lists_halfway / "checkpoints").latest()
    data, settings = la_core.samples(FEATURES, CLASSES), KINDS["lists"].resolved(48)
    of = resume.identity(data, runs.VIEW, None)
    resume.fit(found, data, settings, of)
    FORGED[forged](found.arrays["state"], found.facts)
    with pytest.raises(CheckpointError):
        resume.fit(found, data, settings, of)


# From one library to another ----------------------------------------------------------------------------------------


def assert_near(one, other):
    for a, b in zip(one.history, other.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_the_perceptron_goes_on_elsewhere_with_its_moments(halfway, tmp_path):
    there = go("torch", copied(halfway, tmp_path), make=runs.ENCODERS["numpy"])
    assert_near(there, go("numpy"))


def test_torch_goes_on_in_jax_and_says_what_starts_afresh(tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    from la_core.backends import jax as on_jax
    from la_core.backends import torch as on_torch

    sizes = (10, 16, 8)
    settings = replace(PLAIN, momentum=0.0)

    def here(backend, settings):
        module = on_torch.initialise(on_torch.Perceptron(sizes), settings.seed)
        return on_torch.TorchEncoder(module, on_torch.make_optimizer(module, settings))

    def there(backend, settings):
        module = on_jax.Perceptron(sizes, rngs=nnx.Rngs(0))
        on_jax.initialise(module, settings.seed)
        return on_jax.nnx_encoder(module, on_jax.make_optimizer(settings, on_jax.decayed(module)))

    stopped("torch", tmp_path / "one", 10, make=here, settings=settings)
    with pytest.warns(UserWarning, match="of a TorchEncoder, and this is a NnxEncoder: .*moments .* start afresh"):
        run = go("jax", tmp_path / "one", make=there, settings=settings)
    assert_near(run, go("torch", make=here, settings=settings))
    stopped("jax", tmp_path / "other", 4, make=there, settings=settings)
    with pytest.warns(UserWarning, match="start afresh"):
        back = go("torch", tmp_path / "other", make=here, settings=settings)
    assert back.status == "finished"


# It can fail --------------------------------------------------------------------------------------------------------

BUGS = {
    "bank left out": (Layout.told, "self._here(bank)", "self._here(np.roll(bank, 1, 0))"),
    "generator left out": (resume.restore, 'facts["step"]', "0"),
    "sampler left out": (resume.restore, "memory.number = found.place.number", "memory.number = 0"),
    "labels left out": (resume.restore, 'labels = state.get("labels")', "labels = None"),
    "losses left out": (resume.restore, "[state[name]] if name in state else []", "[]"),
    "lists left out": (resume.restore, '"lists.rows" in state', "False"),
    "labels of before left out": (resume.restore, 'state.get("health.labels")', "None"),
    "moments left out": (MLP.load_training_state, "self._moments =", "moments ="),
    "weights left out": (resume._restore_encoder, "encoder.load(given)", "pass"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(tmp_path, monkeypatch, bug):
    kind = "lists" if "lists" in bug else "plain"
    uninterrupted("numpy", kind)
    function, right, wrong = BUGS[bug]
    monkeypatch.setattr(function, "__code__", mutated(function, right, wrong))
    with pytest.raises((AssertionError, RunFolderError, CheckpointError)):
        law_a_stopped_run_ends_as_the_whole_one(tmp_path, "numpy", kind, (5, 7))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("torch.set_rng_state", "len"), ("self.optimizer.load_state_dict", "len")],
    ids=["generator", "moments"],
)
def test_a_planted_bug_in_the_torch_encoder_is_caught(tmp_path, monkeypatch, right, wrong):
    uninterrupted("torch", "plain")
    function = torch_encoder.TorchEncoder.load_training_state
    monkeypatch.setattr(function, "__code__", mutated(function, f"{right}(", f"{wrong}("))
    with pytest.raises(AssertionError):
        law_a_stopped_run_ends_as_the_whole_one(tmp_path, "torch", "plain", (5, 6))
