"""Acceptance: 300 files as people have them, eight of them broken, from the command line to a report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import mixed_folder

pytest.importorskip("torch", reason="test_folder_end_to_end.py runs the PyTorch example")
pytest.importorskip("matplotlib", reason="test_folder_end_to_end.py draws the pictures of a run")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixed_folder(tmp_path_factory.mktemp("mixed"), n=300, n_broken=8)


def command(*options):
    """``examples/train_torch.py`` in a process of its own, on one core."""
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_torch.py"), *map(str, options)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        timeout=120,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mixed_folder_trains_and_the_broken_files_are_named(folder, tmp_path, workers):
    out = tmp_path / "run"
    given = ("--data", folder.root, "--size", 24, "--skip-broken", "--epochs", 3, "--workers", workers, "--out", out)
    done = command(*given)
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert "left out 8 of 300 files" in told
    assert len(folder.broken) == 8
    for name, words in folder.broken.items():
        assert name in told
        assert words in told
    assert not any(name in told for name in folder.good)
    assert "234 training samples, 58 test samples" in done.stdout  # 292 good files, a fifth held out
    for name in ("settings.json", "embeddings.npz", "encoder.npz", "curves.png", "neighbours.png", "table.txt"):
        assert (out / name).stat().st_size > 0
    assert json.loads((out / "status.json").read_text())["status"] == "finished"
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.lstrip().lower().startswith("<!doctype html>")
    assert report.rstrip().endswith("</html>")
    rows = json.loads((out / "table.json").read_text())
    assert [*rows][-1] == "after local aggregation"


def test_without_skip_broken_it_stops_at_a_broken_file_and_names_it(folder, tmp_path):
    done = command("--data", folder.root, "--size", 24, "--quick", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert any(name in done.stderr for name in folder.broken)
