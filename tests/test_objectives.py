"""Laws of the two objectives. Functions named ``law_`` are shared with test_planted_bugs.py."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import DECIDED, cases, make_case
from variants import ACROSS, EXACT, NUMPY, TORCH, assert_close, assert_same, every_variant

import la_core
from la_core.objectives import local_aggregation_terms

every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def evaluate(variant, case):
    """Loss (B,), cotangent (B, D) and number of close rows (B,) of Local Aggregation, on the host."""
    there = case.on(variant)
    terms = local_aggregation_terms(there.z, there.state, there.indices, **there.settings)
    return tuple(variant.to_host(x) for x in terms)


def discriminate(variant, case, **options):
    there = case.on(variant)
    options = {name: variant.asarray(x) if name == "noise" else x for name, x in options.items()}
    got = la_core.instance_discrimination_and_cotangent(
        there.z, there.bank, there.indices, temperature=case.temperature, **options
    )
    return tuple(variant.to_host(x) for x in got)


def nce(case, log_z=1.5):
    return {"noise": case.noise, "log_z": log_z}


def loss_scale(case):
    return 1.0 / case.temperature + 1.0


def pull_scale(case):
    """What a cotangent is made of before its parts cancel: 1 / (temperature B ||z||)."""
    return 1.0 / (case.temperature * len(case.z) * np.linalg.norm(case.z, axis=1, keepdims=True))


# Independent references ------------------------------------------------------------------------------------------


def background_and_close(scores, case):
    """Everything compared with everything: masks (B, N)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, : case.n_background]
    background = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(background, order, True, axis=1)
    mine = case.labels[:, case.indices, None]  # (H, B, 1)
    same = (mine == case.labels[:, None, :]) & (mine >= 0)
    near = np.apply_along_axis(lambda agree: DECIDED[case.combine](list(agree)), 0, same)
    if case.combine == "majority":  # close in too few clusterings: undecided
        background &= near | ~same.any(axis=0)
    return background, background & near


def complex_lse(s, mask):
    peak = np.max(np.where(mask, s.real, -np.inf), axis=1, keepdims=True)
    return (peak + np.log(np.sum(np.where(mask, np.exp(np.where(mask, s - peak, 0)), 0), axis=1, keepdims=True)))[:, 0]


def complex_scores(z, case):
    return z / np.sqrt(np.sum(z * z, axis=1, keepdims=True)) @ case.bank.T / case.temperature


def complex_softplus(x):
    return np.where(x.real > 0, x, 0) + np.log1p(np.exp(np.where(x.real > 0, -x, x)))


def complex_local_aggregation(z, case):
    s = complex_scores(z, case)
    background, near = background_and_close(s.real, case)
    loss = np.full(len(z), math.log(case.n_background), dtype=complex)
    some = near.any(axis=1)
    loss[some] = complex_lse(s[some], background[some]) - complex_lse(s[some], near[some])
    return loss


def complex_softmax(z, case):
    s = complex_scores(z, case)
    return complex_lse(s, np.ones(s.shape, dtype=bool)) - s[np.arange(len(z)), case.indices]


def complex_nce(z, case, log_z=1.5):
    s = complex_scores(z, case)
    a = math.log(case.noise.shape[1] / len(case.bank)) + log_z
    row = np.arange(len(z))
    others = complex_softplus(s[row[:, None], case.noise] - a)
    return complex_softplus(a - s[row, case.indices]) + others.sum(axis=1)


def complex_step(objective, case, step=1e-30):
    """Loss, and the derivative of its mean without any cancellation. Rows do not mix: one column moves at a time."""
    columns = []
    for d in range(case.z.shape[1]):
        z = case.z.astype(complex)
        z[:, d] += 1j * step
        columns.append(objective(z, case).imag / step / len(z))
    return objective(case.z.astype(complex), case).real, np.stack(columns, axis=1)


def dense_local_aggregation(z, case):
    """In torch, differentiable, with the (B, N) scores whole."""
    v = z / torch.linalg.vector_norm(z, dim=1, keepdim=True)
    s = v @ torch.tensor(case.bank).T / case.temperature
    background, near = (torch.tensor(mask) for mask in background_and_close(s.detach().numpy(), case))
    some = near.any(dim=1)

    def lse(mask):
        return torch.logsumexp(s[some].masked_fill(~mask[some], -torch.inf), dim=1)

    loss = torch.full((len(z),), math.log(case.n_background), dtype=z.dtype)
    return loss.masked_scatter(some, lse(background) - lse(near))


