"""CuPy: what needs a GPU, skipped test by test where there is none; and everywhere what CuPy shares with NumPy."""

import importlib
import inspect
import re
import sys
import types
from contextlib import nullcontext
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import make_case
from test_kernels import KERNELS, arguments
from variants import ACROSS, DEVICE1, NUMPY, STRICT, assert_close, assert_same

import la_core
from la_core import Settings, kernels
from la_core.backends.torch import DLPackEncoder, Perceptron, TorchEncoder, make_optimizer
from la_core.backends.torch import dlpack as dlpack_module
from la_core.errors import BackendError, NotFiniteError
from la_core.mlp import MLP

SOURCE = Path(find_spec("la_core.backends.cupy").origin)
every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32])


# The kernels, with NumPy in CuPy's place ---------------------------------------------------------------------------


class Device:
    """What ``cupy.cuda.Device`` does, and what a machine without a GPU says instead."""

    broken = None
    used = ()

    def __init__(self, number=None):
        self.number = number

    def use(self):
        if Device.broken:
            raise Device.broken
        Device.used = (*Device.used, self.number)


def in_place_of_cupy():
    """``backends/cupy.py`` with NumPy as its ``cupy``, and the kernels that it registers; nothing of it stays."""
    stand_in = types.ModuleType("cupy")
    stand_in.__getattr__ = lambda name: getattr(np, name)
    stand_in.cuda = types.SimpleNamespace(Device=Device)
    stand_in.asnumpy = np.asarray
    spec = spec_from_file_location("cupy_by_numpy", SOURCE)
    module = module_from_spec(spec)
    before = {name: kernel.overrides.copy() for name, kernel in KERNELS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", stand_in)
        spec.loader.exec_module(module)
    faster = {name: kernel.overrides["cupy"] for name, kernel in KERNELS.items() if "cupy" in kernel.overrides}
    for name, kernel in KERNELS.items():
        kernel.overrides.clear()
        kernel.overrides.update(before[name])
    return module, faster


BY_NUMPY, FASTER = in_place_of_cupy()
every_kernel = pytest.mark.parametrize("name", sorted(FASTER))


def on(variant, args, dtype):
    return [
        variant.asarray(a.astype(dtype) if a.dtype.kind == "f" else a) if isinstance(a, np.ndarray) else a for a in args
    ]


def listed(results):
    return list(results) if isinstance(results, tuple) else [results]


def hold_to_the_reference(name, override, variant, args, dtype, exact):
    got = [variant.to_host(x) for x in listed(override(*on(variant, args, dtype)))]
    want = [STRICT.to_host(x) for x in listed(KERNELS[name].reference(*on(STRICT, args, dtype)))]
    for x, y in zip(got, want, strict=True):
        if exact or name in ("top_k", "put_rows"):
            assert_same(x, y)
        elif x.dtype.kind == "f":
            assert x.dtype == y.dtype
            assert_close(x, y, ACROSS[np.dtype(dtype)], 40.0)


def test_what_is_faster_on_cupy():
    assert set(FASTER) == {"top_k", "segment_sum", "put_rows", "assign", "scores_at", "weighted_rows"}
    assert not any(f is kernel.overrides.get("cupy") for name, f in FASTER.items() for kernel in [KERNELS[name]])


@every_kernel
@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_kernel_is_the_reference_to_the_bit_on_integers(name, dtype, seed):
    args = arguments(name, np.random.default_rng(seed), integers=True)
    hold_to_the_reference(name, FASTER[name], NUMPY, args, dtype, exact=True)


@every_kernel
@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_kernel_is_the_reference_on_real_numbers(name, dtype, seed):
    args = arguments(name, np.random.default_rng(seed), integers=False)
    hold_to_the_reference(name, FASTER[name], NUMPY, args, dtype, exact=False)


AWKWARD = (0.0, -0.0, 5e-324, -5e-324, 1e-45, 1.0, -1.0, np.inf, -np.inf, 1.7e308, -1.7e308, 0.1, np.nextafter(0.1, 1))


@every_dtype
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([1, 2, 7, 50]))
def test_selection_over_the_whole_range_of_numbers(dtype, seed, n):
    """Zeros of both signs are equal, infinities and subnormal numbers have their place, and ties go lowest first."""
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        x = rng.choice(np.array(AWKWARD).astype(dtype), (6, n))
    for k in {1, n // 2 or 1, n}:
        hold_to_the_reference("top_k", FASTER["top_k"], NUMPY, (x, k), dtype, exact=True)


@every_dtype
def test_selection_is_a_few_passes_and_no_sort(dtype, monkeypatch):
    x = np.random.default_rng(0).standard_normal((4, 3000)).astype(dtype)
    passes = []
    count = np.count_nonzero
    monkeypatch.setattr(np, "count_nonzero", lambda *args, **kwargs: passes.append(1) or count(*args, **kwargs))
    for verb in ("sort", "argsort", "partition", "argpartition"):
        monkeypatch.delattr(np, verb)
    FASTER["top_k"](x, 700)
    assert len(passes) <= np.dtype(dtype).itemsize * 8


@pytest.mark.parametrize("where", [(0, 0), (2, 4)])
def test_selection_refuses_nan(where):
    x = np.zeros((3, 5))
    x[where] = np.nan
    with pytest.raises(NotFiniteError, match="NaN"):
        FASTER["top_k"](x, 2)


def test_segment_sum_keeps_its_precision_in_a_long_segment():
    x = np.random.default_rng(0).random((100_001, 1)).astype(np.float32)
    got = FASTER["segment_sum"](x, np.zeros(len(x), dtype=np.int64), 2)
    assert got.dtype == np.float32
    assert got[0, 0] == pytest.approx(float(x.astype(np.float64).sum()), rel=2e-7)
    assert got[1, 0] == 0


def test_rows_are_put_in_place():
    x = np.zeros((4, 2))
    assert FASTER["put_rows"](x, np.array([3, 1, 3]), np.array([[1.0, 2], [3, 4], [1, 2]])) is x
    assert_same(x, np.array([[0.0, 0], [3, 4], [0, 0], [1, 2]]))


@pytest.mark.parametrize("name", ["scores_at", "weighted_rows", "assign"])
def test_blocks_do_not_change_the_answer(name, monkeypatch):
    args = arguments(name, np.random.default_rng(5), integers=True)
    args = args[:2] if name == "assign" else args
    whole = listed(FASTER[name](*args))
    monkeypatch.setattr(BY_NUMPY, "BUDGET", 1)
    for x, y in zip(listed(FASTER[name](*args, *([1] if name == "assign" else []))), whole, strict=True):
        assert_same(x, y)


def test_every_name_that_is_used_is_there_in_cupy():
    cupy = pytest.importorskip("cupy", reason="test_every_name_that_is_used_is_there_in_cupy: cupy is not installed")
    used = set(re.findall(r"\bcp\.([a-z_0-9.]*[a-z_0-9])", SOURCE.read_text(encoding="utf-8"), re.IGNORECASE))
    assert len(used) > 15
    for name in used:
        there = cupy
        for part in name.split("."):
            there = getattr(there, part)
    assert callable(cupy.cuda.get_current_stream)
    assert callable(cupy.from_dlpack)


# The backend -------------------------------------------------------------------------------------------------------


def test_cupy_is_announced():
    with pytest.raises(BackendError, match=r"cupy.*torch"):
        la_core.backend("nosuch")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "la_core.backends.cupy", raising=False)
    with pytest.raises(BackendError, match=r"needs the package 'cupy'.*pip install 'la-core\[cupy\]'"):
        la_core.backend("cupy")


