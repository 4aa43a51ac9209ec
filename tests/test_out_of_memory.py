"""Memory that is not there: asked for in a run, or by a file in a checkpoint that takes no disk."""

import hashlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
from planting import mutated
from runs import go, outcome, stopped

from la_core import storage
from la_core.checkpoint import MANIFEST, MARKER, Checkpoints
from la_core.errors import CheckpointError
from la_core.storage import Storage


class Hungry:
    """An encoder that asks its library for a million terabytes at a step."""

    def __init__(self, encoder, ask, step):
        self.encoder, self.ask, self.left = encoder, ask, step

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def pullback(self, batch):
        self.left -= 1
        if self.left == 0:
            self.ask()
        return self.encoder.pullback(batch)


def numpy_asks():
    np.empty(2**60, np.uint8)


def torch_asks():
    torch = pytest.importorskip("torch")
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "ask", "error"), [("numpy", numpy_asks, MemoryError), ("torch", torch_asks, RuntimeError)]
)
def test_a_run_that_ran_out_of_memory_goes_on_to_the_bit(tmp_path, name, ask, error):
    def make(step):
        return lambda backend, settings: Hungry(runs.ENCODERS[name](backend, settings), ask, step)

    with pytest.raises(error):
        go(name, tmp_path / "run", make=make(8))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
    assert outcome(go(name, tmp_path / "run", make=make(0)), tmp_path / "run") == outcome(go(name, make=make(0)))


# A file of holes -----------------------------------------------------------------------------------------------------


def with_holes(folder, size):
    """A checkpoint whose arrays are a file of holes, with digests that fit as far as they are looked at."""
    stopped("numpy", folder, 3)
    checkpoints = Checkpoints(folder / "checkpoints")
    place = checkpoints.places()[-1]
    path = folder / "checkpoints" / place.name
    with (path / "state.safetensors").open("wb") as file:
        file.truncate(size)
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest["files"]["state.safetensors"][0] = size
    text = json.dumps(manifest).encode()
    (path / MANIFEST).write_bytes(text)
    (path / MARKER).write_bytes(f"{hashlib.sha256(text).hexdigest()}\n".encode())
    return checkpoints, place


def law_a_file_of_holes_is_refused_at_once(folder):
    try:
        checkpoints, place = with_holes(folder, min(4 * storage.memory(), 2**41))
    except OSError as error:
        pytest.skip(f"no such file can be made here: {error}")
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be read: .*and this machine \d+"):
        checkpoints.load(place)
    assert time.process_time() - began < 1


def test_a_file_of_holes_is_refused_at_once(tmp_path):
    law_a_file_of_holes_is_refused_at_once(tmp_path / "run")


def test_taking_memory_first_is_caught(tmp_path, monkeypatch):
    def asked(size):
        assert size < 2**32, f"{size} bytes were asked for"
        return bytearray(size)

    monkeypatch.setattr(storage, "bytearray", asked, raising=False)
    law_a_file_of_holes_is_refused_at_once(tmp_path / "first")
    monkeypatch.setattr(Storage.read, "__code__", mutated(Storage.read, "status.st_size > memory()", "False"))
    with pytest.raises(AssertionError, match="bytes were asked for"):
        law_a_file_of_holes_is_refused_at_once(tmp_path / "second")


CHILD = """
import resource, sys
from pathlib import Path
from la_core.checkpoint import Checkpoints
from la_core.errors import CheckpointError
limit = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024 + 2**28
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = Checkpoints(Path(sys.argv[1]))
try:
    found.load(found.places()[-1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux does it")
def test_one_that_the_process_may_not_have_is_refused(tmp_path):
    with_holes(tmp_path / "run", 2**30)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run" / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "state.safetensors cannot be read" in done.stdout