# Laws of Local Aggregation ---------------------------------------------------------------------------------------


def law_cotangent_is_the_derivative(variant, case):
    loss, cotangent, n_close = evaluate(variant, case)
    want_loss, want = complex_step(complex_local_aggregation, case)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, pull_scale(case))
    assert np.all(cotangent[n_close == 0] == 0)


def law_names_of_clusters_do_not_matter(variant, case, seed=0):
    """Each clustering has its own names: a comparison across clusterings would see them change."""
    rng = np.random.default_rng(seed)
    renamed = np.empty_like(case.labels)
    for h, row in enumerate(case.labels):
        names = rng.permutation(len(case.bank) + 2) + 100 * h
        renamed[h] = np.where(row < 0, -1 - names[row], names[row])
    for got, want in zip(evaluate(variant, replace(case, labels=renamed)), evaluate(variant, case), strict=True):
        assert_same(got, want)


def law_labels_compare_within_one_clustering(variant, case):
    """The same names mean nothing in another clustering: disjoint names and shared ones give one mask."""
    there = case.on(variant)
    _, neighbours = la_core.nearest(there.z, there.bank, case.n_background)
    mask = la_core.close(there.labels, there.indices, neighbours, combine=case.combine)
    want = np.zeros(mask.shape, dtype=bool)
    for (b, j), i in np.ndenumerate(variant.to_host(neighbours)):
        agree = [row[case.indices[b]] == row[i] >= 0 for row in case.labels]
        want[b, j] = DECIDED[case.combine](agree)
    assert_same(variant.to_host(mask), want)


def law_samples_may_be_permuted(variant, case, seed=0):
    order = np.random.default_rng(seed).permutation(len(case.bank))
    moved = replace(case, bank=case.bank[order], labels=case.labels[:, order], indices=np.argsort(order)[case.indices])
    (loss, cotangent, n_close), (want_loss, want, want_close) = evaluate(variant, moved), evaluate(variant, case)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, pull_scale(case))
    assert_same(n_close, want_close)


def law_batch_may_be_permuted(variant, case, seed=0):
    order = np.random.default_rng(seed).permutation(len(case.z))
    moved = replace(case, z=case.z[order], indices=case.indices[order])
    (loss, cotangent, n_close), (want_loss, want, want_close) = evaluate(variant, moved), evaluate(variant, case)
    assert_close(loss, want_loss[order], EXACT, loss_scale(case))
    assert_close(cotangent, want[order], EXACT, pull_scale(case)[order])
    assert_same(n_close, want_close[order])


def law_rotations_do_not_matter(variant, case, seed=0):
    dim = case.bank.shape[1]
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    turned = replace(case, bank=case.bank @ turn, z=case.z @ turn)
    (loss, cotangent, _), (want_loss, want, _) = evaluate(variant, turned), evaluate(variant, case)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want @ turn, EXACT, pull_scale(case))


def law_length_of_z_does_not_matter(variant, case):
    (loss, cotangent, _), (want_loss, want, _) = (
        evaluate(variant, replace(case, z=7.0 * case.z)),
        evaluate(variant, case),
    )
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(7.0 * cotangent, want, EXACT, pull_scale(case))
    assert_close(np.sum(cotangent * case.z, axis=1), np.zeros(len(case.z)), EXACT, 1.0 / case.temperature)


@every_variant
@given(case=cases())
def test_cotangent_is_the_derivative(variant, case):
    law_cotangent_is_the_derivative(variant, case)


@every_variant
@given(case=cases(), seed=st.integers(0, 99))
def test_names_of_clusters_do_not_matter(variant, case, seed):
    law_names_of_clusters_do_not_matter(variant, case, seed)


@every_variant
@given(case=cases())
def test_labels_compare_within_one_clustering(variant, case):
    law_labels_compare_within_one_clustering(variant, case)


@every_variant
@given(case=cases(), seed=st.integers(0, 99))
def test_samples_may_be_permuted(variant, case, seed):
    law_samples_may_be_permuted(variant, case, seed)


@every_variant
@given(case=cases(), seed=st.integers(0, 99))
def test_batch_may_be_permuted(variant, case, seed):
    law_batch_may_be_permuted(variant, case, seed)


@every_variant
@given(case=cases(), seed=st.integers(0, 99))
def test_rotations_do_not_matter(variant, case, seed):
    law_rotations_do_not_matter(variant, case, seed)


