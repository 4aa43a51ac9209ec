"""Laws of the bank. Functions named ``law_`` are shared with test_planted_bugs.py."""

from dataclasses import replace

import array_api_strict
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import cases, make_case, unit_rows
from variants import ACROSS, DEVICE1, READONLY, assert_close, assert_same, every_variant

import la_core
from la_core import kernels

every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def updated(variant, case):
    """The new bank, on the host."""
    there = case.on(variant)
    return variant.to_host(la_core.update(there.state, there.indices, there.z, mixing=case.mixing).bank)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def expected(case):
    """Row by row: the mean of a sample's new embeddings, mixed into its old row."""
    bank = case.bank.copy()
    for i in np.unique(case.indices):
        fresh = unit(case.z[case.indices == i]).mean(axis=0)
        bank[i] = unit((1 - case.mixing) * case.bank[i] + case.mixing * fresh)
    return bank


def law_touched_rows_are_unit(variant, case):
    touched = updated(variant, case)[case.indices]
    assert_close(np.linalg.norm(touched, axis=1), np.ones(len(touched)), 4 * np.finfo(case.dtype).eps)


def law_other_rows_keep_their_bits(variant, case):
    others = np.setdiff1d(np.arange(len(case.bank)), case.indices)
    assert_same(updated(variant, case)[others], case.bank[others])


def law_update_is_the_mixed_mean(variant, case):
    want = expected(case.astype(np.float64))
    assert_close(updated(variant, case), want, ACROSS[case.dtype], 1.0)


@every_variant
@every_dtype
@given(case=cases())
def test_touched_rows_are_unit(variant, dtype, case):
    law_touched_rows_are_unit(variant, case.astype(dtype))


@every_variant
@every_dtype
@given(case=cases())
def test_other_rows_keep_their_bits(variant, dtype, case):
    law_other_rows_keep_their_bits(variant, case.astype(dtype))


@every_variant
@every_dtype
@given(case=cases())
def test_update_is_the_mixed_mean(variant, dtype, case):
    law_update_is_the_mixed_mean(variant, case.astype(dtype))


@every_variant
@given(case=cases(mixing=0.0))
def test_mixing_nothing_keeps_the_rows(variant, case):
    assert_close(updated(variant, case), case.bank, 1e-15, 1.0)


@every_variant
@given(case=cases(mixing=1.0, batch=1))
def test_mixing_everything_takes_the_embedding(variant, case):
    assert_close(updated(variant, case)[case.indices], unit(case.z), 1e-15, 1.0)


@every_variant
@given(case=cases(batch=5, n=2), seed=st.integers(0, 99))
def test_order_of_the_batch_does_not_matter(variant, case, seed):
    """To rounding (tier 1, 1e-12), not to the bit: a sum over duplicates runs in the order of the batch."""
    order = np.random.default_rng(seed).permutation(len(case.z))
    moved = replace(case, indices=case.indices[order], z=case.z[order])
    assert_close(updated(variant, moved), updated(variant, case), 1e-12, 1.0)


@every_variant
@pytest.mark.parametrize("mixing", [0.25, 0.5, 1.0])
def test_a_sample_seen_twice_with_one_embedding_counts_once(variant, mixing):
    case = make_case(5, batch=2, mixing=mixing)
    once = replace(case, indices=case.indices[:1], z=case.z[:1])
    twice = replace(case, indices=case.indices[[0, 0]], z=case.z[[0, 0]])
    assert_close(updated(variant, twice), updated(variant, once), 1e-15, 1.0)


@every_variant
def test_old_row_stays_where_old_and_new_cancel(variant):
    bank = np.eye(4)
    case = replace(make_case(0), bank=bank, indices=np.array([2, 0]), z=np.array([-3 * bank[2], bank[1]]))
    got = updated(variant, case)
    assert_same(got[1:], bank[1:])
    assert_close(got[0], np.array([1, 1, 0, 0]) / np.sqrt(2), 1e-15)


@every_variant
def test_old_row_stays_where_two_views_cancel(variant):
    bank = np.eye(4)
    case = replace(make_case(0), bank=bank, indices=np.array([1, 1]), z=np.array([bank[0], -bank[0]]), mixing=1.0)
    assert_same(updated(variant, case), bank)


@every_variant
@pytest.mark.parametrize("mixing", [0.5, 1.0])
def test_old_row_stays_where_the_embedding_is_zero(variant, mixing):
    case = make_case(1, mixing=mixing)
    assert_close(updated(variant, replace(case, z=0 * case.z)), case.bank, 1e-15, 1.0)


@given(case=cases())
def test_read_only_numpy_bank_is_copied(case):
    there = case.on(READONLY)
    new = la_core.update(there.state, there.indices, there.z, mixing=case.mixing).bank
    assert_same(there.bank, case.bank)
    assert_close(new, expected(case), 1e-12, 1.0)


@every_variant
def test_update_keeps_the_labels_and_does_not_touch_the_batch(variant):
    case = make_case(2)
    there = case.on(variant)
    state = la_core.update(there.state, there.indices, there.z)
    assert state.labels is there.labels
    assert_same(variant.to_host(there.z), case.z)
    assert_same(variant.to_host(there.indices), case.indices)