def test_without_a_gpu_the_error_says_so(monkeypatch):
    monkeypatch.setattr(Device, "broken", RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    with pytest.raises(BackendError, match=r"device 'cuda': cudaErrorNoDevice.*needs an NVIDIA GPU") as caught:
        BY_NUMPY.CuPyBackend()
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("device", "number"), [(None, None), ("cuda", None), ("cuda:0", 0), ("0", 0), ("cuda:12", 12), ("3", 3)]
)
def test_a_device_by_name(device, number, monkeypatch):
    monkeypatch.setattr(Device, "used", ())
    backend = BY_NUMPY.CuPyBackend(device)
    assert backend.device.number == number
    assert Device.used == (number,)


@pytest.mark.parametrize("device", ["cpu", "", "gpu", "cuda0", "cuda:", "cuda:x", "-1", "cuda:0 "])
def test_a_device_that_is_none(device):
    with pytest.raises(BackendError, match="takes 'cuda', 'cuda:0' or '0'"):
        BY_NUMPY.CuPyBackend(device)


def test_arrays_go_there_and_back():
    backend = BY_NUMPY.CuPyBackend()
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = backend.asarray(host)
    backend.seed(0)
    assert not np.shares_memory(there, host)
    assert_same(backend.to_host(there), host)


# What CuPy shares with NumPy: the MLP, and torch through DLPack ----------------------------------------------------


