"""Every override of every kernel against its reference, the reference run by array-api-strict in its strictest mode."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import cases, integer_rows, make_case
from variants import ACROSS, NUMPY, STRICT, TORCH, assert_close, assert_same

import la_core
from la_core import kernels
from la_core.backends import host, scan
from la_core.backends.torch import kernels as torch_kernels

KERNELS = {name: kernel for name, kernel in vars(kernels).items() if isinstance(kernel, kernels.Kernel)}
LIBRARIES = {"numpy": NUMPY, "torch": TORCH}
ELSEWHERE = {"la_core": "test_processes.py", "jax": "test_jax.py", "jaxlib": "test_jax.py", "cupy": "test_cupy.py"}
REGISTERED = {(name, library) for name, kernel in KERNELS.items() for library in kernel.overrides}
OVERRIDES = sorted(pair for pair in REGISTERED if pair[1] in LIBRARIES)

every_override = pytest.mark.parametrize(("name", "library"), OVERRIDES)
every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32])
BUDGETS = (1, 500, 2**20)
LABELS = ([-1, 0, 1, 2], [-7, 0, 127, 128, 253], [-1, 0, 254, 255, 256])
"""Few of them, of which some differ in one bit, or in none that a byte has."""
MANY = (1, 2, 8, 8, 13, 13, 13, 300)
"""Clusterings: a byte counts no more than 255, a word has room for eight labels."""


def arguments(name, rng, integers):
    """Host arguments of one kernel: integer-valued with many ties, or real."""
    n, dim, batch = (int(rng.choice(few)) for few in ((1, 5, 40), (1, 4, 16), (1, 3, 9)))
    k = int(rng.integers(1, n + 1))

    def real(*shape):
        if integers:
            return integer_rows(rng.integers(2**32), *shape).astype(np.float64)
        return rng.standard_normal(shape)

    chosen = rng.integers(0, n, (batch, k))
    budget = int(rng.choice(BUDGETS))
    written = rng.integers(0, n, batch)
    alone = rng.permutation(batch + 3)[:batch]

    def spoilt(x):
        x[rng.random(x.shape) < 0.5] = rng.choice([0.0, 3e38, -3e38, np.inf, -np.inf, np.nan])
        return x

    return {
        "top_k": lambda: (real(batch, n), k),
        "along": lambda: (real(batch, n), chosen),
        "falling": lambda: (real(batch, n),),
        "segment_sum": lambda: (real(n, dim), rng.integers(0, k, n), k),
        "put_rows": lambda: (real(n, dim), written, real(n, dim)[written]),
        "nearest": lambda: (real(batch, dim), real(n, dim), k, budget),
        "assign": lambda: (real(n, dim), real(k, dim), budget),
        "rows_at": lambda: (real(n, dim), written),
        "entries": lambda: (real(n, 1)[:, 0], chosen),
        "votes": lambda: (rng.choice(LABELS[rng.integers(3)], (rng.choice(MANY), n)), written, chosen),
        "mean_of_equals": lambda: (real(batch, dim), written if rng.random() < 0.5 else alone),
        "inverse_norm": lambda: (real(batch, dim) * rng.choice([0.0, 2.0**-100, 1.0], (batch, 1)),),
        "finite": lambda: (spoilt(real(batch, dim)),),
        "softmax_ratio": lambda: (
            40 * real(batch, k),
            rng.random((batch, k)) < rng.choice([0.0, 0.2, 1.0], (batch, 1)),
        ),
        "scores_at": lambda: (real(batch, dim), real(n, dim), chosen),
        "weighted_rows": lambda: (real(batch, k), real(n, dim), chosen),
        "softmax_mean": lambda: (real(batch, dim), real(n, dim), 0.5, budget),
    }[name]()


def masks(rng, batch, k):
    """Of rows with none, some and all."""
    return rng.random((batch, k)) < rng.choice([0.0, 0.2, 1.0], (batch, 1))


def call(kernel, variant, args, dtype):
    there = [
        variant.asarray(a.astype(dtype) if a.dtype.kind == "f" else a) if isinstance(a, np.ndarray) else a for a in args
    ]
    results = kernel(*there)
    results = results if isinstance(results, tuple) else (results,)
    return [np.array(x) if isinstance(x, bool) else variant.to_host(x) for x in results]


@given(seed=st.integers(0, 2**32 - 1))
def test_selection_by_torch_itself_equals_its_reference(seed):
    """What answers on a GPU; on a CPU NumPy does."""
    x, k = arguments("top_k", np.random.default_rng(seed), integers=True)
    for ours, theirs in zip(
        torch_kernels.top_k_of_torch(torch.from_numpy(x), k), kernels.top_k.reference(x, k), strict=True
    ):
        assert_same(ours.numpy(), theirs)


def law_the_best_are_the_reference(variant, seed):
    """Of long rows some at a time, with ties and without, whether a guess is right, too high, or not made."""
    rng = np.random.default_rng(seed)
    k, batch = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    n = int(rng.integers(k, 40 * k)) + 100
    x = rng.integers(0, rng.choice([3, 10**6]), (batch, n)).astype(np.float32)
    x[rng.random(batch) < 0.3] *= np.arange(n) % 3 == 0  # so that a sample sees these alone
    with (
        mock.patch.object(kernels, "CACHE", 3 * n * x.itemsize // 2),  # three rows
        mock.patch.multiple(scan, LONG=100, STRIDES=(3, 3), DENSE=rng.choice([2, 8])),
    ):
        found = call(kernels.top_k, variant, (x, k), np.float32)
    for ours, theirs in zip(found, kernels.top_k.reference(x, k), strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("variant", LIBRARIES.values(), ids=str)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_best_are_the_reference(variant, seed):
    law_the_best_are_the_reference(variant, seed)


def test_a_guess_is_right_more_often_than_not_and_what_it_leaves_is_little():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 50_000)).astype(np.float32)
    with mock.patch.object(scan, "_reaching", side_effect=AssertionError):
        kernels.top_k(x, 4096)
    exceeding = (x > scan._below(x[:, :: scan.stride(50_000)], 50_000, 4096)[:, None]).sum(axis=1)
    assert (exceeding < 1.5 * 4096).all()


def law_a_bank_read_by_stretches_is_the_reference(seed, dtype=np.float32):
    """To the bit on integers: of rows that rise and not, of stretches that do not divide the bank or have nothing."""
    rng = np.random.default_rng(seed)
    batch, k, n, dim = (int(rng.choice(few)) for few in ((2, 9), (40, 64), (11, 32), (1, 5)))
    indices = rng.integers(0, rng.choice([1, n // 2, n]), (batch, k)).astype(rng.choice([np.int32, np.int64]))
    if rng.random() < 0.5:
        indices.sort(axis=1)
    weights, bank = (integer_rows(rng.integers(2**32), *shape).astype(dtype) for shape in ((batch, k), (n, dim)))
    taken = []
    by_stretches = torch_kernels._by_stretches

    def counting(*args):
        taken.append(args)
        return by_stretches(*args)

    with (
        mock.patch.object(torch_kernels, "STRETCH", max(1, bank.nbytes // 4)),
        mock.patch.object(torch_kernels, "_by_stretches", counting),
    ):
        (found,) = call(kernels.weighted_rows, TORCH, (weights, bank, indices), dtype)
    assert taken
    assert_same(found, kernels.weighted_rows.reference(weights, bank, indices))


@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_a_bank_read_by_stretches_is_the_reference(dtype, seed):
    law_a_bank_read_by_stretches_is_the_reference(seed, dtype)


@pytest.mark.parametrize(("n", "size"), [(0, 3), (1, 1), (7, 3), (9, 3), (10, 4), (5, 9), (5, 0)])
def test_even_blocks_are_as_few_and_cover_all(n, size):
    few = list(kernels.evenly(n, size))
    assert [i for some in few for i in range(n)[some]] == list(range(n))
    lengths = [some.stop - some.start for some in few]
    assert len(few) == len(list(kernels.blocks(n, size)))
    assert max(lengths, default=0) <= max(1, size)
    assert max(lengths, default=0) - min(lengths, default=0) <= len(few)


def test_every_override_has_a_variant_and_every_kernel_arguments():
    assert {library for _, library in REGISTERED} <= set(LIBRARIES) | set(ELSEWHERE)
    assert OVERRIDES
    for name in KERNELS:
        arguments(name, np.random.default_rng(0), True)


@every_override
@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_override_is_the_reference_to_the_bit_on_integers(name, library, dtype, seed):
    kernel, args = KERNELS[name], arguments(name, np.random.default_rng(seed), integers=True)
    got = call(kernel.overrides[library], LIBRARIES[library], args, dtype)
    want = call(kernel.reference, STRICT, args, dtype)
    for x, y in zip(got, want, strict=True):
        if name in ("softmax_mean", "softmax_ratio"):
            assert_close(x, y, ACROSS[np.dtype(dtype)], 100.0)
        else:
            assert_same(x, y)


@every_override
@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_override_is_the_reference_on_real_numbers(name, library, dtype, seed):
    """Values to rounding; ids too where the kernel computes nothing and only selects."""
    kernel, args = KERNELS[name], arguments(name, np.random.default_rng(seed), integers=False)
    got = call(kernel.overrides[library], LIBRARIES[library], args, dtype)
    want = call(kernel.reference, STRICT, args, dtype)
    for x, y in zip(got, want, strict=True):
        if name in ("top_k", "put_rows", "along", "falling"):
            assert_same(x, y)
        elif x.dtype.kind == "f":
            assert x.dtype == y.dtype
            assert_close(x, y, ACROSS[np.dtype(dtype)], 40.0)


@every_override
def test_the_override_answers_for_its_library(name, library, monkeypatch):
    kernel = KERNELS[name]
    monkeypatch.setitem(kernel.overrides, library, lambda *args: "faster")
    monkeypatch.setattr(kernel, "reference", lambda *args: "reference")
    array = LIBRARIES[library].asarray(np.ones(1))
    assert kernel(array, array) == "faster"
    assert kernel(*[STRICT.asarray(np.ones(1))] * 2) == "reference"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_ties_go_to_the_lowest_columns(library, k):
    x = np.array([[1.0, 3, 2, 3, 3, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 2, 2, 2]])
    order = np.sort(np.argsort(-x, axis=1, kind="stable")[:, :k], axis=1)
    values, columns = call(kernels.top_k, LIBRARIES[library], (x, k), np.float64)
    assert_same(columns, order)
    assert_same(values, np.take_along_axis(x, order, axis=1))


def law_the_fast_ratio_is_the_reference(seed, dtype=np.float32):
    """To the bit, by the same library: also where C is empty or all, and where some scores have no mass."""
    rng = np.random.default_rng(seed)
    batch, k = int(rng.choice([1, 2, 7])), int(rng.choice([1, 2, 33]))
    s = torch.tensor((rng.choice([0.1, 5.0, 200.0]) * rng.standard_normal((batch, k))).astype(dtype))
    mask = torch.tensor(masks(rng, batch, k))
    s[torch.tensor(rng.random((batch, k)) < 0.2) & ~mask] = -1e30
    before = s.clone()
    for ours, theirs in zip(kernels.softmax_ratio(s, mask), kernels.softmax_ratio.reference(s, mask), strict=True):
        assert_same(ours.numpy(), theirs.numpy())
    assert_same(s.numpy(), before.numpy())


@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_the_fast_ratio_is_the_reference(dtype, seed):
    law_the_fast_ratio_is_the_reference(seed, dtype)


def law_the_cold_ratio_keeps_its_digits(xp, function):
    """Where scores are large, for it is cold, and nearly equal, what is lost is measured by their differences."""
    rng = np.random.default_rng(0)
    s = (1e4 + np.arange(64) / 512 * rng.choice([-1, 1], (40, 64))).astype(np.float32)
    mask = rng.random((40, 64)) < 0.9
    want = kernels.softmax_ratio.reference(s.astype(np.longdouble), mask)[0]
    got = np.asarray(function(xp.asarray(s), xp.asarray(mask))[0])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_the_cold_ratio_keeps_its_digits(xp):
    law_the_cold_ratio_keeps_its_digits(xp, kernels.softmax_ratio)
    law_the_cold_ratio_keeps_its_digits(xp, kernels.softmax_ratio.reference)


def test_a_ratio_whose_peaks_meet_its_logs_is_caught():
    def planted(s, mask):
        lse = np.log(np.exp(s - s.max(axis=1, keepdims=True)).sum(axis=1)) + s.max(axis=1)
        inside = np.where(mask, s, -np.inf)
        return lse - (np.log(np.exp(inside - inside.max(axis=1, keepdims=True)).sum(axis=1)) + inside.max(axis=1)), None

    with pytest.raises(AssertionError):
        law_the_cold_ratio_keeps_its_digits(np, planted)


@pytest.mark.parametrize("more", [0, 1])
def test_segments_at_the_limit_of_short_numbers_are_kept_apart(more):
    n = 2**16 + more
    segments = np.array([0, n - 1, 1, n - 1])
    total = kernels.segment_sum(np.arange(8.0).reshape(4, 2), segments, n)
    assert total[[0, 1, n - 1]].tolist() == [[0, 1], [4, 5], [8, 10]]
    assert np.count_nonzero(total) == 5


def test_votes_of_many_clusterings_take_the_memory_of_few():
    rng = np.random.default_rng(0)
    peaks = []
    for many in (3, 100):
        labels, neighbours = rng.integers(0, 9, (many, 500)), rng.integers(0, 500, (50, 400))
        tracemalloc.start()
        kernels.votes.reference(labels, np.arange(50), neighbours)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def law_one_exponential_is_enough(seed, dtype=np.float32):
    """As close to the reference in twice the precision as its own is, whatever the distance from C's peak to B's."""
    rng = np.random.default_rng(seed)
    batch, k = int(rng.choice([1, 2, 7])), int(rng.choice([1, 2, 33]))
    s = (rng.choice([0.1, 5.0, 200.0]) * rng.standard_normal((batch, k))).astype(dtype)
    mask = masks(rng, batch, k)
    s[(rng.random((batch, k)) < 0.2) & ~mask] = -1e30
    before = s.copy()
    found, wanted = host.softmax_ratio(s, mask), kernels.softmax_ratio.reference(s.astype(np.longdouble), mask)
    off = 16 * np.finfo(dtype).eps
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, theirs, rtol=off, atol=off * (1.0 + np.abs(s[s > -1e29]).max(initial=0.0)))
    assert_same(s, before)


@every_dtype
@given(seed=st.integers(0, 2**32 - 1))
def test_one_exponential_is_enough(dtype, seed):
    law_one_exponential_is_enough(seed, dtype)


def law_votes_are_the_reference(variant, seed):
    """Negative labels too, those that a byte cannot hold, and more clusterings than it counts."""
    rng = np.random.default_rng(seed)
    for _ in range(4):
        args = arguments("votes", rng, True)
        assert_same(*(call(kernel, to, args, None)[0] for kernel, to in ((kernels.votes, variant), (VOTES, STRICT))))


VOTES = kernels.votes.reference


@pytest.mark.parametrize("library", LIBRARIES)
@given(seed=st.integers(0, 2**32 - 1))
def test_votes_in_blocks_are_the_reference(library, seed):
    with mock.patch.object(kernels, "CACHE", 1):
        law_votes_are_the_reference(LIBRARIES[library], seed)


def law_means_of_equals_are_the_reference(variant, seed):
    args = arguments("mean_of_equals", np.random.default_rng(seed), True)
    want = call(kernels.mean_of_equals.reference, STRICT, args, np.float64)
    assert_same(call(kernels.mean_of_equals, variant, args, np.float64)[0], want[0])


def law_rows_are_sorted(variant, seed):
    x = arguments("falling", np.random.default_rng(seed), False)[0]
    assert_same(call(kernels.falling, variant, (x,), np.float64)[0], -np.sort(-x, axis=1))


def law_infinity_is_told_from_a_large_sum(variant, seed):
    args = arguments("finite", np.random.default_rng(seed), False)
    assert bool(call(kernels.finite, variant, args, np.float32)[0]) == bool(np.isfinite(args[0]).all())


# Derivatives (torch) ---------------------------------------------------------------------------------------------


def tensors(seed, batch=3, n=9, dim=4):
    rng = np.random.default_rng(seed)
    z, bank = (torch.tensor(rng.standard_normal(shape)) for shape in ((batch, dim), (n, dim)))
    return z.requires_grad_(), bank, torch.tensor(rng.integers(0, n, (batch, 5)))


@pytest.mark.parametrize("budget", [1, 2**20])
@pytest.mark.parametrize("seed", range(3))
def test_derivative_of_nearest(seed, budget):
    z, bank, _ = tensors(seed)
    assert torch.autograd.gradcheck(lambda z: kernels.nearest(z, bank, 4, budget)[0], (z,))
    assert torch.autograd.gradgradcheck(lambda z: kernels.nearest(z, bank, 4, budget)[0] ** 2, (z,))


@pytest.mark.parametrize("seed", range(3))
def test_derivative_of_scores_at(seed):
    z, bank, indices = tensors(seed)
    assert torch.autograd.gradcheck(lambda z: kernels.scores_at(z, bank, indices), (z,))
    assert torch.autograd.gradgradcheck(lambda z: kernels.scores_at(z, bank, indices) ** 2, (z,))


@pytest.mark.parametrize("seed", range(3))
def test_derivative_of_weighted_rows(seed):
    _, bank, indices = tensors(seed)
    weights = torch.randn(indices.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.autograd.gradcheck(lambda w: kernels.weighted_rows(w, bank, indices), (weights.requires_grad_(),))


@pytest.mark.parametrize("budget", [1, 2**20])
@pytest.mark.parametrize("seed", range(3))
def test_derivative_of_softmax_mean(seed, budget):
    z, bank, _ = tensors(seed)
    assert torch.autograd.gradcheck(lambda z: kernels.softmax_mean(z, bank, 0.5, budget)[0], (z,))


def test_second_derivative_of_softmax_mean_is_right_or_refused():
    z, bank, _ = tensors(0)
    (first,) = torch.autograd.grad((kernels.softmax_mean(z, bank, 0.5)[0] ** 2).sum(), z, create_graph=True)
    try:
        (second,) = torch.autograd.grad(first.sum(), z)
    except RuntimeError:
        return
    (plain,) = torch.autograd.grad((torch.logsumexp(z @ bank.T / 0.5, dim=1) ** 2).sum(), z, create_graph=True)
    (want,) = torch.autograd.grad(plain.sum(), z)
    assert_close(second.numpy(), want.numpy(), 1e-9, 1.0)


# Autocast (torch) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, library in OVERRIDES if library == "torch"])
def test_kernels_keep_full_precision_under_autocast(name):
    args = arguments(name, np.random.default_rng(3), integers=False)
    with torch.autocast("cpu", torch.bfloat16):
        got = call(KERNELS[name], TORCH, args, np.float32)
    for x, y in zip(got, call(KERNELS[name], TORCH, args, np.float32), strict=True):
        assert_same(x, y)


def scores(there):
    return la_core.nearest(there.z, there.bank, there.n_background)


def update(there):
    return (la_core.update(there.state, there.indices, there.z).bank,)


def clustering(there):
    result = la_core.cluster(there.bank, n_clusters=min(3, there.bank.shape[0]), n_clusterings=2, seed=0)
    return result.labels, result.inertia, *result.centroids


def aggregation(there):
    return la_core.local_aggregation_and_cotangent(there.z, there.state, there.indices, **there.settings)


def discrimination(there):
    return la_core.instance_discrimination_and_cotangent(
        there.z, there.bank, there.indices, temperature=there.temperature
    )


def estimation(there):
    return la_core.instance_discrimination_and_cotangent(
        there.z, there.bank, there.indices, temperature=there.temperature, noise=there.noise
    )


@pytest.mark.parametrize("function", [scores, update, clustering, aggregation, discrimination, estimation])
@given(case=cases())
def test_public_functions_keep_full_precision_under_autocast(function, case):
    case = case.astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = function(case.on(TORCH))
    for x, y in zip(got, function(case.on(TORCH)), strict=True):
        assert_same(x.numpy(), y.numpy())


def test_native_gradient_keeps_full_precision_under_autocast():
    case = make_case(0).astype(np.float32)

    def gradient():
        there = case.on(TORCH)
        z = there.z.requires_grad_()
        la_core.local_aggregation(z, there.state, there.indices, **case.settings).mean().backward()
        return z.grad.numpy()

    with torch.autocast("cpu", torch.bfloat16):
        got = gradient()
    assert_same(got, gradient())