@every_variant
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@every_dtype
def test_unit(variant, scale, dtype):
    x = (scale * unit_rows(np.random.default_rng(0), 3, 4, 7)).astype(dtype)
    x[1, 2] = 0
    got = variant.to_host(la_core.unit(variant.asarray(x)))
    assert got.dtype == dtype
    length = np.linalg.norm(got, axis=-1)
    want = np.ones((3, 4))
    want[1, 2] = 0
    assert_close(length, want, 4 * np.finfo(dtype).eps)
    assert_close(got * np.linalg.norm(x, axis=-1, keepdims=True), x, 8 * np.finfo(dtype).eps)


def test_unit_of_zero_has_zero_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    la_core.unit(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))
    assert torch.equal(kernels.inverse_norm(x.detach()), torch.zeros(2, 1))


def test_random_rows():
    rows = la_core.random_rows(500, 16, seed=3)
    assert rows.dtype == np.float32
    assert_close(np.linalg.norm(rows, axis=1), np.ones(500), 5e-7)
    assert_same(la_core.random_rows(500, 16, seed=3), rows)
    assert not np.array_equal(la_core.random_rows(500, 16, seed=4), rows)
    assert np.linalg.norm(rows.mean(axis=0)) < 0.15  # expected 1 / sqrt(500) = 0.045


# What comes in goes out: library, device, dtype ------------------------------------------------------------------

BANK, Z, INT, BOOL = "bank", "z", "integral", "bool"


def knn(c, v):
    return [la_core.evaluate.knn(c.bank, v.asarray(np.arange(c.bank.shape[0]) % 3), c.z, k=5)]


def clustering(c, v):
    result = la_core.cluster(c.bank, n_clusters=4, n_clusterings=2, seed=0)
    return [result.labels, result.inertia, *result.centroids]


PUBLIC = {
    "unit": (lambda c, v: [la_core.unit(c.z)], [Z]),
    "update": (lambda c, v: [la_core.update(c.state, c.indices, c.z).bank], [BANK]),
    "nearest": (lambda c, v: la_core.nearest(c.z, c.bank, 3), [BANK, INT]),
    "close": (lambda c, v: [la_core.close(c.labels, c.indices, c.noise)], [BOOL]),
    "cluster": (clustering, [INT, BANK, BANK, BANK]),
    "knn": (knn, [INT]),
    "local_aggregation": (
        lambda c, v: [la_core.local_aggregation(c.z, c.state, c.indices, **c.settings)],
        [BANK],
    ),
    "local_aggregation_and_cotangent": (
        lambda c, v: la_core.local_aggregation_and_cotangent(c.z, c.state, c.indices, **c.settings),
        [BANK, Z],
    ),
    "instance_discrimination": (
        lambda c, v: [la_core.instance_discrimination(c.z, c.bank, c.indices, temperature=0.1)],
        [BANK],
    ),
    "instance_discrimination by noise": (
        lambda c, v: [la_core.instance_discrimination(c.z, c.bank, c.indices, temperature=0.1, noise=c.noise)],
        [BANK],
    ),
    "instance_discrimination_and_cotangent": (
        lambda c, v: la_core.instance_discrimination_and_cotangent(c.z, c.bank, c.indices, temperature=0.1),
        [BANK, Z],
    ),
    "instance_discrimination_and_cotangent by noise": (
        lambda c, v: la_core.instance_discrimination_and_cotangent(
            c.z, c.bank, c.indices, temperature=0.1, noise=c.noise
        ),
        [BANK, Z],
    ),
}


@every_variant
@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("ints", [np.int64, np.int32])
@pytest.mark.parametrize(
    ("bank_dtype", "z_dtype"), [(np.float64, np.float64), (np.float32, np.float32), (np.float64, np.float32)]
)
def test_library_device_and_dtype_are_kept(variant, name, ints, bank_dtype, z_dtype):
    host = make_case(7, n=12)
    host = replace(
        host,
        bank=host.bank.astype(bank_dtype),
        z=host.z.astype(z_dtype),
        **{key: getattr(host, key).astype(ints) for key in ("indices", "labels", "noise")},
    )
    there = host.on(variant)
    call, kinds = PUBLIC[name]
    results = list(call(there, variant))
    assert len(results) == len(kinds)
    for x, kind in zip(results, kinds, strict=True):
        assert type(x) is type(there.z)
        assert x.device == there.z.device
        dtype = variant.to_host(x).dtype
        if kind in (INT, BOOL):
            assert np.isdtype(dtype, kind)
        else:
            assert dtype == (bank_dtype if kind == BANK else z_dtype)


def test_the_strict_variants_are_strict():
    """The oracle of every other test: what the standard leaves out must fail here, or device bugs pass unseen."""
    x = array_api_strict.asarray([1.0, 2.0])
    with pytest.raises(RuntimeError, match="boolean_indexing"):
        x[x > 1]
    with pytest.raises(RuntimeError, match="data-dependent"):
        array_api_strict.nonzero(x)
    with pytest.raises(AttributeError, match="extension"):
        _ = array_api_strict.linalg
    with pytest.raises(ValueError, match="different devices"):
        x + DEVICE1.asarray(np.ones(2))