class SecondDevice:
    """array-api-strict as a backend, off its default device: an array made without ``device=`` fails at once."""

    name = "array_api_strict"
    asarray = staticmethod(DEVICE1.asarray)
    to_host = staticmethod(DEVICE1.to_host)

    def seed(self, seed):
        pass

    def compile(self, function, consumes=()):
        return function


RNG = np.random.default_rng(0)
CLASSES = np.repeat(np.arange(4), 8)
FEATURES = 3 * RNG.standard_normal((4, 6))[CLASSES] + RNG.standard_normal((32, 6))
SAMPLES = list(zip(FEATURES, CLASSES, strict=True))
SIZES = (6, 9, 5)
SMALL = Settings(
    epochs=4,
    warmup_epochs=2,
    batch_size=12,
    n_background=10,
    n_clusters=4,
    n_clusterings=2,
    knn_k=5,
    learning_rate=0.1,
    temperature=0.5,
    dtype="float64",
)


def perceptron(backend):
    return MLP(backend, SIZES, SMALL)


def torch_encoder(device="cpu", sizes=SIZES):
    torch.manual_seed(0)
    module = Perceptron(sizes).double()
    return TorchEncoder(module, make_optimizer(module, SMALL), device=device)


def run_of(backend, encoder):
    """What a run leaves: losses, bank, weights and labels, on the host."""
    run = la_core.train(SAMPLES, encoder, backend=backend, settings=SMALL, progress=False)
    losses = np.array([record["loss"] for record in run.history])
    return losses, backend.to_host(run.state.bank), backend.to_host(run.state.labels), run.encoder.weights()


def assert_the_same_run(got, want):
    assert_close(got[0], want[0], 1e-10, 1.0)
    assert_close(got[1], want[1], 1e-10, 1.0)
    np.testing.assert_array_equal(got[2], want[2])
    for name, weights in want[3].items():
        assert_close(got[3][name], weights, 1e-9, 1.0)


def test_the_mlp_learns_off_the_default_device_as_on_numpy():
    numpy = la_core.backend("numpy")
    assert_the_same_run(run_of(SecondDevice(), perceptron(SecondDevice())), run_of(numpy, perceptron(numpy)))


@pytest.mark.parametrize(
    "backend", [la_core.backend("numpy"), SecondDevice(), la_core.backend("torch")], ids=lambda b: b.name
)
def test_a_torch_encoder_learns_against_a_bank_of_another_library(backend):
    theirs = la_core.backend("torch")
    lent = run_of(backend, DLPackEncoder(torch_encoder(), backend))
    assert_the_same_run(lent, run_of(theirs, torch_encoder()))


class Recorder:
    """An encoder that keeps what it is given."""

    device = torch.device("cpu")

    def __init__(self):
        self.weight = torch.ones(3, 2, requires_grad=True)

    def apply(self, batch):
        self.batch = batch
        self.z = batch @ self.weight
        return self.z, batch

    def pullback(self, batch):
        self.apply(batch)

        def back(cotangent):
            self.cotangent = cotangent

        return self.z, back

    def step(self, learning_rate):
        self.rate = learning_rate

    def weights(self):
        return {"weight": self.weight.detach().numpy()}

    def load(self, weights):
        self.loaded = weights

    def training_state(self):
        return {"momentum": self.weight.detach().numpy()}

    def load_training_state(self, state):
        self.kept = state


