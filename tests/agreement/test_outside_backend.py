"""A fifth backend, in a distribution of its own (``tests/outside_backend``): the suite runs on it unchanged."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from variants import torch

TESTS = Path(__file__).resolve().parents[1]
SUITE = (
    "agreement/test_functions.py",
    "agreement/test_trajectory.py",
    "agreement/test_state_travels.py",
    "test_bank.py",
    "test_neighbours.py",
    "test_objectives.py",
    "test_clusters.py",
    "test_evaluate_knn.py",
    "test_evaluate_density.py",
    "test_evaluate_gallery.py",
)
FOUND = """
import array_api_strict, la_core, la_core_strict
backend = la_core.backend("array_api_strict", "device1")
assert type(backend) is la_core_strict.StrictBackend, backend
assert backend.device == array_api_strict.Device("device1")
print(la_core_strict.__file__)
"""
BARE = """
import array_api_strict, la_core, sys
from la_core import kernels
assert "array_api_strict" not in kernels.put_rows.overrides
bank = array_api_strict.asarray([[1.0, 0.0], [0.0, 1.0]])
state = la_core.update(la_core.State(bank), array_api_strict.asarray([1]), bank[:1, :], mixing=1.0)
assert kernels.put_rows.overrides["array_api_strict"] is sys.modules["la_core_strict"].put_rows
assert state.bank is bank, "the kernel of the backend writes in place; the reference does not"
"""


def run(*command, **env):
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONWARNINGS": "", **env},
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder for PYTHONPATH, with the distribution installed in it."""
    tmp = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(TESTS / "outside_backend", tmp / "source")
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp / "site"), str(source))
    return tmp / "site"


def test_it_is_found_by_name(installed):
    assert Path(run("-c", FOUND, PYTHONPATH=str(installed)).strip()).parent == installed


def test_its_kernels_are_found_by_a_bare_array(installed):
    run("-c", BARE, PYTHONPATH=str(installed))


def test_the_suite_runs_on_it_unchanged(installed):
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "strict", "--rootdir", str(TESTS.parent))
    # The laws run in full elsewhere; that they find the backend and its kernels shows in a few examples each.
    told = run(*pytest_, *SUITE, PYTHONPATH=str(installed), LA_CORE_EXAMPLES="6")
    passed = int(told.split(" passed")[0].split()[-1])
    assert passed > (150 if torch else 100), told  # three of the files need PyTorch
    assert "failed" not in told


def test_the_page_shows_what_is_there():
    page = (TESTS.parent / "docs" / "backends.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|toml)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    files = {"python": "la_core_strict.py", "toml": "pyproject.toml"}
    assert len(blocks) == 3
    for language, code in blocks:
        assert code in (TESTS / "outside_backend" / files[language]).read_text(encoding="utf-8")
