"""The run: what it promises about order, repetition, files, and failure."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import la_core
from la_core import Settings, train
from la_core.backends.torch import Perceptron, TorchEncoder, make_optimizer
from la_core.data import workers
from la_core.errors import DataError, NotFiniteError, RangeError, RunFolderError, SettingsError, ShapeError
from la_core.folder import RunFolder, read_metrics, whole
from la_core.mlp import MLP
from la_core.run import AGGREGATION, WARM_UP

RNG = np.random.default_rng(0)
CLASSES = np.repeat(np.arange(4), 12)
CENTRES = 3 * RNG.standard_normal((4, 10))
FEATURES = (CENTRES[CLASSES] + RNG.standard_normal((48, 10))).astype(np.float32)
SMALL = Settings(
    epochs=4, warmup_epochs=2, batch_size=20, n_background=16, n_clusters=6, n_clusterings=2, knn_k=5, learning_rate=0.1
)


def numpy_encoder(settings):
    return MLP(la_core.backend("numpy"), (10, 16, 8), settings)


def torch_encoder(settings):
    torch.manual_seed(settings.seed)
    module = Perceptron((10, 16, 8))
    return TorchEncoder(module, make_optimizer(module, settings))


both = pytest.mark.parametrize(("name", "make"), [("numpy", numpy_encoder), ("torch", torch_encoder)])


def go(name, make, settings=SMALL, data=None, **options):
    source = la_core.samples(FEATURES, CLASSES) if data is None else data
    return train(source, make(settings), backend=la_core.backend(name), settings=settings, progress=False, **options)


class Log(la_core.Callback):
    """What happened, in order."""

    def __init__(self):
        self.events = []

    def on_start(self, run):
        self.events.append("start")

    def on_step(self, run, loss):
        has_labels = run.state.labels is not None
        self.events.append((run.phase, has_labels))
        norms = np.linalg.norm(run.backend.to_host(run.state.bank), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)

    def on_epoch(self, run, record):
        self.events.append("epoch")

    def on_phase_end(self, run):
        self.events.append(f"{run.phase} ends")

    def on_end(self, run):
        self.events.append(run.status)


@both
def test_a_run_learns_and_tells_of_it_in_order(name, make):
    log = Log()
    run = go(name, make, callbacks=[log])
    warm, aggregate = [(WARM_UP, False)] * 3, [(AGGREGATION, True)] * 3  # 48 samples in batches of 20
    assert log.events == [
        "start",
        *(*warm, "epoch", *warm, "epoch", f"{WARM_UP} ends"),
        *(*aggregate, "epoch", *aggregate, "epoch", f"{AGGREGATION} ends"),
        "finished",
    ]
    assert [r["phase"] for r in run.history] == [WARM_UP, WARM_UP, AGGREGATION, AGGREGATION]
    for record in run.history:
        assert np.isfinite(record["loss"])
        assert record["seconds"]["epoch"] > 0
        assert 0 <= record["knn"] <= 1
    assert run.history[-1]["knn"] > 0.8  # four separate blobs
    assert len(run.history[2]["inertia"]) == 2
    assert 0 <= run.history[2]["without_close"] <= 1
    assert run.history[2]["mean_close"] > 0
    assert run.backend.to_host(run.state.labels).shape == (2, 48)


def law_of_epochs_loaded_ahead(monkeypatch, patience):
    """While an epoch is being closed the first batch of the next is on its way, and none is after the last."""
    wanted, begun, load = [], [threading.Event() for _ in range(SMALL.epochs)], workers.load

    def watched(data, indices, view, *keys):
        for _, epoch in keys:  # evaluation has none
            wanted.append(epoch)
            begun[epoch].set()
        return load(data, indices, view, *keys)

    class Waits(la_core.Callback):
        def on_epoch(self, run, record):
            assert all(event.wait(patience) for event in begun[: run.epoch + 2])

    monkeypatch.setattr(workers, "load", watched)
    go("numpy", numpy_encoder, callbacks=[Waits()])
    assert wanted == [epoch for epoch in range(SMALL.epochs) for _ in range(3)]


def test_an_epoch_is_loaded_while_the_one_before_is_closed(monkeypatch):
    law_of_epochs_loaded_ahead(monkeypatch, 20)


def test_an_epoch_that_is_loaded_when_it_begins_is_caught(monkeypatch):
    monkeypatch.setattr(workers, "one_ahead", lambda function, tasks: (function(task) for task in tasks))
    with pytest.raises(AssertionError):
        law_of_epochs_loaded_ahead(monkeypatch, 0.2)


@both
def test_a_run_repeats_to_the_bit_and_follows_its_seed(name, make):
    first, again = go(name, make), go(name, make)
    other = go(name, make, Settings(**{**SMALL.__dict__, "seed": 1}))
    to_host = first.backend.to_host
    np.testing.assert_array_equal(to_host(first.state.bank), to_host(again.state.bank))
    np.testing.assert_array_equal(to_host(first.state.labels), to_host(again.state.labels))
    assert [r["loss"] for r in first.history] == [r["loss"] for r in again.history]
    assert not np.array_equal(to_host(first.state.bank), to_host(other.state.bank))


@pytest.mark.parametrize(
    "change",
    [
        {"warmup": "nce", "n_noise": 30},
        {"bank_start": "random"},
        {"combine": "intersection"},
        {"combine": "majority"},
        {"views": 2, "instance_weight": 0.5},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"schedule": "cosine"},
        {"n_clusters": (3, 9)},
        {"dtype": "float64"},
        {"warmup_epochs": 0},
    ],
)
def test_every_setting_runs(change):
    run = go("numpy", numpy_encoder, Settings(**{**SMALL.__dict__, **change}))
    assert run.status == "finished"
    assert np.isfinite(run.history[-1]["loss"])
    assert run.state.bank.dtype == np.dtype(run.settings.dtype)


@pytest.mark.parametrize(
    ("every", "unit", "expected"), [(1, "epochs", 3), (2, "epochs", 2), (2, "steps", 5), (100, "steps", 1)]
)
def test_clustering_comes_first_and_then_as_often_as_asked(monkeypatch, every, unit, expected):
    made = []

    def counted(bank, **options):
        made.append(options["seed"])
        return la_core.cluster(bank, **options)

    monkeypatch.setattr(sys.modules["la_core.train"], "cluster", counted)
    settings = Settings(**{**SMALL.__dict__, "epochs": 5, "recluster_every": every, "recluster_unit": unit})
    go("numpy", numpy_encoder, settings)  # 3 epochs of Local Aggregation, of 3 steps each
    assert len(made) == expected
    assert len(set(made)) == expected


def test_labels_that_the_user_brings_are_used_and_never_replaced():
    mine = CLASSES[None].astype(np.int64)
    run = go("torch", torch_encoder, labels=mine)
    np.testing.assert_array_equal(run.backend.to_host(run.state.labels), mine)
    assert "inertia" not in run.history[-1]


@pytest.mark.parametrize(
    ("labels", "more", "error", "words"),
    [
        (np.zeros((0, 48), int), {}, ShapeError, "one row for each clustering"),
        (CLASSES[None] * 1000, {"search": "lists"}, RangeError, "below 48"),
        (np.full((1, 48), -1), {"search": "lists"}, RangeError, "one at least 0"),
        (np.arange(48)[None], {"search": "lists", "probes": 1, "n_background": 20}, SettingsError, "probes must be"),
    ],
)
def test_labels_that_no_run_could_use_are_refused_before_it_begins(labels, more, error, words):
    with pytest.raises(error, match=words):
        go("numpy", numpy_encoder, Settings(**{**SMALL.__dict__, **more}), labels=labels, callbacks=[NotToBeCalled()])


class NotToBeCalled(la_core.Callback):
    def on_start(self, run):
        raise AssertionError("the run began")


def test_one_sample_and_a_test_set_without_classes_leave_nothing_to_measure():
    one, test = la_core.samples(FEATURES[:1], CLASSES[:1]), la_core.samples(FEATURES[1:3])
    settings = Settings(epochs=2, warmup_epochs=1, batch_size=1)
    backend = la_core.backend("numpy")
    run = train(one, MLP(backend, (10, 8), settings), backend=backend, settings=settings, test=test, progress=False)
    assert run.status == "finished"
    assert "knn" not in run.history[-1]


@pytest.mark.parametrize("labels", [np.full((3, 48), -1), CLASSES[None].astype(np.uint16)])
def test_labels_of_any_kind_that_can_be_used_are(labels):
    run = go("torch", torch_encoder, labels=labels)
    assert run.status == "finished"
    np.testing.assert_array_equal(run.backend.to_host(run.state.labels), labels)


def test_loss_reads_the_old_bank_and_the_update_follows():
    """One step by hand, against the run."""
    settings = Settings(**{**SMALL.__dict__, "epochs": 1, "warmup_epochs": 1, "batch_size": 48, "dtype": "float64"})
    run = go("numpy", numpy_encoder, settings)
    encoder = numpy_encoder(settings)
    order = la_core.data.batches(48, 48, seed=0, epoch=0)[0]
    bank = la_core.unit(encoder.apply(FEATURES.astype(np.float64))[0])
    z, back = encoder.pullback(FEATURES[order].astype(np.float64))
    loss, dz = la_core.instance_discrimination_and_cotangent(z, bank, order, temperature=settings.temperature)
    assert run.history[0]["loss"] == pytest.approx(loss.mean(), rel=1e-12)
    back(dz)
    encoder.step(settings.learning_rate)
    bank[order] = la_core.unit(0.5 * bank[order] + 0.5 * la_core.unit(z))
    np.testing.assert_allclose(run.state.bank, bank, rtol=1e-12)
    for name, weight in encoder.weights().items():
        np.testing.assert_allclose(run.encoder.weights()[name], weight, rtol=1e-10)


def test_the_run_folder_is_complete(tmp_path):
    test = la_core.samples(FEATURES[:8], CLASSES[:8])
    run = go("torch", torch_encoder, folder=tmp_path / "run", test=test)
    folder = tmp_path / "run"
    assert Settings.load(folder / "settings.json") == run.settings
    assert list(read_metrics(folder)) == run.history
    assert json.loads((folder / "status.json").read_text()) == {"status": "finished", "epoch": 4, "epochs": 4}
    with np.load(folder / "embeddings.npz") as saved:
        np.testing.assert_array_equal(saved["bank"], run.backend.to_host(run.state.bank))
        np.testing.assert_array_equal(saved["labels"], run.backend.to_host(run.state.labels))
    with np.load(folder / "encoder.npz") as saved:
        fresh = torch_encoder(Settings(seed=9))
        fresh.load(saved)
    batch = torch.from_numpy(FEATURES[:5])
    torch.testing.assert_close(fresh.apply(batch)[0], run.encoder.apply(batch)[0], rtol=0, atol=0)
    assert not list(folder.glob(".*"))


def full(path, name, arrays):
    raise OSError(28, "No space left on device")


def test_files_that_cannot_be_saved_hide_no_error(tmp_path, monkeypatch):
    class Fails(Log):
        def on_epoch(self, run, record):
            raise ValueError("what went wrong")

    monkeypatch.setattr(RunFolder, "arrays", full)
    log = Fails()
    with pytest.raises(ValueError, match="what went wrong"), pytest.warns(UserWarning, match="No space left"):
        go("numpy", numpy_encoder, folder=tmp_path, callbacks=[log])
    assert log.events[-1] == "failed"
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


def test_a_run_whose_files_cannot_be_saved_has_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "arrays", full)
    log = Log()
    with pytest.raises(RunFolderError, match="No space left"):
        go("numpy", numpy_encoder, folder=tmp_path, callbacks=[log])
    assert log.events[-1] == "failed"
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(tmp_path):
    def half(path):
        path.write_text("half")
        raise OSError("half of it")

    (tmp_path / "a").write_text("before")
    with pytest.raises(OSError, match="half"):
        whole(tmp_path / "a", half)
    assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [("a", "before")]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
    with pytest.raises(RunFolderError, match="cannot be read"):
        go("numpy", numpy_encoder, folder=tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderError, match="metrics"):
        list(read_metrics(tmp_path))


def test_a_used_or_unwritable_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        go("numpy", numpy_encoder, folder=tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["kept.txt"]
    with pytest.raises(RunFolderError, match="cannot be made"):
        go("numpy", numpy_encoder, folder=tmp_path / "kept.txt" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunFolderError, match="cannot be written"):
        go("numpy", numpy_encoder, folder=tmp_path / "locked")
    with pytest.raises(RunFolderError, match="no run folder"):
        list(read_metrics(tmp_path))


SLOW_RUN = """
import sys, time
sys.path.insert(0, sys.argv[2])
import la_core, test_train
class Slow(la_core.Callback):
    def on_epoch(self, run, record):
        print("epoch", flush=True)
        time.sleep(0.2)