def test_nothing_is_copied():
    theirs = Recorder()
    ours = DLPackEncoder(theirs, la_core.backend("numpy"))
    batch, cotangent = np.ones((4, 3), dtype=np.float32), np.ones((4, 2), dtype=np.float32)
    z, back = ours.pullback(batch)
    back(cotangent)
    assert isinstance(z, np.ndarray)
    for lent, own in ((theirs.batch, batch), (theirs.z, z), (theirs.cotangent, cotangent)):
        assert lent.data_ptr() == own.ctypes.data
    z, features = ours.apply(batch)
    assert theirs.z.data_ptr() == z.ctypes.data
    assert features.ctypes.data == batch.ctypes.data


def test_the_rest_is_the_encoders_own():
    theirs = Recorder()
    ours = DLPackEncoder(theirs, la_core.backend("numpy"))
    ours.step(0.25)
    ours.load({"weight": 1})
    ours.load_training_state({"momentum": 2})
    assert theirs.rate == 0.25
    assert theirs.loaded == {"weight": 1}
    assert list(ours.weights()) == ["weight"]
    assert theirs.kept == {"momentum": 2}
    assert list(ours.training_state()) == ["momentum"]


def test_two_devices_are_refused():
    with pytest.raises(BackendError, match=r"encoder is on meta and the arrays of the numpy backend are on cpu"):
        DLPackEncoder(types.SimpleNamespace(device=torch.device("meta")), la_core.backend("numpy"))


def test_arrays_that_torch_cannot_take_are_refused(monkeypatch):
    def refuse(x):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(dlpack_module, "from_dlpack", refuse)
    with pytest.raises(BackendError, match=r"cannot take arrays of the numpy backend: Torch not compiled with CUDA"):
        DLPackEncoder(Recorder(), la_core.backend("numpy"))


class Stream:
    """A CUDA stream that writes down who waits for whom."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("pointer", [0, 7])
@pytest.mark.parametrize("fails", [False, True])
def test_torch_works_on_the_stream_of_the_other_library(pointer, fails, monkeypatch):
    log = []
    encoder = DLPackEncoder(Recorder(), la_core.backend("numpy"))
    current = types.SimpleNamespace(ptr=pointer)
    encoder._namespace = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: current))
    encoder.encoder.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer, device: Stream(f"stream {pointer}", log))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream("default", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("torch", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: log.append(f"on {stream.name}") or nullcontext())
    if fails:
        encoder.encoder.step = None
    with pytest.raises(TypeError) if fails else nullcontext():
        encoder.step(0.1)
    name = f"stream {pointer}" if pointer else "default"
    assert log == [f"{name} waits for torch", f"on {name}", f"torch waits for {name}"]


# On a GPU ----------------------------------------------------------------------------------------------------------


def why_not():
    """What keeps CuPy from running here, or nothing. Asked while a test runs: asking registers CuPy's kernels."""
    try:
        la_core.backend("cupy")
    except BackendError as error:
        for kernel in KERNELS.values():
            kernel.overrides.pop("cupy", None)
        return str(error).partition(". It needs")[0]
    return ""


@pytest.fixture
def gpu(request):
    """CuPy as a backend and as a variant; the test is skipped by its name where no array can be allocated."""
    reason = why_not()
    if reason:
        pytest.skip(f"{request.node.name}: {reason}")
    backend = la_core.backend("cupy")
    return types.SimpleNamespace(backend=backend, asarray=backend.asarray, to_host=backend.to_host)


@pytest.fixture
def gpu_and_torch(gpu, request):
    if not torch.cuda.is_available():
        pytest.skip(f"{request.node.name}: this PyTorch ({torch.__version__}) has no CUDA device")
    return gpu


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_on_a_gpu_kernel_is_the_reference(gpu, name):
    for seed, dtype, integers in product(range(20), (np.float64, np.float32), (True, False)):
        args = arguments(name, np.random.default_rng(seed), integers)
        exact = integers and name != "softmax_mean"
        hold_to_the_reference(name, KERNELS[name], gpu, args, dtype, exact)


@every_dtype
def test_on_a_gpu_selection_is_that_of_numpy_at_size(gpu, dtype):
    x = np.random.default_rng(0).standard_normal((64, 50_000)).astype(dtype)
    x[:, ::7] = np.round(x[:, ::7], 1)
    for k in (1, 511, 512, 4096, 50_000):
        for got, want in zip(kernels.top_k(gpu.asarray(x), k), kernels.top_k(x, k), strict=True):
            assert_same(gpu.to_host(got), want)


