"""Finding backends, and what importing the library loads."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from variants import assert_same

import la_core
from la_core.errors import BackendError

FRAMEWORKS = ("torch", "jax", "cupy", "tensorflow", "PIL", "matplotlib", "sklearn", "scipy", "tqdm")


def python(program):
    """Run in a fresh interpreter; its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_framework():
    loaded = python(f"import sys, la_core; print([m for m in {FRAMEWORKS!r} if m in sys.modules])")
    assert loaded == "[]"


def test_importing_it_asks_for_nothing():
    seen = python(
        "import sys\n"
        "events = []\n"
        "sys.addaudithook(lambda event, _: events.append(event))\n"
        "import la_core\n"
        "wrong = ('socket.', 'subprocess.', 'os.system', 'os.fork', 'os.exec', 'os.posix_spawn', 'urllib.')\n"
        "print([event for event in events if event.startswith(wrong)], 'import' in events)"
    )
    assert seen == "[] True"


def test_numpy_arrays_load_no_framework():
    loaded = python(
        "import sys, numpy, la_core\n"
        "bank = la_core.random_rows(20, 4, seed=0)\n"
        "state = la_core.State(bank, la_core.cluster(bank, n_clusters=3, seed=0).labels)\n"
        "z, indices = bank[:2] + 0.1, numpy.arange(2)\n"
        "la_core.local_aggregation_and_cotangent(z, state, indices, n_background=5, temperature=0.1)\n"
        "la_core.update(state, indices, z)\n"
        "la_core.backend('numpy')\n"
        f"print([m for m in {FRAMEWORKS!r} if m in sys.modules])"
    )
    assert loaded == "[]"


def test_backends_have_one_identity():
    names = python(
        "import sys, la_core\n"
        "la_core.backend('numpy'), la_core.backend('torch')\n"
        "print([m for m in sys.modules if m == 'backends' or m.startswith('backends.')])\n"
        "print(all('la_core.backends.' + m in sys.modules for m in ('numpy', 'torch')))"
    )
    assert names.splitlines() == ["[]", "True"]


@pytest.mark.parametrize(("name", "meant"), [("torhc", "torch"), ("nunpy", "numpy"), ("Torch", "torch")])
def test_unknown_backend_names_the_known_ones_and_the_closest(name, meant):
    with pytest.raises(BackendError) as caught:
        la_core.backend(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "numpy" in message
    assert "torch" in message
    assert f"Did you mean {meant!r}?" in message


def test_unknown_backend_like_no_other_gets_no_hint():
    with pytest.raises(BackendError, match="no backend 'xyzzy'") as caught:
        la_core.backend("xyzzy")
    assert "Did you mean" not in str(caught.value)


def test_missing_library_says_what_to_install():
    message = python(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import la_core\n"
        "try: la_core.backend('torch')\n"
        "except la_core.errors.BackendError as error: print(error)"
    )
    assert "'torch'" in message
    assert "not installed" in message
    assert "pip install 'la-core[torch]'" in message


def test_an_error_inside_a_backend_is_not_taken_for_a_missing_library():
    outcome = python(
        "import sys, types\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"
        "import la_core\n"
        "try: la_core.backend('torch')\n"
        "except la_core.errors.BackendError: print('hidden')\n"
        "except ImportError: print('shown')"
    )
    assert outcome == "shown"


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.bool_])
def test_backend_carries_arrays_there_and_back(name, dtype):
    backend = la_core.backend(name)
    assert backend.name == name
    host = np.arange(6).reshape(2, 3).astype(dtype)
    there = backend.asarray(host)
    assert_same(backend.to_host(there), host)
    there[0, 0] = 1
    assert host[0, 0] == 0, "asarray must copy: the bank is written in place"
    given = backend.to_host(backend.asarray(host.copy(), copy=False))
    np.testing.assert_array_equal(given, host, strict=True)


@pytest.mark.parametrize(("name", "device"), [("numpy", "cuda"), ("torch", "no such device"), ("torch", "cuda:99")])
def test_device_that_is_not_there(name, device):
    with pytest.raises(BackendError, match=device):
        la_core.backend(name, device)


def test_torch_seed_repeats_what_torch_draws():
    backend = la_core.backend("torch")
    draws = []
    for seed in (3, 3, 4):
        backend.seed(seed)
        draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_bfloat16_comes_back_as_float32():
    got = la_core.backend("torch").to_host(torch.ones(3, dtype=torch.bfloat16, requires_grad=True))
    assert_same(got, np.ones(3, dtype=np.float32))
