"""The main job: its data, its options, and what it prints and leaves behind."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from la_core import digits, job
from la_core.errors import Terminated
from la_core.folder import read_metrics
from la_core.mlp import MLP
from la_core.presets import small
from la_core.settings import Settings

SETTINGS = Settings(epochs=4, warmup_epochs=2, optimizer="adam", learning_rate=1e-3, knn_k=5)


def perceptron(backend, settings, shape):
    return MLP(backend, (int(np.prod(shape)), 16, 8), settings)


def call(*options):
    given = ["--epochs", "4", *map(str, options)]
    return job.main("numpy", {"mlp": job.Recipe(perceptron, SETTINGS)}, given)


def test_no_original_is_on_both_sides_and_every_digit_is_on_its_canvas():
    train, test = digits.placed_digits()
    again, _ = digits.placed_digits()
    np.testing.assert_array_equal(train.source, again.source)
    assert len(train) + len(test) // digits.TEST_COPIES == 1797
    assert set(train.classes) == set(test.classes) == set(range(10))
    # Distinct originals leave distinct inks: nothing of the test set stands among the training set.
    seen = {image.tobytes() for image in train.source}
    assert not seen & {image.tobytes() for image in test.source}
    ink = np.asarray(train.source, dtype=float).sum(axis=(1, 2))
    assert ink.min() > 0
    centres = [np.average(np.arange(digits.CANVAS), weights=image.sum(axis=0)) for image in train.source.astype(float)]
    assert np.std(centres) > 2  # they are at many places


def test_a_folder_with_classes_gives_a_table_and_pictures(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, bright in (("left", slice(0, 10)), ("right", slice(10, 20))):
        for i in range(20):
            path = tmp_path / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 60, (20, 20, 3), dtype=np.uint8)
            image[:, bright] += 150
            Image.fromarray(image).save(path)
    assert call("--data", tmp_path / "images", "--size", 12, "--out", tmp_path / "run", "--seed", 3) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "run" / "table.json").read_text())
    assert list(rows) == ["raw pixels", "untrained encoder", "after warm-up", "after local aggregation"]
    for name in rows:
        assert name in out
    assert all(0 <= x <= 1 for row in rows.values() for x in row if x is not None)
    assert rows["raw pixels"][0] == 1
    assert Settings.load(tmp_path / "run" / "settings.json").seed == 3
    assert len(list(read_metrics(tmp_path / "run"))) == 4
    for picture in ("curves.png", "neighbours.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            assert image.width > 300


def test_images_of_ones_own_get_the_numbers_of_the_preset_and_not_those_of_the_digits(tmp_path, monkeypatch):
    def settings(*given):
        found = []
        monkeypatch.setattr(job, "train", lambda *args, settings, **kwargs: found.append(settings) or sys.exit(7))
        with pytest.raises(SystemExit):
            job.main("numpy", {"mlp": job.Recipe(perceptron, replace(SETTINGS, n_clusters=3))}, [*map(str, given)])
        (one,) = found
        return one.epochs, one.warmup_epochs, one.n_clusters, one.n_background

    np.savez(tmp_path / "x.npz", images=np.zeros((100, 10, 10), np.uint8))
    own = ("--data", tmp_path / "x.npz", "--size", 10, "--out", tmp_path / "run")
    assert settings("--out", tmp_path / "digits")[:3] == (4, 2, 3)
    preset = small(100)
    assert settings(*own) == (preset.epochs, preset.warmup_epochs, preset.n_clusters, preset.n_background)
    assert settings(*own, "--epochs", 6)[:2] == (6, 3)


def test_an_npz_without_labels_runs_and_says_that_there_is_no_accuracy(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images=np.random.default_rng(0).integers(0, 256, (30, 10, 10), dtype=np.uint8))
    options = ("--data", tmp_path / "x.npz", "--size", 10, "--epochs", 2, "--warmup-epochs", 2)
    assert call(*options, "--out", tmp_path / "run") == 0
    assert "no accuracy" in capsys.readouterr().out
    assert [record["phase"] for record in read_metrics(tmp_path / "run")] == ["warm-up", "warm-up"]
    assert (tmp_path / "run" / "curves.png").is_file()


def test_runs_without_out_never_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", images=np.random.default_rng(0).integers(0, 256, (12, 10, 10), dtype=np.uint8))
    for _ in range(2):
        assert call("--data", "x.npz", "--size", 10, "--epochs", 2) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mlp-numpy-1", "mlp-numpy-2"]


def test_errors_are_one_line(tmp_path, capsys):
    assert call("--data", tmp_path / "nowhere", "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nowhere'} is not a folder\n"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"no image")
    assert call("--data", tmp_path / "bad", "--out", tmp_path / "run") == 2
    assert "broken.png" in capsys.readouterr().err
    assert call("--data", tmp_path / "bad", "--size", 0, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err == "error: size must be an integer of at least 1; got 0\n"
    assert call("--device", "cuda") == 2
    assert "'cpu' only" in capsys.readouterr().err
    (tmp_path / "text.npz").write_bytes(b"text")
    for path, said in (("text.npz", "it does not begin as such a file does"), ("none.npz", "No such file")):
        assert call("--data", tmp_path / path, "--out", tmp_path / "run") == 2
        err = capsys.readouterr().err
        assert said in err
        assert "--skip-broken" not in err  # of files in a folder alone


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--samples", "0"), "--samples must be"),
        (("--samples", "-5"), "--samples must be"),
        (("--size", "0"), "size must be an integer of at least 1"),
        (("--size", "4"), "of at least 8 pixels"),
    ],
)
def test_a_dry_run_of_what_cannot_be_is_one_line(asked, said, capsys):
    cost, network = (getattr(pytest.importorskip("la_core.backends.torch"), name) for name in ("cost", "network"))
    networks = job.Networks(network, lambda *made: None, cost)
    given = ["--preset", "small", "--dry-run", *asked]
    assert job.main("torch", {"mlp": job.Recipe(lambda *made: None)}, given, networks) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_dry_run_is_of_the_run_that_the_options_ask_for(tmp_path, capsys):
    cost, network = (getattr(pytest.importorskip("la_core.backends.torch"), name) for name in ("cost", "network"))
    networks = job.Networks(network, lambda *made: None, cost)
    np.savez(tmp_path / "gray.NPZ.npz", images=np.zeros((300, 8, 8), np.uint8))
    (tmp_path / "gray.NPZ.npz").rename(tmp_path / "gray.NPZ")  # a suffix is one in capitals, too

    def told(*asked):
        given = ["--preset", "small", "--dry-run", "--size", "16", *map(str, asked)]
        assert job.main("torch", {"mlp": job.Recipe(lambda *made: None)}, given, networks) == 0
        return capsys.readouterr().out

    assert "epochs 6 to 10: Local Aggregation" in told("--samples", 300, "--epochs", 10)
    assert "epochs 4 to 10: Local Aggregation" in told("--samples", 300, "--epochs", 10, "--warmup-epochs", 3)
    assert "epochs 3 to 4: Local Aggregation" in told("--samples", 300, "--quick")
    gray, colour = told("--data", tmp_path / "gray.NPZ"), told("--samples", 300)
    assert gray.startswith(colour[:30])
    assert gray != colour  # of one channel, not of three


def test_pixels_that_memory_cannot_hold_are_left_out_and_that_is_said(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 10, 10), np.uint8), np.repeat([0, 1], 20)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    monkeypatch.setattr(job, "PIXELS", 40 * 400 - 1)
    given = ("--data", tmp_path / "x.npz", "--size", 10, "--epochs", 2, "--warmup-epochs", 1)
    assert call(*given, "--out", tmp_path / "run") == 0
    assert "no row for raw pixels" in capsys.readouterr().out
    assert "raw pixels" not in json.loads((tmp_path / "run" / "table.json").read_text())
    assert (tmp_path / "run" / "neighbours.png").is_file()
    monkeypatch.setattr(job, "PIXELS", 40 * 400)
    assert call(*given, "--out", tmp_path / "other") == 0
    assert "raw pixels" in json.loads((tmp_path / "other" / "table.json").read_text())


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ((), "nothing had been learnt yet"),
        (("encoder.npz",), "without a checkpoint to go on from"),
        (("encoder.npz", "checkpoints/epoch-00001-step-000000"), "the same command goes on with --resume --out"),
    ],
)
@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt(), 130), (Terminated("asked"), 143)])
def test_a_run_that_ends_early_says_what_it_leaves(end, status, left, said, tmp_path, monkeypatch, capsys):
    def ended(*args, folder, **options):
        for name in left:
            (folder / name).mkdir(parents=True)
        raise end

    monkeypatch.setattr(job, "train", ended)
    np.savez(tmp_path / "x.npz", images=np.zeros((12, 8, 8), np.uint8))
    assert call("--data", tmp_path / "x.npz", "--size", 8, "--out", tmp_path / "run") == status
    assert said in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        call("--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in (
        "--data",
        "--encoder",
        "--epochs",
        "--warmup-epochs",
        "--device",
        "--seed",
        "--out",
        "--quick",
        "--size",
        "--resume",
        "--checkpoint-every",
    ):
        assert option in out


def test_a_missing_demo_package_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert call() == 2
    assert "pip install 'la-core[demo]'" in capsys.readouterr().err


def lines(folder):
    return [{name: x for name, x in record.items() if name != "seconds"} for record in read_metrics(folder)]


def test_the_same_command_goes_on_with_resume(tmp_path, monkeypatch, capsys):
    """Interrupted in the warm-up and after it: table, densities and metrics are those of the run in one go."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    options = ("--data", tmp_path / "x.npz", "--size", 8, "--out")
    assert call(*options, tmp_path / "whole") == 0

    class Stop(job.Callback):
        def on_step(self, run, loss):
            if run.step == at:
                raise KeyboardInterrupt

    def stopped(*args, callbacks, **rest):
        return train(*args, callbacks=[*callbacks, Stop()], **rest)

    train = job.train
    monkeypatch.setattr(job, "train", stopped)
    steps = ("--resume", "--checkpoint-every", 1, "--checkpoint-unit", "steps")
    for at in (2, 4):  # noqa: B007  (the callback reads it)
        assert call(*options, tmp_path / "parts", *steps) == 130
    monkeypatch.undo()
    assert call(*options, tmp_path / "parts", "--resume", "must") == 0
    assert "goes on after" in capsys.readouterr().err
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    for name in ("table.json", "evaluation.json", "settings.json", "status.json"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    with np.load(tmp_path / "parts" / "evaluation.npz") as one, np.load(tmp_path / "whole" / "evaluation.npz") as other:
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_resume_needs_its_folder_and_sigterm_is_143(tmp_path, monkeypatch, capsys):
    assert call("--resume") == 2
    assert "--resume needs the folder of the run" in capsys.readouterr().err

    def asked(*args, **options):
        raise Terminated("asked")

    monkeypatch.setattr(job, "train", asked)
    np.savez(tmp_path / "x.npz", images=np.zeros((12, 8, 8), np.uint8))
    assert call("--data", tmp_path / "x.npz", "--size", 8, "--out", tmp_path / "run") == 143
    assert call("--data", tmp_path / "x.npz", "--out", tmp_path / "none", "--resume", "must") == 143
    monkeypatch.undo()
    (tmp_path / "none").mkdir()
    for folder in ("none", "nowhere"):
        assert call("--data", tmp_path / "x.npz", "--size", 8, "--out", tmp_path / folder, "--resume", "must") == 2
        assert "no checkpoint to go on from" in capsys.readouterr().err


FAULTS = """
import resource
import numpy as np
from la_core import job

if {told}:
    job.keep_freed_memory()
blocks = [np.ones(2**22) for _ in range(4)]  # 32 MB each, above any threshold of glibc's own
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library takes no such wishes"
)
def test_what_a_step_frees_is_at_hand_for_the_next():
    def faults(told):
        # Small pages, whatever the system makes of large blocks: each that is new is a fault.
        quiet = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
        script = [sys.executable, "-c", FAULTS.format(told=told)]
        return int(subprocess.run(script, capture_output=True, text=True, check=True, env=quiet).stdout)

    anew, kept = faults(False), faults(True)
    assert kept < anew / 10


def test_the_job_keeps_what_is_freed(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(job, "keep_freed_memory", lambda: told.append(True))
    assert call("--data", tmp_path / "nothing") == 2
    assert told