@every_variant
@given(case=cases())
def test_length_of_z_does_not_matter(variant, case):
    law_length_of_z_does_not_matter(variant, case)


@every_variant
@every_dtype
@given(case=cases())
def test_libraries_agree(variant, dtype, case):
    """Tier 2: against the float64 complex reference of the very numbers that the library was given."""
    case = case.astype(dtype)
    tolerance = ACROSS[case.dtype]
    loss, cotangent, _ = evaluate(variant, case)
    want_loss, want = complex_step(complex_local_aggregation, case.astype(np.float64))
    assert loss.dtype == cotangent.dtype == dtype
    assert_close(loss, want_loss, tolerance, loss_scale(case))
    assert_close(cotangent, want, tolerance * loss_scale(case), pull_scale(case))


@given(case=cases())
def test_cotangent_is_torch_autograd_of_a_dense_reference(case):
    loss, cotangent, _ = evaluate(TORCH, case)
    z = torch.tensor(case.z, requires_grad=True)
    dense = dense_local_aggregation(z, case)
    if dense.requires_grad:
        dense.mean().backward()
    assert_close(loss, dense.detach().numpy(), EXACT, loss_scale(case))
    assert_close(cotangent, np.zeros_like(case.z) if z.grad is None else z.grad.numpy(), EXACT, pull_scale(case))


@given(case=cases())
def test_plain_function_is_natively_differentiable(case):
    there = case.on(TORCH)
    z = there.z.requires_grad_()
    loss = la_core.local_aggregation(z, there.state, there.indices, **case.settings)
    loss.mean().backward()
    want_loss, want, _ = evaluate(TORCH, case)
    assert_same(loss.detach().numpy(), want_loss)
    assert_close(z.grad.numpy(), want, EXACT, pull_scale(case))


@every_variant
@given(case=cases())
def test_three_forms_are_one(variant, case):
    there = case.on(variant)
    args = there.z, there.state, there.indices
    loss, cotangent, _ = evaluate(variant, case)
    assert_same(variant.to_host(la_core.local_aggregation(*args, **case.settings)), loss)
    pair = la_core.local_aggregation_and_cotangent(*args, **case.settings)
    assert_same(variant.to_host(pair[0]), loss)
    assert_same(variant.to_host(pair[1]), cotangent)


@every_variant
@given(case=cases(), budget=st.sampled_from([1, 700, 5000]))
def test_budget_does_not_matter(variant, case, budget):
    there = case.on(variant)
    loss = la_core.local_aggregation(there.z, there.state, there.indices, budget=budget, **case.settings)
    assert_close(variant.to_host(loss), evaluate(variant, case)[0], EXACT, loss_scale(case))


@every_variant
@given(case=cases())
def test_no_close_neighbour_costs_the_log_of_the_background(variant, case):
    alone = replace(case, labels=np.full_like(case.labels, -1))
    loss, cotangent, n_close = evaluate(variant, alone)
    assert np.all(n_close == 0)
    assert_close(loss, np.full(len(case.z), math.log(case.n_background)), 1e-15)
    assert np.all(cotangent == 0)


@every_variant
@given(case=cases())
def test_close_neighbours_that_cover_the_background_cost_nothing(variant, case):
    loss, cotangent, n_close = evaluate(variant, replace(case, labels=np.zeros_like(case.labels)))
    assert np.all(n_close == case.n_background)
    assert np.all(loss == 0)
    assert np.all(cotangent == 0)


@every_variant
@given(case=cases(everything=True))
def test_background_of_everything_is_the_dense_formula(variant, case):
    s = case.z / np.linalg.norm(case.z, axis=1, keepdims=True) @ case.bank.T / case.temperature
    mass = np.exp(s - s.max(axis=1, keepdims=True))
    background, near = background_and_close(s, case)
    loss, _, n_close = evaluate(variant, case)
    assert_same(n_close, near.sum(axis=1, dtype=np.int32))
    mass = mass * background  # the undecided are not in it
    some = near.any(axis=1) & (np.sum(mass * near, axis=1) > 1e-290)
    want = np.log(mass.sum(axis=1)[some]) - np.log(np.sum(mass * near, axis=1)[some])
    assert_close(loss[some], want, EXACT, loss_scale(case))


@every_variant
@given(case=cases(everything=True, kind="generic"))
def test_every_sample_its_own_cluster_is_instance_discrimination(variant, case):
    own = replace(case, labels=np.arange(len(case.bank))[None, :])
    (loss, cotangent, n_close), (want_loss, want) = evaluate(variant, own), discriminate(variant, case)
    assert np.all(n_close == 1)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, pull_scale(case))