def test_on_a_gpu_segment_sum_repeats_to_the_bit(gpu):
    rng = np.random.default_rng(0)
    x, segments = gpu.asarray(rng.standard_normal((50_000, 32))), gpu.asarray(rng.integers(0, 300, 50_000))
    first = gpu.to_host(kernels.segment_sum(x, segments, 300))
    for _ in range(5):
        assert_same(gpu.to_host(kernels.segment_sum(x, segments, 300)), first)


PUBLIC = {
    "nearest": lambda c: la_core.nearest(c.z, c.bank, c.n_background),
    "close": lambda c: (la_core.close(c.labels, c.indices, la_core.nearest(c.z, c.bank, c.n_background)[1]),),
    "update": lambda c: (la_core.update(c.state, c.indices, c.z).bank,),
    "unit": lambda c: (la_core.unit(c.z),),
    "local_aggregation": lambda c: la_core.local_aggregation_and_cotangent(c.z, c.state, c.indices, **c.settings),
    "softmax": lambda c: la_core.instance_discrimination_and_cotangent(
        c.z, c.bank, c.indices, temperature=c.temperature
    ),
    "nce": lambda c: la_core.instance_discrimination_and_cotangent(
        c.z, c.bank, c.indices, temperature=c.temperature, noise=c.noise
    ),
    "cluster": lambda c: la_core.cluster(c.bank, n_clusters=2, n_clusterings=2, seed=0)[:2],
    "knn": lambda c: (la_core.evaluate.knn(c.bank, c.labels[0] * 0 + c.labels[0] % 3, c.z, k=2),),
}


@pytest.mark.parametrize("function", sorted(PUBLIC))
def test_on_a_gpu_public_function_is_that_of_numpy(gpu, function):
    for seed in range(10):
        case = make_case(seed)
        for got, want in zip(PUBLIC[function](case.on(gpu)), PUBLIC[function](case.on(NUMPY)), strict=True):
            assert type(got).__module__.partition(".")[0] == "cupy"
            if want.dtype.kind == "f":
                assert_close(gpu.to_host(got), want, 1e-9, 10.0)
            else:
                assert_same(gpu.to_host(got), want)


def test_on_a_gpu_the_mlp_learns_as_on_numpy(gpu):
    numpy = la_core.backend("numpy")
    assert_the_same_run(run_of(gpu.backend, perceptron(gpu.backend)), run_of(numpy, perceptron(numpy)))


@pytest.mark.parametrize("own_stream", [False, True], ids=["default stream", "a stream of its own"])
def test_on_a_gpu_a_torch_encoder_learns_against_a_cupy_bank(gpu_and_torch, own_stream):
    cupy = importlib.import_module("cupy")
    backend = gpu_and_torch.backend
    want = run_of(la_core.backend("torch"), torch_encoder())
    with cupy.cuda.Stream(non_blocking=True) if own_stream else nullcontext():
        got = run_of(backend, DLPackEncoder(torch_encoder("cuda"), backend))
    assert_the_same_run(got, want)


def test_on_a_gpu_nothing_is_copied_between_cupy_and_torch(gpu_and_torch):
    theirs = Recorder()
    theirs.device, theirs.weight = torch.device("cuda"), theirs.weight.detach().cuda().requires_grad_()
    ours = DLPackEncoder(theirs, gpu_and_torch.backend)
    batch = gpu_and_torch.asarray(np.ones((4, 3), dtype=np.float32))
    z, back = ours.pullback(batch)
    back(z)
    assert theirs.batch.data_ptr() == batch.data.ptr
    assert theirs.z.data_ptr() == theirs.cotangent.data_ptr() == z.data.ptr


def test_what_needs_a_gpu_says_so_in_its_name_and_is_skipped_by_it():
    tests = [test for name, test in globals().items() if name.startswith("test_on_a_gpu")]
    assert len(tests) > 5
    for test in tests:
        assert {"gpu", "gpu_and_torch"} & set(inspect.signature(test).parameters), test.__name__