settings = la_core.Settings(**{**test_train.SMALL.__dict__, "epochs": 500})
test_train.go("numpy", test_train.numpy_encoder, settings, folder=sys.argv[1], callbacks=[Slow()])
"""


def test_ctrl_c_leaves_a_readable_folder(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", SLOW_RUN, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        for _ in range(3):
            assert process.stdout.readline() == b"epoch\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode != 0
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "interrupted"
    assert len(list(read_metrics(folder))) == status["epoch"] >= 3
    with np.load(folder / "embeddings.npz") as saved:
        np.testing.assert_allclose(np.linalg.norm(saved["bank"], axis=1), 1, atol=1e-5)


class Explodes(MLP):
    """Weights that become infinite after three steps."""

    def step(self, learning_rate):
        super().step(learning_rate if self._steps < 3 else np.inf)


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_embeddings_that_are_not_finite_stop_the_run_before_the_bank(tmp_path):
    settings = Settings(**{**SMALL.__dict__, "knn_every": 0})
    encoder = Explodes(la_core.backend("numpy"), (10, 16, 8), settings)
    with pytest.raises(NotFiniteError, match=r"step 5, epoch 2.*learning rate"):
        train(
            FEATURES,
            encoder,
            backend=la_core.backend("numpy"),
            settings=settings,
            folder=tmp_path / "r",
            progress=False,
        )
    assert json.loads((tmp_path / "r" / "status.json").read_text())["status"] == "failed"
    with np.load(tmp_path / "r" / "embeddings.npz") as saved:
        assert np.isfinite(saved["bank"]).all()


class BrokenAt:
    """A source with one bad sample."""

    def __init__(self, index):
        self.index = index

    def __len__(self):
        return 48

    def __getitem__(self, i):
        if i == self.index:
            raise OSError("disk on fire")
        return FEATURES[i]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": np.zeros((0, 10), np.float32)}, DataError, "empty"),
        ({"data": BrokenAt(17)}, DataError, "sample 17 cannot be read: disk on fire"),
        ({"settings": Settings(n_background=49)}, SettingsError, "n_background must be at most"),
        ({"settings": Settings(n_clusters=49)}, SettingsError, "n_clusters must be at most"),
        ({"settings": Settings(knn_k=49)}, SettingsError, "knn_k must be at most"),
        ({"labels": np.zeros((2, 47), int)}, ShapeError, r"\(H, 48\)"),
        ({"labels": np.zeros((2, 48))}, ShapeError, "integers"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_learnt(tmp_path, options, error, words):
    log = Log()
    with pytest.raises(error, match=words):
        go("numpy", numpy_encoder, folder=tmp_path / "run", callbacks=[log], **options)
    assert not log.events
    assert not list(tmp_path.glob("run/*"))  # so that the same command can be given again


@pytest.mark.parametrize("n", [1, 2, 5])
def test_very_small_data(n):
    settings = Settings(epochs=4, warmup_epochs=2, batch_size=3)
    run = go("numpy", numpy_encoder, settings, la_core.samples(FEATURES[:n], CLASSES[:n]))
    assert run.status == "finished"
    assert run.settings.n_background == n


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_the_bank_in_float32(dtype):
    torch.manual_seed(0)
    module = Perceptron((10, 16, 8))
    encoder = TorchEncoder(module, make_optimizer(module, SMALL), autocast=dtype)
    run = train(
        la_core.samples(FEATURES, CLASSES), encoder, backend=la_core.backend("torch"), settings=SMALL, progress=False
    )
    assert run.state.bank.dtype == torch.float32
    assert torch.isfinite(run.state.bank).all()
    assert run.history[-1]["knn"] > 0.8


def test_progress_writes_a_line_for_each_epoch_where_there_is_no_terminal(capsys):
    train(FEATURES, numpy_encoder(SMALL), backend=la_core.backend("numpy"), settings=replace(SMALL, health_every=0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "warm-up, epoch 1/4" in lines[0]
    assert "samples/s" in lines[3]
    assert "s to go" in lines[3]


def test_the_bar_shows_where_there_is_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(FEATURES, numpy_encoder(SMALL), backend=la_core.backend("numpy"), settings=replace(SMALL, health_every=0))
    shown = capsys.readouterr().err
    assert "local aggregation, epoch 4/4" in shown
    assert "samples/s" in shown
    assert os.linesep not in shown.strip()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_wrong_is_said_and_kept(capsys, monkeypatch, tmp_path, terminal):
    """Clusters of 12 samples are below what Local Aggregation is good at: said once, in a line of its own."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    encoder = numpy_encoder(SMALL)
    train(FEATURES, encoder, backend=la_core.backend("numpy"), settings=SMALL, folder=tmp_path / "run")
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "warning: n_clusters" in line]
    assert len(said) == 1
    records = list(read_metrics(tmp_path / "run"))
    assert [sum("n_clusters is" in w for w in record["warnings"]) for record in records] == [0, 0, 1, 0]
    assert all(record["health"]["effective_rank"] > 1 for record in records)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_workers_change_nothing(name):
    make = {"numpy": numpy_encoder, "torch": torch_encoder}[name]
    settings = replace(SMALL, views=2, epochs=2, warmup_epochs=1, health_every=0)
    alone, helped = (go(name, make, settings, workers=workers) for workers in (0, 1))
    assert alone.history[-1]["loss"] == helped.history[-1]["loss"]
    to_host = alone.backend.to_host
    np.testing.assert_array_equal(to_host(alone.state.bank), to_host(helped.state.bank))
