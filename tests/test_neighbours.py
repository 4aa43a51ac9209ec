"""Laws of the search. Functions named ``law_`` are shared with test_planted_bugs.py."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from strategies import DECIDED, cases, searches, unit_rows
from variants import EXACT, TORCH, assert_close, assert_same, every_variant

import la_core

every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def find(variant, z, bank, k, **options):
    return tuple(variant.to_host(x) for x in la_core.nearest(variant.asarray(z), variant.asarray(bank), k, **options))


def law_nearest_is_exact(variant, search, dtype=np.float64):
    """Integers: the products are exact, so ids are equal on every library, ties included."""
    products = search.z @ search.bank.T
    order = np.stack([np.lexsort((np.arange(len(search.bank)), -row))[: search.k] for row in products])
    scores, indices = find(variant, search.z.astype(dtype), search.bank.astype(dtype), search.k, budget=search.budget)
    assert_same(indices, order)
    assert_same(scores, np.take_along_axis(products, order, axis=1).astype(dtype))


@every_variant
@every_dtype
@given(search=searches())
def test_nearest_is_exact(variant, dtype, search):
    law_nearest_is_exact(variant, search, dtype)


@every_variant
@given(case=cases(kind="generic"), budget=st.sampled_from([1, 300, 4000, 2**20]))
def test_nearest_of_real_vectors(variant, case, budget):
    scores, indices = find(variant, case.z, case.bank, case.n_background, budget=budget)
    products = case.z @ case.bank.T
    size = np.linalg.norm(case.z, axis=1, keepdims=True)
    assert np.all(np.diff(scores, axis=1) <= 0)
    assert_close(scores, np.take_along_axis(products, indices, axis=1), EXACT, size)
    assert_close(scores, -np.sort(-products, axis=1)[:, : case.n_background], EXACT, size)
    assert all(len(set(row)) == case.n_background for row in indices.tolist())


@given(case=cases())
def test_scores_are_differentiable(case):
    there = case.on(TORCH)
    z = there.z.requires_grad_()
    scores, indices = la_core.nearest(z, there.bank, case.n_background)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).reshape(scores.shape)
    (scores * weights).sum().backward()
    want = np.einsum("bk,bkd->bd", weights.numpy(), case.bank[indices.numpy()])
    assert_close(z.grad.numpy(), want, EXACT, case.n_background)


def test_memory_stays_within_the_budget():
    """All scores would be 64 x 20 000 doubles, 10 MB. Beside the budget there is only the answer."""
    rng = np.random.default_rng(0)
    z, bank, budget = unit_rows(rng, 64, 8), unit_rows(rng, 20_000, 8), 2**20
    la_core.nearest(z, bank, 50, budget=budget)
    tracemalloc.start()
    la_core.nearest(z, bank, 50, budget=budget)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < budget + 8 * z.shape[0] * 50 * 16


@every_variant
@pytest.mark.parametrize("combine", DECIDED)
@given(case=cases())
def test_close(variant, combine, case):
    there = case.on(variant)
    mask = variant.to_host(la_core.close(there.labels, there.indices, there.noise, combine=combine))
    want = [
        [DECIDED[combine]([row[i] == row[j] and row[i] >= 0 for row in case.labels]) for j in js]
        for i, js in zip(case.indices, case.noise, strict=True)
    ]
    assert_same(mask, np.array(want))


@every_variant
@given(case=cases())
def test_the_intersection_is_a_subset_of_the_union(variant, case):
    there = case.on(variant)
    args = there.labels, there.indices, there.noise
    union, both = (variant.to_host(la_core.close(*args, combine=how)) for how in ("union", "intersection"))
    assert not np.any(both & ~union)


@every_variant
@given(case=cases())
def test_a_sample_is_close_to_itself_where_it_has_a_cluster(variant, case):
    there = replace(case, noise=case.indices[:, None]).on(variant)
    mask = variant.to_host(la_core.close(there.labels, there.indices, there.noise))
    assert_same(mask[:, 0], np.any(case.labels[:, case.indices] >= 0, axis=0))
