"""Laws of k-means over the bank. Functions named ``law_`` are shared with test_planted_bugs.py."""

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import integer_rows, unit_rows
from variants import ACROSS, EXACT, assert_close, assert_same, every_variant

import la_core
from la_core import clusters, tiles

every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32])
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 3, 10, 40])
shares = st.sampled_from([0.0, 0.2, 0.5, 1.0])


def run(variant, bank, **options):
    """Labels (H, N), inertia (H,), H centroids, H histories, on the host."""
    result = la_core.cluster(variant.asarray(bank), **options)
    centroids = tuple(variant.to_host(c) for c in result.centroids)
    return variant.to_host(result.labels), variant.to_host(result.inertia), centroids, result.history


def rows(seed, n, dim=4):
    return unit_rows(np.random.default_rng(seed), n, dim)


def size(n, share):
    return max(1, round(share * n))


def law_every_cluster_is_used(variant, seed, n=40, m=8):
    """Copies of rows leave centroids without rows; those are put where they are needed."""
    bank = integer_rows(seed, n, 3).astype(np.float64)
    m = min(m, len(np.unique(bank, axis=0)))
    labels, *_ = run(variant, bank, n_clusters=m, n_clusterings=3, seed=seed % 7, n_iter=60, tolerance=0.0)
    for row in labels:
        assert_same(np.unique(row), np.arange(m, dtype=np.int32))


def law_inertia_is_the_sum_of_squares(variant, seed, n=40, m=8, dtype=np.float64):
    bank = rows(seed, n).astype(dtype)
    labels, inertia, centroids, history = run(variant, bank, n_clusters=m, n_clusterings=2, seed=3)
    for h in range(2):
        want = np.sum((bank - centroids[h][labels[h]]).astype(np.float64) ** 2)
        assert_close(inertia[h], want, ACROSS[np.dtype(dtype)], n)
        assert_close(history[h][-1], inertia[h], 1e-7)


def law_every_row_is_with_its_nearest_centroid(variant, seed, n=40, m=8, dtype=np.float64):
    bank = rows(seed, n).astype(dtype)
    labels, _, centroids, _ = run(variant, bank, n_clusters=m, seed=3)
    squares = np.sum((bank[:, None, :] - centroids[0][None]).astype(np.float64) ** 2, axis=2)
    mine = np.take_along_axis(squares, labels[0][:, None], axis=1)[:, 0]
    assert_close(mine, squares.min(axis=1), ACROSS[np.dtype(dtype)], 1.0)


def law_centroids_are_means_at_the_fixed_point(variant, seed, n=40, m=8):
    bank = rows(seed, n)
    labels, _, centroids, history = run(variant, bank, n_clusters=m, seed=3, n_iter=100, tolerance=0.0)
    assert len(history[0]) < 101
    want = np.stack([bank[labels[0] == j].mean(axis=0) for j in range(m)])
    assert_close(centroids[0], want, EXACT, 1.0)


@every_variant
@given(seed=seeds, n=sizes, share=shares)
def test_centroids_are_means_at_the_fixed_point(variant, seed, n, share):
    law_centroids_are_means_at_the_fixed_point(variant, seed, n, size(n, share))


@every_variant
@every_dtype
@given(seed=seeds, n=sizes, share=shares)
def test_inertia_never_rises(variant, dtype, seed, n, share):
    bank = rows(seed, n).astype(dtype)
    *_, history = run(variant, bank, n_clusters=size(n, share), n_clusterings=2, seed=1)
    for line in history:
        assert all(after <= before for before, after in pairwise(line))


@every_variant
@every_dtype
@given(seed=seeds, n=sizes, share=shares)
def test_inertia_is_the_sum_of_squares(variant, dtype, seed, n, share):
    law_inertia_is_the_sum_of_squares(variant, seed, n, size(n, share), dtype)


@every_variant
@every_dtype
@given(seed=seeds, n=sizes, share=shares)
def test_every_row_is_with_its_nearest_centroid(variant, dtype, seed, n, share):
    law_every_row_is_with_its_nearest_centroid(variant, seed, n, size(n, share), dtype)


@every_variant
@given(seed=seeds, m=st.sampled_from([2, 8, 20]))
def test_every_cluster_is_used(variant, seed, m):
    law_every_cluster_is_used(variant, seed, m=m)


@every_variant
@given(seed=seeds)
def test_a_seed_repeats_itself_to_the_bit(variant, seed):
    bank = rows(0, 40)
    options = {"n_clusters": 5, "n_clusterings": 3, "seed": seed}
    labels, inertia, centroids, history = run(variant, bank, **options)
    again = run(variant, bank, **options)
    assert_same(again[0], labels)
    assert_same(again[1], inertia)
    for got, want in zip(again[2], centroids, strict=True):
        assert_same(got, want)
    assert again[3] == history


@every_variant
@given(seed=seeds)
def test_the_first_of_ten_is_the_only_one_of_one(variant, seed):
    bank = rows(1, 30)
    ten, one = (run(variant, bank, n_clusters=4, n_clusterings=h, seed=seed) for h in (10, 1))
    assert_same(ten[0][:1], one[0])
    assert_same(ten[1][:1], one[1])
    assert_same(ten[2][0], one[2][0])
    assert ten[3][0] == one[3][0]


@every_variant
def test_clusterings_and_seeds_differ(variant):
    bank = rows(2, 60)
    labels, *_ = run(variant, bank, n_clusters=12, n_clusterings=4, seed=0)
    other, *_ = run(variant, bank, n_clusters=12, n_clusterings=4, seed=1)
    partitions = [tuple((row[:, None] == row[None, :]).ravel()) for row in (*labels, *other)]
    assert len(set(partitions)) == 8