@every_variant
@given(case=cases())
def test_more_clusterings_bring_more_to_the_union_and_fewer_to_the_intersection(variant, case):
    one = evaluate(variant, replace(case, labels=case.labels[:1]))[2]
    n = {combine: evaluate(variant, replace(case, combine=combine))[2] for combine in DECIDED}
    assert np.all(n["intersection"] <= one)
    assert np.all(one <= n["union"])
    assert np.all(n["intersection"] <= n["majority"])
    assert np.all(n["majority"] <= n["union"])


@every_variant
@given(case=cases())
def test_zero_row_is_finite_and_has_no_gradient(variant, case):
    zeroed = replace(case, z=np.where(np.arange(len(case.z))[:, None] == 0, 0.0, case.z))
    for loss, cotangent in (
        evaluate(variant, zeroed)[:2],
        discriminate(variant, zeroed),
        discriminate(variant, zeroed, **nce(case)),
    ):
        assert np.all(np.isfinite(loss))
        assert np.all(np.isfinite(cotangent))
        assert np.all(cotangent[0] == 0)


@given(case=cases())
def test_zero_row_has_no_gradient_natively(case):
    there = replace(case, z=np.zeros_like(case.z)).on(TORCH)
    z = there.z.requires_grad_()
    la_core.local_aggregation(z, there.state, there.indices, **case.settings).mean().backward()
    assert np.all(z.grad.numpy() == 0)


@every_variant
@given(case=cases(temperature=0.005, everything=True))
def test_small_temperature_is_finite_where_close_mass_underflows(variant, case):
    """Close rows opposite to z: their softmax mass is exp(-400), zero in float32."""
    far = replace(case, z=-1e-2 * case.bank[case.indices], labels=np.arange(len(case.bank))[None, :])
    loss, cotangent, n_close = evaluate(variant, far.astype(np.float32))
    assert np.all(n_close == 1)
    assert np.all(np.isfinite(loss))
    assert np.all(np.isfinite(cotangent))
    want, _ = complex_step(complex_local_aggregation, far)
    assert_close(loss, want, ACROSS[np.dtype(np.float32)], loss_scale(case))


@pytest.mark.parametrize(
    ("variant", "half"),
    [(NUMPY, np.float16), (TORCH, torch.float16), (TORCH, torch.bfloat16)],
    ids=["numpy-float16", "torch-float16", "torch-bfloat16"],
)
@given(case=cases())
def test_half_precision_embeddings(variant, half, case):
    case = replace(case, z=case.z / np.linalg.norm(case.z, axis=1, keepdims=True)).astype(np.float32)
    there = case.on(variant)
    z = there.z.to(half) if variant is TORCH else there.z.astype(half)
    exact = z.float() if variant is TORCH else z.astype(np.float32)
    options = {"temperature": case.temperature}
    for objective, state, settings in (
        (la_core.local_aggregation_and_cotangent, there.state, case.settings),
        (la_core.instance_discrimination_and_cotangent, there.bank, options),
        (la_core.instance_discrimination_and_cotangent, there.bank, {**options, "noise": there.noise}),
    ):
        loss, cotangent = objective(z, state, there.indices, **settings)
        want_loss, want = objective(exact, state, there.indices, **settings)
        assert cotangent.dtype == half
        assert loss.dtype == there.bank.dtype
        assert_same(variant.to_host(loss), variant.to_host(want_loss))
        cotangent = variant.to_host(cotangent.float() if variant is TORCH else cotangent)
        assert np.all(np.isfinite(cotangent))
        assert_close(cotangent, variant.to_host(want), 2.0**-8, scale=1e-4)


@every_variant
@every_dtype
def test_settings_may_be_numpy_scalars(variant, dtype):
    case = make_case(3).astype(dtype)
    scalars = replace(case, n_background=np.int64(case.n_background), temperature=np.float64(case.temperature))
    for got, want in zip(evaluate(variant, scalars), evaluate(variant, case), strict=True):
        assert_same(got, want)
    for options in ({}, {"noise": case.noise, "log_z": np.float64(1.5)}):
        for got, want in zip(
            discriminate(variant, scalars, **options), discriminate(variant, case, **options), strict=True
        ):
            assert_same(got, want)


# Laws of Instance Discrimination ---------------------------------------------------------------------------------


