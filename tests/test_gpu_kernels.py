"""The GPU kernels held to their references on the CPU: Triton's and Pallas's by their interpreters, CuPy's CUDA C by a
C++ compiler that makes each CUDA thread a thread. Nothing here has run on a GPU; that they compile for one is tested.
"""

import ctypes
import importlib
import os
import re
import shutil
import subprocess
import sys
import types
from copy import copy
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_kernels import KERNELS
from variants import ACROSS, STRICT, TORCH, assert_close, assert_same

import la_core
from la_core import kernels
from la_core.backends import gpu, low
from la_core.errors import NotFiniteError

CUPY_KERNELS = Path(find_spec("la_core.backends").submodule_search_locations[0]) / "cupy_kernels.py"


# CUDA C on the CPU -------------------------------------------------------------------------------------------------

CUDA = """
#include <barrier>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>
struct Size { unsigned x, y, z; };
static thread_local Size threadIdx, blockIdx;
static Size blockDim, gridDim;
static std::barrier<>* meeting;
static void __syncthreads() { meeting->arrive_and_wait(); }
static int atomicAdd(int* p, int value) { return __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }
static float __int_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
#define __global__
#define __device__ static
#define __shared__ static
%s
template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) { kernel(*static_cast<A*>(args[I])...); }
template <class... A>
void launch(void (*kernel)(A...), const unsigned* size, void** args)
{
    gridDim = {size[0], size[1], size[2]};
    blockDim = {size[3], size[4], size[5]};
    unsigned n = blockDim.x * blockDim.y * blockDim.z;
    std::barrier<> all(n);
    meeting = &all;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < n; t++)
        threads.emplace_back([=, &all] {
            threadIdx = {t %% blockDim.x, t / blockDim.x %% blockDim.y, t / (blockDim.x * blockDim.y)};
            for (unsigned z = 0; z < gridDim.z; z++)
                for (unsigned y = 0; y < gridDim.y; y++)
                    for (unsigned x = 0; x < gridDim.x; x++) {
                        blockIdx = {x, y, z};
                        call(kernel, args, std::index_sequence_for<A...>());
                        all.arrive_and_wait();  // before the next block has the shared memory
                    }
        });
    for (auto& thread : threads) thread.join();
}
"""
TYPES = {"float*": np.float32, "int*": np.int32, "long long*": np.int64, "int": np.int32}


class RawModule:
    """What ``cupy.RawModule`` does, block after block on the CPU. Arguments must be of the types declared."""

    folder = None

    def __init__(self, code, options):
        declared = re.findall(r'extern "C" __global__ void (\w+)\((.*?)\)', code, re.DOTALL)
        self.kernels = {
            name: [re.sub(r"\bconst\b|\w+$", "", each.strip()).strip() for each in parameters.split(",")]
            for name, parameters in declared
        }
        runs = 'extern "C" void run_{0}(const unsigned* size, void** args) {{ launch({0}, size, args); }}\n'
        source, library = RawModule.folder / "kernels.cpp", RawModule.folder / "kernels.so"
        source.write_text(CUDA % code + "".join(runs.format(name) for name in self.kernels), encoding="utf-8")
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", *options, source, "-o", library]
        subprocess.run(command, check=True, timeout=120)
        self.library = ctypes.CDLL(str(library))

    def get_function(self, name):
        def run(grid, block, args):
            assert [np.dtype(TYPES[kind]) for kind in self.kernels[name]] == [arg.dtype for arg in args]
            assert all(kind.endswith("*") == bool(arg.ndim) for kind, arg in zip(self.kernels[name], args, strict=True))
            assert all(arg.flags["C_CONTIGUOUS"] for arg in args)
            held = [np.array(arg.ctypes.data if arg.ndim else arg) for arg in args]  # pointers, and numbers
            size = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
            pointers = (ctypes.c_void_p * len(held))(*(x.ctypes.data for x in held))
            self.library["run_" + name](size, pointers)

        return run


def stand_in():
    """NumPy as ``cupy``, with its raw kernels."""
    module = types.ModuleType("cupy")
    module.__getattr__ = lambda name: getattr(np, name)
    module.RawModule = RawModule
    return module