@every_variant
def test_each_clustering_has_its_own_number_of_clusters(variant):
    labels, inertia, centroids, history = run(variant, rows(3, 30), n_clusters=[2, 7, 30], n_clusterings=3, seed=0)
    assert [c.shape for c in centroids] == [(2, 4), (7, 4), (30, 4)]
    assert [len(np.unique(row)) for row in labels] == [2, 7, 30]
    assert labels.shape == (3, 30)
    assert inertia.shape == (3,)
    assert len(history) == 3


@every_variant
@given(seed=seeds, n=sizes)
def test_as_many_clusters_as_distinct_rows_leave_nothing(variant, seed, n):
    labels, inertia, *_ = run(variant, rows(seed, n), n_clusters=n, seed=0)
    assert_close(inertia, np.zeros(1), 1e-14, n)
    assert len(np.unique(labels)) == n


@every_variant
@given(seed=seeds, n=sizes)
def test_one_cluster_is_the_mean(variant, seed, n):
    bank = rows(seed, n)
    labels, _, centroids, _ = run(variant, bank, n_clusters=1, seed=0)
    assert np.all(labels == 0)
    assert_close(centroids[0][0], bank.mean(axis=0), 1e-12, 1.0)


@every_variant
def test_iteration_stops_early(variant):
    bank = rows(4, 60)
    long, short, loose = (
        run(variant, bank, n_clusters=6, seed=0, **({"n_iter": 200} | options))[3][0]
        for options in ({"tolerance": 0.0}, {"n_iter": 2}, {"tolerance": 0.2})
    )
    assert len(long) < 201
    assert len(short) == 3
    assert short == long[:3]
    assert len(loose) < len(long)
    assert loose == long[: len(loose)]
    assert loose[-1] <= 1.2 * long[-1]


@every_variant
@given(seed=seeds, tolerance=st.sampled_from([0.01, 0.05, 0.2]))
def test_a_clustering_stops_when_little_can_be_expected(variant, seed, tolerance):
    """By the inertia about the means of its own rows, which is known before the next assignment."""
    bank = rows(seed, 60)
    told = []

    def spy(history, left):
        told.append((list(history), left))
        return to_come(history, left)

    to_come = clusters.to_come
    with mock.patch.object(clusters, "to_come", spy):
        labels, _, _, (history,) = run(variant, bank, n_clusters=6, seed=0, tolerance=tolerance, n_iter=20)
    assume(len(np.unique(labels)) == 6)
    means = np.stack([bank[labels[0] == j].mean(axis=0) for j in range(6)])
    known, left = told[-1]
    assert_close(known[-1], np.sum((bank - means[labels[0]]) ** 2), 1e-10, 1.0)
    assert len(known) == len(history)
    assert left == 21 - len(known)
    assert [to_come(*seen) <= tolerance * seen[0][-1] for seen in told] == [False] * (len(told) - 1) + [True]


@every_variant
def test_going_on_it_knows_where_it_started(variant):
    """The inertia of the labels that it was given is the first that it compares with."""
    bank = rows(8, 300)
    early, *_ = run(variant, bank, n_clusters=12, seed=0, n_iter=1)
    means = np.stack([bank[early[0] == j].mean(axis=0) for j in range(12)])
    with mock.patch.object(clusters, "to_come", wraps=clusters.to_come) as spy:
        run(variant, bank, n_clusters=12, seed=0, start=variant.asarray(early))
    assert_close(spy.call_args_list[0].args[0][0], np.sum((bank - means[early[0]]) ** 2), 1e-10, 1.0)


def test_what_is_to_come_is_the_sum_of_gains_that_fall():
    """Gains 8 and 4: the next take 3/4 of the one before each."""
    assert clusters.to_come([20.0, 12.0, 8.0], 2) == 4.0 * (0.75 + 0.75**2)
    assert clusters.to_come([20.0, 12.0, 8.0], 0) == 0.0
    assert clusters.to_come([20.0, 20.0], 9) == 0.0


@every_variant
@every_dtype
def test_separated_groups_are_found_alike_by_every_library(variant, dtype):
    """Ids are equal on data with margins. Ten groups on ten axes; a start without one of them is mended."""
    truth = np.arange(80) % 10
    bank = (np.eye(10)[truth] + 0.01 * rows(5, 80, 10)).astype(dtype)
    labels, *_ = run(variant, bank, n_clusters=80, n_clusterings=1, seed=0)
    assert len(np.unique(labels)) == 80
    labels, *_ = run(variant, bank, n_clusters=10, n_clusterings=4, seed=0)
    reference, *_ = la_core.cluster(bank.astype(np.float64), n_clusters=10, n_clusterings=4, seed=0)
    assert_same(labels, reference)


def test_tiles_keep_full_precision_under_autocast():
    torch = pytest.importorskip("torch")
    rng, n = np.random.default_rng(0), 60_000  # more than what NumPy does
    centres = rng.standard_normal((2400, 24))
    rows = centres[rng.integers(0, 2400, n)] + 0.2 * rng.standard_normal((n, 24))
    bank = torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    assert tiles.pay(n, 2400)
    with torch.autocast("cpu", torch.bfloat16):
        inside = la_core.cluster(bank, n_clusters=2400, seed=0, n_iter=3, tolerance=0.0)
    outside = la_core.cluster(bank, n_clusters=2400, seed=0, n_iter=3, tolerance=0.0)
    assert torch.equal(inside.labels, outside.labels)
