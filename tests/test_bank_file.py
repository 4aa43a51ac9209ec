"""A bank in a file, mapped into memory: the same run, and no more of it in memory than a block or two."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import KINDS, PLAIN, go, outcome, stopped

from la_core import folder
from la_core.bank import random_parts, random_rows
from la_core.errors import RunFolderError, SettingsError

TESTS = Path(__file__).parent


@pytest.mark.parametrize("dtype", ["same", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run_as_in_memory(tmp_path, kind, dtype):
    settings = replace(KINDS[kind], bank_dtype=dtype)
    run = go("numpy", tmp_path / "run", settings=replace(settings, bank_store="file"))
    assert isinstance(run.state.bank, np.memmap)
    assert outcome(run, tmp_path / "run") == outcome(go("numpy", settings=settings))
    np.testing.assert_array_equal(np.load(tmp_path / "run" / folder.BANK), run.state.bank)


@pytest.mark.parametrize("start", ["encoder", "random"])
def test_it_goes_on_to_the_bit(tmp_path, start):
    settings = replace(PLAIN, bank_store="file", bank_start=start)
    stopped("numpy", tmp_path / "run", 7, settings=settings)
    (tmp_path / "run" / folder.BANK).write_bytes(b"what a crash has left of it")
    run = go("numpy", tmp_path / "run", settings=settings)
    assert outcome(run, tmp_path / "run") == outcome(go("numpy", settings=replace(settings, bank_store="memory")))


def test_a_run_moves_into_a_file_and_back(tmp_path):
    stopped("numpy", tmp_path / "run", 4)
    for store, after in (("file", 4), ("memory", 3)):
        with pytest.warns(UserWarning, match="goes on with bank_store"):
            stopped("numpy", tmp_path / "run", after, settings=replace(PLAIN, bank_store=store))
    assert outcome(go("numpy", tmp_path / "run"), tmp_path / "run") == outcome(go("numpy"))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder.BANK).write_bytes(b"half a bank")
    assert go("numpy", tmp_path / "run", settings=replace(PLAIN, bank_store="file")).status == "finished"
    with pytest.raises(RunFolderError, match="not empty"):
        go("numpy", tmp_path / "run", resume="never")


@pytest.mark.parametrize(("name", "place"), [("torch", "run"), ("numpy", None)])
def test_it_needs_numpy_and_a_folder(tmp_path, name, place):
    with pytest.raises(SettingsError, match="needs the numpy backend and the folder of the run"):
        go(name, place and tmp_path / place, settings=replace(PLAIN, bank_store="file"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_random_rows_in_parts_are_those_of_the_whole(size):
    parts = [rows for _, rows in random_parts(10, 4, seed=3, size=size)]
    np.testing.assert_array_equal(np.concatenate(parts), random_rows(10, 4, seed=3))


# A bank larger than the memory --------------------------------------------------------------------------------------

CHILD = """
import resource, sys
import numpy as np
import la_core
from la_core import evaluate, health, kernels, objectives
from la_core.bank import State
N, DIM = 1_000_000, 96
dtype = np.dtype(sys.argv[2])
bank = np.lib.format.open_memmap(sys.argv[1], "w+", dtype, (N, DIM))
some = la_core.random_rows(1000, DIM, seed=0)
for start in range(0, N, len(some)):
    bank[start : start + len(some)] = some
z, indices = la_core.random_rows(4, DIM, seed=1), np.arange(4) * 250_000
small = la_core.cluster(some, n_clusters=8, seed=0, n_iter=1)  # what libraries keep for themselves
kernels.nearest(z, some, 5)
def data():
    return int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
limit = data() + int(float(sys.argv[3]) * 2**20)
assert limit - data() < N * DIM * 4, "the limit must be below the bank"
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if len(sys.argv) > 4:
    kernels.apart = lambda x: False
found = la_core.nearest(z, bank, 20)
assert np.array_equal(found[1][0] % 1000, np.full(20, found[1][0][0] % 1000))
clusters = la_core.cluster(bank, n_clusters=8, seed=0, n_iter=2)
state = State(bank, clusters.labels)
terms = objectives.local_aggregation_terms(z, state, indices, n_background=2000, temperature=0.1)
assert np.isfinite(terms.loss).all()
la_core.instance_discrimination_and_cotangent(z, bank, indices, temperature=0.1)
state = la_core.update(state, indices, z)
assert state.bank is bank
health.moments(bank)
evaluate.knn(bank, clusters.labels[0], z, k=5, as_it_is=True)
print("in blocks")
"""


def told(tmp_path, *options):
    command = [sys.executable, "-c", CHILD, str(tmp_path / "bank.npy"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=TESTS)
    (tmp_path / "bank.npy").unlink()
    return done.stdout + done.stderr


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux does it")


@linux
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bank_is_never_read_whole(tmp_path, dtype):
    """384 MB as it is computed with, where 250 MB may be taken: search, clustering, losses, update, measures."""
    assert told(tmp_path, dtype, "250") == "in blocks\n"


@linux
def test_reading_it_whole_is_caught(tmp_path):
    assert "MemoryError" in told(tmp_path, "float32", "250", "whole")