def executed(path, name, patch):
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    patch.setitem(sys.modules, "cupy", stand_in())
    spec.loader.exec_module(module)
    return module


# The three dialects ------------------------------------------------------------------------------------------------


class Dialect:
    """Kernels of one library, from host arrays to host arrays."""

    def __init__(self, module, asarray, to_host, **options):
        self.module, self.asarray, self.to_host, self.options = module, asarray, to_host, options
        self.again, self.table, self.how = 0, "append", {}

    def with_tensor_cores(self, there):
        """The same, whose search has a screen in float16 or has none."""
        other = copy(self)
        other.table, other.how = "screen" if there else "append", {"tensor_cores": there}
        return other

    def __call__(self, name, *args):
        there = [self.asarray(x) if isinstance(x, np.ndarray) else x for x in args]
        results = getattr(self.module, name)(*there, **self.options)
        return [self.to_host(x) for x in (results if isinstance(results, tuple) else (results,))]

    def asked(self, queries):
        self.again += queries.shape[0]

    def nearest(self, z, bank, k, *budget, view=lambda x: x):
        """The search; ``again`` is how many queries the reference was asked for."""
        there, self.again = view(self.asarray(bank)), 0

        def plain(queries):
            self.asked(queries)
            return kernels.nearest(queries, there, k)

        return [self.to_host(x) for x in self.search(self.asarray(z), there, k, plain, *budget)]

    def search(self, z, bank, k, plain, *budget):
        return self.module.nearest(z, bank, k, plain, *budget, **self.how)


class Triton(Dialect):
    """Its interpreter computes by NumPy, which warns of infinities that a GPU does not mind."""

    def __call__(self, name, *args):
        with np.errstate(all="ignore"):
            return super().__call__(name, *args)

    def search(self, z, bank, k, plain, *budget):
        with np.errstate(all="ignore"):
            return super().search(z, bank, k, plain, *budget)


class Pallas(Dialect):
    """The search under ``jit``, as the kernel's override has it."""

    def asked(self, queries):
        importlib.import_module("jax").debug.callback(
            lambda: super(Pallas, self).asked(queries)
        )  # not when it is traced

    def search(self, z, bank, k, plain, *budget):
        jax = importlib.import_module("jax")
        run = jax.jit(lambda z, bank: self.module.nearest(z, bank, k, plain, *budget, **self.options, **self.how))
        scores, indices = run(z, bank)
        jax.effects_barrier()
        return sys.modules["la_core.backends.jax.kernels"]._without_nan(scores), indices


def triton(patch, folder):
    language = pytest.importorskip("triton.language", reason="triton, which interprets these kernels, is not installed")
    patch.setenv("TRITON_INTERPRET", "1")
    assert type(language.max).__name__ == "InterpretedFunction", "triton was imported before conftest.py"
    return Triton(importlib.import_module("la_core.backends.torch.triton"), TORCH.asarray, TORCH.to_host)


def pallas(patch, folder):
    jax = pytest.importorskip("jax", reason="jax, which interprets its Pallas kernels, is not installed")
    la_core.backend("jax")
    return Pallas(importlib.import_module("la_core.backends.jax.pallas"), jax.numpy.asarray, np.asarray, interpret=True)


def raw(patch, folder):
    if shutil.which("g++") is None:
        pytest.skip("g++, which compiles CuPy's kernels for the CPU, is not installed")
    patch.setattr(RawModule, "folder", folder)
    return Dialect(executed(CUPY_KERNELS, "raw_by_numpy", patch), np.asarray, np.asarray)