@every_variant
@given(case=cases())
def test_softmax_cotangent_is_the_derivative(variant, case):
    loss, cotangent = discriminate(variant, case)
    want_loss, want = complex_step(complex_softmax, case)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, pull_scale(case))


@every_variant
@given(case=cases())
def test_nce_cotangent_is_the_derivative(variant, case):
    loss, cotangent = discriminate(variant, case, **nce(case))
    want_loss, want = complex_step(complex_nce, case)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, (1 + case.noise.shape[1]) * pull_scale(case))


@pytest.mark.parametrize("form", ["softmax", "nce"])
@given(case=cases())
def test_plain_instance_discrimination_is_natively_differentiable(form, case):
    there = case.on(TORCH)
    options = {} if form == "softmax" else {"noise": there.noise, "log_z": 1.5}
    z = there.z.requires_grad_()
    loss = la_core.instance_discrimination(z, there.bank, there.indices, temperature=case.temperature, **options)
    loss.mean().backward()
    want_loss, want = complex_step(complex_softmax if form == "softmax" else complex_nce, case)
    assert_close(loss.detach().numpy(), want_loss, EXACT, loss_scale(case))
    assert_close(z.grad.numpy(), want, EXACT, (1 + case.noise.shape[1]) * pull_scale(case))


@every_variant
@given(case=cases(), budget=st.sampled_from([1, 700, 5000]))
def test_softmax_does_not_depend_on_the_budget(variant, case, budget):
    (loss, cotangent), (want_loss, want) = discriminate(variant, case, budget=budget), discriminate(variant, case)
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, pull_scale(case))


@every_variant
@given(case=cases())
def test_noise_may_be_permuted(variant, case):
    (loss, cotangent), (want_loss, want) = (
        discriminate(variant, c, **nce(c)) for c in (replace(case, noise=case.noise[:, ::-1]), case)
    )
    assert_close(loss, want_loss, EXACT, loss_scale(case))
    assert_close(cotangent, want, EXACT, (1 + case.noise.shape[1]) * pull_scale(case))


@every_variant
@given(case=cases())
def test_log_z_is_that_of_a_uniform_bank_by_default(variant, case):
    log_z = la_core.log_normaliser(*case.bank.shape, case.temperature)
    for got, want in zip(
        discriminate(variant, case, noise=case.noise), discriminate(variant, case, **nce(case, log_z)), strict=True
    ):
        assert_same(got, want)


TABLE = {  # Z / n, algorithm.md section 5
    0.05: ("229.7", "19.94", "4.685", "2.179", "1.478"),
    0.07: ("18.99", "4.750", "2.209", "1.489", "1.221"),
    0.10: ("4.472", "2.165", "1.476", "1.216", "1.103"),
    0.20: ("1.472", "1.215", "1.103", "1.050", "1.025"),
}


@pytest.mark.parametrize("temperature", TABLE)
def test_normaliser_of_the_published_table(temperature):
    for dim, printed in zip((32, 64, 128, 256, 512), TABLE[temperature], strict=True):
        got = math.exp(la_core.log_normaliser(1000, dim, temperature)) / 1000
        last_digit = 10.0 ** -len(printed.partition(".")[2])
        assert abs(got - float(printed)) <= last_digit, (dim, temperature, got)


@given(
    n=st.sampled_from([1, 1000, 10**7]),
    dim=st.sampled_from([2, 4, 16, 128, 2048]),
    temperature=st.sampled_from([0.005, 0.03, 0.07, 0.5, 10.0]),
)
def test_normaliser_is_the_mean_over_the_sphere(n, dim, temperature):
    """Angles between uniform directions have density sin^(dim - 2): smooth and periodic for even dim, where the
    midpoint rule is exact to rounding.
    """
    angle = (np.arange(20_000) + 0.5) * (math.pi / 20_000)
    density = (dim - 2) * np.log(np.sin(angle))
    tilted = density + np.cos(angle) / temperature

    def lse(x):
        return x.max() + math.log(math.fsum(np.exp(x - x.max())))

    assert_close(la_core.log_normaliser(n, dim, temperature), math.log(n) + lse(tilted) - lse(density), 1e-10, 1.0)


@pytest.mark.parametrize("x", [0.1, 2.0, 50.0])
def test_normaliser_on_the_line_and_in_space(x):
    assert_close(la_core.log_normaliser(1, 1, 1 / x), math.log(math.cosh(x)), EXACT, 1.0)
    assert_close(la_core.log_normaliser(1, 3, 1 / x), math.log(math.sinh(x) / x), EXACT, 1.0)