@pytest.fixture(scope="module", params=[triton, pallas, raw], ids=["torch", "jax", "cupy"])
def dialect(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield request.param(patch, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def searching(request, dialect, monkeypatch):
    """The dialect with a screen, whatever it pays, or without one."""
    monkeypatch.setattr(gpu, "SCREENED", 1)
    return dialect.with_tensor_cores(request.param) if hasattr(dialect.module, "screen") else dialect


# CuPy's kernels have none: CUDA C reaches tensor cores by instructions that no host compiler knows.
every_search = pytest.mark.parametrize(
    ("dialect", "searching"),
    [(triton, False), (triton, True), (pallas, False), (pallas, True), (raw, False)],
    ids=["torch", "torch, screened", "jax", "jax, screened", "cupy"],
    indirect=True,
)
with_screen = pytest.mark.parametrize("dialect", [triton, pallas], ids=["torch", "jax"], indirect=True)


def reference(name, *args):
    results = KERNELS[name].reference(*(STRICT.asarray(x) if isinstance(x, np.ndarray) else x for x in args))
    return [STRICT.to_host(x) for x in (results if isinstance(results, tuple) else (results,))]


def hold(got, want, exact):
    for x, y in zip(got, want, strict=True):
        if y.dtype.kind == "i":
            assert x.dtype.kind == "i"
            assert_same(x.astype(np.int64), y.astype(np.int64))
        elif exact:
            assert_same(x, y)
        else:
            assert x.dtype == np.float32
            assert_close(x, y, ACROSS[np.dtype(np.float32)], 40.0)


def integers(rng, *shape):
    """Few values, copies of rows and rows of zeros: ties abound, and float32 is exact."""
    x = rng.integers(-2, 3, shape)[rng.integers(0, shape[0], shape[0])]
    x[rng.random(shape[0]) < 0.1] = 0
    return x.astype(np.float32)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


every_kind = pytest.mark.parametrize("real", [integers, normal])


# Laws --------------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(("n", "m", "dim"), [(1, 1, 1), (130, 70, 33), (70, 70, 5), (65, 1, 16), (1, 129, 130)])
def test_assign_is_the_reference(dialect, real, n, m, dim):
    rng = np.random.default_rng(n)
    x = real(rng, n, dim)
    centroids = x.copy() if m == n else real(rng, m, dim)
    hold(dialect("assign", x, centroids), reference("assign", x, centroids), real is integers)


@every_search
@every_kind
@pytest.mark.parametrize(
    ("batch", "n", "dim", "k"),
    [(1, 1, 1, 1), (3, 300, 5, 20), (70, 700, 33, 9), (1, 70, 130, 70), (2, 129, 16, 1), (5, 640, 8, 600)],
)
def test_nearest_is_the_reference(searching, real, batch, n, dim, k):
    rng = np.random.default_rng(n)
    z, bank = real(rng, batch, dim), real(rng, n, dim)
    hold(searching.nearest(z, bank, k), reference("nearest", z, bank, k), real is integers)


@every_kind
@pytest.mark.parametrize(("batch", "n", "dim", "k"), [(1, 1, 1, 1), (3, 40, 5, 7), (2, 50, 130, 513), (5, 9, 33, 1030)])
def test_weighted_rows_is_the_reference(dialect, real, batch, n, dim, k):
    rng = np.random.default_rng(n)
    args = real(rng, batch, k), real(rng, n, dim), rng.integers(0, n, (batch, k))
    hold(dialect("weighted_rows", *args), reference("weighted_rows", *args), real is integers)


@with_screen
@every_kind
@pytest.mark.parametrize(("batch", "n", "dim", "k"), [(1, 1, 1, 1), (3, 40, 5, 7), (2, 50, 130, 33), (70, 9, 33, 64)])
def test_scores_at_is_the_reference(dialect, real, batch, n, dim, k):
    rng = np.random.default_rng(n)
    args = real(rng, batch, dim), real(rng, n, dim), rng.integers(0, n, (batch, k))
    hold(dialect("scores_at", *args), reference("scores_at", *args), real is integers)


@every_search
def test_a_bank_that_is_not_contiguous(searching):
    rng = np.random.default_rng(0)
    z, turned = normal(rng, 3, 8), normal(rng, 8, 600)
    got = searching.nearest(z, turned, 5, view=lambda x: x.T[::2])
    hold(got, reference("nearest", z, np.ascontiguousarray(turned.T[::2]), 5), exact=False)


# The table, and what is done where it is not sure ------------------------------------------------------------------


@every_search
def test_the_table_holds_what_is_not_below_the_threshold_and_nothing_else(searching):
    rng = np.random.default_rng(1)
    z, bank = integers(rng, 70, 7), integers(rng, 200, 7)
    scores = z @ bank.T
    threshold = np.sort(scores, axis=1)[:, -30].copy()
    threshold[:3] = np.inf, -np.inf, np.nan
    values, rows, count = searching(searching.table, z, bank, threshold, 100)
    reach = ~(scores < threshold[:, None])
    assert_same(count.astype(np.int64), reach.sum(axis=1))
    assert set(np.flatnonzero(count > 100)) >= {1, 2}
    for i, filled in enumerate(np.minimum(count, 100)):
        here = rows[i, :filled]
        assert reach[i, here].all()
        assert len(set(here.tolist())) == filled
        assert_same(values[i, :filled], scores[i, here])
        assert (values[i, filled:] == -np.inf).all()


def law_a_screen_loses_nothing(dialect, seed):
    """Of numbers half-way to the next in float16, which lose all that they may; then of small ones, then of large."""
    rng = np.random.default_rng(seed)
    batch, n, dim = 5, 90, (1, 33, 200)[seed // 3]
    signs = rng.choice([-1.0, 1.0], dim)
    if seed % 3 == 1:
        z, bank = signs * np.ones((batch, 1)), signs * (rng.integers(1, 64, (n, dim)) + 0.49) * 2.0**-24
    else:
        x = signs * 2.0 ** rng.integers(-3, 3, dim) * (1.0 + 2.0**-11 - 2.0**-20)
        sizes = (10, 30) if seed % 3 else (-8, 9)
        z, bank = (x * 2.0 ** rng.integers(*sizes, (count, 1)) for count in (batch, n))
    z, bank = z.astype(np.float32), bank.astype(np.float32)
    exact = dialect("scores_at", z, bank, np.tile(np.arange(n), (batch, 1)))[0]
    least = np.sort(exact, axis=1)[:, 30].copy()
    values, rows, count = dialect("screen", z, bank, least, n)
    for i, number in enumerate(count):
        assert number == np.count_nonzero(exact[i] >= least[i])
        found = values[i] > -np.inf
        assert set(rows[i, found].tolist()) == set(np.flatnonzero(exact[i] >= least[i]).tolist())
        assert_same(values[i, found], exact[i, rows[i, found]])


@with_screen
@pytest.mark.parametrize("seed", range(9))  # three kinds of numbers, three widths
def test_a_screen_loses_nothing(dialect, seed):
    law_a_screen_loses_nothing(dialect, seed)


def law_a_screen_loses_no_large_row(dialect, seed):
    """One coordinate is beyond float16 and would take the score down with it, the others make up for it."""
    z, bank = np.array([[1, 4]], np.float32), np.array([[-100_000, 30_000], [1, 1]], np.float32)
    values, _, count = dialect("screen", z, bank, np.array([10.0 + seed], np.float32), 2)
    assert count.tolist() == [1]
    assert sorted(values[0].tolist()) == [-np.inf, 20_000.0]


@with_screen
def test_a_screen_loses_no_large_row(dialect):
    law_a_screen_loses_no_large_row(dialect, 0)


@with_screen
@pytest.mark.parametrize(
    ("forgotten", "law", "seed"),
    [
        ({"roundoff": 0.0}, law_a_screen_loses_nothing, 6),
        ({"vanishing": 0.0}, law_a_screen_loses_nothing, 7),
        ({"largest": np.inf}, law_a_screen_loses_no_large_row, 0),
    ],
    ids=["roundoff", "vanishing", "largest"],
)
def test_a_screen_that_forgets_what_float16_takes_is_caught(dialect, forgotten, law, seed, monkeypatch):
    monkeypatch.setattr(low, "FLOAT16", low.FLOAT16._replace(**forgotten))
    forget = getattr(sys.modules.get("jax"), "clear_caches", int)  # what was compiled has the number that it had
    forget()
    with pytest.raises(AssertionError):
        law(dialect, seed)
    forget()


@with_screen
def test_a_screen_is_for_few_of_many_rows(dialect, monkeypatch):
    asked = []
    for name in ("append", "screen"):
        function = getattr(dialect.module, name)
        monkeypatch.setattr(
            dialect.module, name, lambda *args, name=name, function=function: asked.append(name) or function(*args)
        )
    rng = np.random.default_rng(9)
    z, bank = normal(rng, 2, 8), normal(rng, 640, 8)
    for there, k in ((True, 10), (True, 11), (False, 10)):
        dialect.with_tensor_cores(there).nearest(z, bank, k)
    assert asked == ["screen", "append", "append"]


@every_search
def test_the_reference_is_not_asked_where_the_table_is_sure(searching):
    rng = np.random.default_rng(2)
    searching.nearest(normal(rng, 8, 16), normal(rng, 1000, 16), 20)
    assert searching.again == 0


@every_search
@pytest.mark.parametrize("threshold", [np.inf, -np.inf, np.nan], ids=["too few", "too many", "NaN"])
def test_a_wrong_threshold_costs_time_and_nothing_else(searching, threshold, monkeypatch):
    rng = np.random.default_rng(3)
    z, bank = normal(rng, 4, 16), normal(rng, 1000, 16)
    monkeypatch.setattr(gpu, "guess", lambda *args: searching.asarray(np.full(4, threshold, np.float32)))
    hold(searching.nearest(z, bank, 20), reference("nearest", z, bank, 20), exact=False)
    assert searching.again == 4


@every_search
def test_a_tie_at_the_last_place_goes_to_the_reference(searching):
    """Two rows are equal, and only one of them has a place; elsewhere the two have a place each, or none."""
    rng = np.random.default_rng(4)
    bank = normal(rng, 1000, 16)
    z = normal(rng, 1, 16)
    order = np.argsort(-(bank @ z[0]))
    for first, again in ((19, 1), (18, 0), (20, 0)):
        twins = bank.copy()
        twins[order[first + 1]] = twins[order[first]]
        hold(searching.nearest(z, twins, 20), reference("nearest", z, twins, 20), exact=False)
        assert searching.again == again


@every_search
def test_the_budget_does_not_change_the_answer(searching):
    rng = np.random.default_rng(5)
    z, bank = normal(rng, 5, 8), normal(rng, 500, 8)
    whole = searching.nearest(z, bank, 12)
    for x, y in zip(searching.nearest(z, bank, 12, 2 * 40 * gpu.plan(500, 12)[2]), whole, strict=True):
        assert_same(x, y)


@every_search
@pytest.mark.parametrize("row", [0, 401], ids=["in the sample", "elsewhere"])
def test_nan_is_refused(searching, row):
    rng = np.random.default_rng(6)
    bank = normal(rng, 1000, 16)
    bank[row, 3] = np.nan
    with pytest.raises(NotFiniteError, match="NaN"):
        searching.nearest(normal(rng, 2, 16), bank, 20)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (100, 1), (100, 100), (10_000, 4), (1_281_167, 4096), (10**8, 4096)])
def test_the_plan_fits(n, k):
    stride, rank, capacity = gpu.plan(n, k)
    assert 1 <= rank <= -(-n // stride)
    assert min(k, n) <= capacity <= n
    assert capacity <= max(3 * k, 400)


# The switch --------------------------------------------------------------------------------------------------------


def in_a_process(program, **env):
    environment = {name: x for name, x in os.environ.items() if name not in ("LA_CORE_GPU_KERNELS", "TRITON_INTERPRET")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("value", "on"), [(None, False), ("0", False), ("1", True)])
def test_off_unless_asked_for(value, on):
    program = "from la_core.backends import gpu; print(gpu.ENABLED)"
    env = {} if value is None else {"LA_CORE_GPU_KERNELS": value}
    assert in_a_process(program, **env) == [str(on)]


def test_what_is_off_is_not_imported():
    program = "import sys, la_core; la_core.backend('torch'); print('la_core.backends.torch.triton' in sys.modules)"
    assert in_a_process(program) == ["False"]
    assert gpu.load("torch.triton") is None or gpu.ENABLED


def test_where_the_compiler_is_missing_it_is_said_and_the_kernels_stay_off(monkeypatch):
    monkeypatch.setattr(gpu, "ENABLED", True)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "la_core.backends.torch.triton", raising=False)
    with pytest.warns(UserWarning, match=r"LA_CORE_GPU_KERNELS=1, but there is no torch\.triton: .*triton"):
        assert gpu.load("torch.triton") is None


def fake(device="cuda", dtype=torch.float32):
    return types.SimpleNamespace(device=types.SimpleNamespace(type=device), dtype=dtype)


def test_torch_asks_for_large_float32_arrays_on_a_gpu(monkeypatch):
    module = sys.modules["la_core.backends.torch.kernels"]
    assert module._triton is None or gpu.ENABLED
    monkeypatch.setattr(module, "_triton", None)
    assert not module._fused(fake(), 2**30)
    monkeypatch.setattr(module, "_triton", module)
    assert module._fused(fake(), 1024, 1024)
    assert not module._fused(fake(), 1024, 1023)
    assert not module._fused(fake("cpu"), 1024, 1024)
    assert not module._fused(fake(dtype=torch.float64), 1024, 1024)


def test_torch_hands_over(monkeypatch):
    """Each verb, through its override and its derivative; nothing that would lose a derivative."""
    module = sys.modules["la_core.backends.torch.kernels"]
    calls = []

    class Recorder:
        def __getattr__(self, name):
            def run(*args):
                calls.append(name)
                return getattr(kernels, name).reference(*args[:3])

            return run

    monkeypatch.setattr(module, "_triton", Recorder())
    monkeypatch.setattr(module, "_fused", lambda x, *shape: True)
    rng = np.random.default_rng(7)
    z, bank = torch.tensor(normal(rng, 3, 4), requires_grad=True), torch.tensor(normal(rng, 40, 4))
    kernels.assign(bank, bank[:5])
    scores, indices = kernels.nearest(z, bank, 5)
    scores.sum().backward()
    assert calls == ["assign", "nearest", "weighted_rows"]
    kernels.nearest(z, bank, 6)
    weights = torch.ones(3, 5, requires_grad=True)
    kernels.weighted_rows(weights, bank, indices).sum().backward()
    assert calls == ["assign", "nearest", "weighted_rows"]
    assert_close(weights.grad.numpy(), bank.sum(dim=1)[indices].numpy(), 1e-6, 1.0)


def test_cupy_hands_over(tmp_path, monkeypatch):
    """``backends/cupy.py`` itself with the kernels on, NumPy in CuPy's place."""
    if shutil.which("g++") is None:
        pytest.skip("g++, which compiles CuPy's kernels for the CPU, is not installed")
    for kernel in KERNELS.values():
        monkeypatch.setattr(kernel, "overrides", kernel.overrides.copy())
    monkeypatch.setattr(RawModule, "folder", tmp_path)
    monkeypatch.setattr(gpu, "ENABLED", True)
    monkeypatch.setattr(gpu, "LEAST", 1)
    monkeypatch.delitem(sys.modules, "la_core.backends.cupy_kernels", raising=False)
    module = executed(CUPY_KERNELS.with_name("cupy.py"), "cupy_by_numpy", monkeypatch)
    monkeypatch.delitem(sys.modules, "la_core.backends.cupy_kernels")
    launched = []
    launch = module._raw._launch
    monkeypatch.setattr(module._raw, "_launch", lambda name, *args: launched.append(name) or launch(name, *args))
    rng = np.random.default_rng(8)
    for dtype in (np.float32, np.float64):
        z, bank = (normal(rng, *shape).astype(dtype) for shape in ((3, 8), (400, 8)))
        for name, args in (
            ("assign", (bank, bank[:20])),
            ("nearest", (z, bank, 20)),
            ("nearest", (z, bank, 51)),
            ("weighted_rows", (z, bank, rng.integers(0, 400, (3, 8)))),
        ):
            got = KERNELS[name].overrides["cupy"](*args)
            want = reference(name, *args)
            for x, y in zip(got if isinstance(got, tuple) else (got,), want, strict=True):
                assert x.dtype == y.dtype
                assert_close(x, y, ACROSS[np.dtype(np.float32)], 40.0)
    assert launched == ["assign", "append", "weighted_rows"]


# They compile for a GPU --------------------------------------------------------------------------------------------

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from la_core.backends.torch import triton as module

real, whole, tiles = "*fp32", "i32", {"tile": module.TILE, "width": module.WIDTH}
shares = {"share": module.SHARE, "chunk": module.CHUNK, "width": 128}
for kernel, types, constants in [
    (module._assign, [real] * 3 + ["*i64", real] + [whole] * 3, tiles),
    (module._append, [real] * 4 + ["*i32", "*i32"] + [whole] * 4, tiles),
    (module._screen, ["*fp16"] + [real] * 4 + ["*i32", "*i32"] + [whole] * 4 + ["fp32"] * 3, tiles),
    (module._scores_at, [real, real, "*i32", real, whole, whole], {"chunk": module.CHUNK, "width": 128}),
    (module._weighted_rows, [real, real, "*i64", real, whole, whole], shares),
]:
    for one in ({}, {name: 1 for name, kind in zip(kernel.arg_names, types) if kind == "i32"}):  # Triton folds ones
        names = kernel.arg_names
        signature = dict(zip(names, types)) | dict.fromkeys({**constants, **one}, "constexpr")
        made = triton.compile(ASTSource(kernel, signature, {**constants, **one}), target=GPUTarget("cuda", 90, 32))
        print(kernel.__name__, len(made.asm["cubin"]) > 0, "tf32" in made.asm["ptx"], "mma" in made.asm["ptx"])
"""


def test_triton_compiles_for_a_gpu():
    """The interpreter takes what the compiler does not."""
    pytest.importorskip("triton", reason="triton, which compiles PyTorch's kernels, is not installed")
    words = in_a_process(COMPILE, PYTHONWARNINGS="ignore")
    kernels = ("_assign", "_append", "_screen", "_scores_at", "_weighted_rows")
    assert words == [word for name in kernels for word in 2 * [name, "True", "False", str(name == "_screen")]]


@pytest.mark.parametrize("x64", [False, True])
def test_pallas_lowers_for_a_gpu(x64):
    """To Triton's intermediate language: what comes after needs a GPU's library."""
    jax = pytest.importorskip("jax", reason="jax, which lowers its Pallas kernels, is not installed")
    module = importlib.import_module("la_core.backends.jax.pallas")

    def array(*shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    for function, args in (
        (module.assign, (array(100, 33), array(9, 33))),
        (partial(module.append, capacity=64), (array(5, 33), array(100, 33), array(5))),
        (partial(module.screen, capacity=64), (array(5, 33), array(100, 33), array(5))),
        (module.weighted_rows, (array(5, 9), array(100, 33), array(5, 9, dtype=np.int32))),
    ):
        with jax.enable_x64(x64):
            text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        assert "triton" in text


def test_cuda_compiles_for_a_gpu(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc, which compiles CuPy's kernels, is not installed")
    code = CUPY_KERNELS.read_text(encoding="utf-8").split('SOURCE = """')[1].split('"""')[0]
    (tmp_path / "kernels.cu").write_text(code, encoding="utf-8")
    subprocess.run(
        ["nvcc", "-arch=sm_90", "-Werror", "all-warnings", "-DTILE=64", "-DSHARE=512", "-cubin", "kernels.cu"],
        cwd=tmp_path,
        check=True,
        timeout=300,
    )


def test_every_name_that_is_used_is_there_in_cupy():
    cupy = pytest.importorskip("cupy", reason="test_every_name_that_is_used_is_there_in_cupy: cupy is not installed")
    used = set(re.findall(r"\bcp\.(\w+)", CUPY_KERNELS.read_text(encoding="utf-8")))
    assert "RawModule" in used
    assert all(hasattr(cupy, name) for name in used)


# The benchmark -----------------------------------------------------------------------------------------------------

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def test_the_benchmark_says_that_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("test_the_benchmark_says_that_there_is_no_gpu: there is one")
    program = f"import runpy, sys; sys.argv[1:] = []; runpy.run_path({str(BENCHMARK)!r}, run_name='__main__')"
    words = in_a_process(program, CUDA_VISIBLE_DEVICES="")
    assert " ".join(words) == "No GPU that torch, jax or cupy can use: nothing is measured."


def test_the_benchmark_names_every_goal():
    text = BENCHMARK.read_text(encoding="utf-8")
    assert re.findall(r'^    "(G\d\w?)":', text, re.MULTILINE) == [
        "G1",
        "G1b",
        "G1c",
        "G2",
        "G2b",
        "G2c",
        "G2d",
        "G3",
        "G3b",
        "G3c",
        "G3d",
        "G4",
        "G4b",
        "G5",
        "G6",
    ]
