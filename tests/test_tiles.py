"""Laws of the clustering in tiles, at a size where tiles are small and every path is taken."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import integer_rows, unit_rows
from test_clusters import run
from variants import assert_close, assert_same, every_variant

import la_core
from la_core import tiles
from la_core.errors import RangeError, ShapeError

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 5, 40, 43])


@contextmanager
def small(candidates=3):
    """Tiles of a few rows and a few centroids, for any number of rows, even where few of them are sure."""

    def enough(x, labels, centroids):
        return min(candidates, centroids.shape[0])

    with mock.patch.multiple(tiles, ROWS=4, enough=enough, pay=lambda n, m: True):
        yield


def grouped(seed, n=43, dim=4):
    """Unit rows in groups of about five."""
    rng = np.random.default_rng(seed)
    return unit_rows(rng, max(1, n // 5), dim)[rng.integers(max(1, n // 5), size=n)] + 0.05 * rng.standard_normal(
        (n, dim)
    )


def look(variant, bank, labels, centroids):
    """What the tiles find, and what is certain: labels, squares and sureness, labels and squares, on the host."""
    x, own, c = (variant.asarray(part) for part in (bank, labels, centroids))
    found = (*tiles.near(x, own, c, min(3, len(centroids))), *tiles.assign(x, own, c)[:2])
    return [variant.to_host(part) for part in found]


def any_labels(seed, bank, centroids):
    """Of the nearest centroids, but for some rows at random: as good as labels may be before an iteration."""
    rng = np.random.default_rng(seed)
    labels = squares_of(bank, centroids).argmin(axis=1)
    wrong = rng.random(len(labels)) < rng.choice([0.0, 0.3, 1.0])
    return np.where(wrong, rng.integers(len(centroids), size=len(labels)), labels).astype(np.int32)


def squares_of(bank, centroids):
    return np.sum((bank[:, None, :] - centroids[None]) ** 2, axis=2)


def law_sure_rows_are_right(variant, seed, n=43, m=20):
    bank = grouped(seed, n)
    centroids = grouped(seed + 1, m)
    with small():
        labels, squares, sure, _, _ = look(variant, bank, any_labels(seed, bank, centroids), centroids)
    every = squares_of(bank, centroids)
    assert_close(squares, np.take_along_axis(every, labels[:, None], 1)[:, 0], 1e-12, 1.0)
    assert_close(squares[sure], every.min(axis=1)[sure], 1e-12, 1.0)


def law_every_row_is_with_its_nearest_centroid(variant, seed, n=43, m=20):
    bank, centroids = grouped(seed, n), grouped(seed + 1, m)
    with small():
        *_, labels, squares = look(variant, bank, any_labels(seed, bank, centroids), centroids)
    every = squares_of(bank, centroids)
    assert_close(squares, every.min(axis=1), 1e-12, 1.0)
    assert_close(np.take_along_axis(every, labels[:, None], 1)[:, 0], every.min(axis=1), 1e-12, 1.0)


def law_lists_are_of_the_nearest(variant, seed, m=20, candidates=3):
    """None that was left out is nearer than the farthest that is on the list."""
    centroids = grouped(seed, m)
    of = np.flip(centroids, axis=0)[: max(1, m - 3)].copy()
    found = tiles.neighbours(variant.asarray(of), variant.asarray(centroids), min(candidates, m), 5 * m * 8)
    near, far = map(variant.to_host, found)
    every = squares_of(of, centroids)
    listed = np.take_along_axis(every, near.astype(np.int64), axis=1)
    assert_close(listed.max(axis=1), far[:, 0], 1e-12, 1.0)
    np.put_along_axis(every, near.astype(np.int64), np.inf, axis=1)
    assert np.all(every.min(axis=1) >= far[:, 0] - 1e-12)


@every_variant
@given(seed=seeds, m=sizes, candidates=st.sampled_from([1, 3, 50]))
def test_lists_are_of_the_nearest(variant, seed, m, candidates):
    law_lists_are_of_the_nearest(variant, seed, m, candidates)


@every_variant
@given(seed=seeds, n=sizes, m=sizes)
def test_sure_rows_are_right(variant, seed, n, m):
    law_sure_rows_are_right(variant, seed, n, m)


@every_variant
@given(seed=seeds, n=sizes, m=sizes)
def test_every_row_is_with_its_nearest_centroid(variant, seed, n, m):
    law_every_row_is_with_its_nearest_centroid(variant, seed, n, m)


def law_a_tile_holds_rows_of_one_cluster_and_every_row_is_in_one(variant, seed, n=43, m=5, together=1):
    """Also where clusters have no rows, or one has them all."""
    rng = np.random.default_rng(seed)
    for labels in (rng.integers(m, size=n), np.full(n, m - 1), np.zeros(n, np.int64)):
        with small():
            found = tiles.by_cluster(variant.asarray(labels.astype(np.int32)), m, together)
        rows, cluster, slots = map(variant.to_host, found)
        assert rows.shape == (len(cluster), 4)
        assert len(cluster) % together == 0
        assert_same(rows.reshape(-1)[slots], np.arange(n, dtype=rows.dtype))
        assert_same(cluster[slots // 4], labels.astype(cluster.dtype))
        filled = -(-np.bincount(labels, minlength=m) // 4)
        assert len(cluster) - filled.sum() < together


@every_variant
@given(seed=seeds, n=sizes, m=sizes, together=st.sampled_from([1, 3]))
def test_a_tile_holds_rows_of_one_cluster_and_every_row_is_in_one(variant, seed, n, m, together):
    law_a_tile_holds_rows_of_one_cluster_and_every_row_is_in_one(variant, seed, n, m, together)


@every_variant
def test_on_groups_far_apart_every_row_is_sure(variant):
    """Two clusters in each of eight groups; a tile is compared with three, and the third lies in another group."""
    rng = np.random.default_rng(3)
    group = np.arange(320) % 8
    bank = np.eye(8)[group] + 0.01 * rng.standard_normal((320, 8))
    centroids = np.repeat(np.eye(8), 2, axis=0) + 0.005 * rng.standard_normal((16, 8))
    labels = (2 * group + rng.integers(2, size=320)).astype(np.int32)
    with small():
        *_, sure, _, _ = look(variant, bank, labels, centroids)
    assert sure.all()


@every_variant
@given(seed=seeds, n=sizes, m=st.sampled_from([5, 40]))
def test_a_row_is_sure_of_as_many_as_are_said_to_be_enough(variant, seed, n, m):
    """Groups far apart need those of a group; without groups none is enough; a sample of all rows says so exactly."""
    rng = np.random.default_rng(seed)
    bank, centroids = grouped(seed, n), grouped(seed + 1, m)
    labels = rng.integers(m, size=n).astype(np.int32)
    args = [variant.asarray(part) for part in (bank, labels, centroids)]
    with mock.patch.multiple(tiles, ROWS=1, NEAR=2, WORK=1.0, LISTS=0.5, SAMPLE=n):
        told = tiles.enough(*args)
    own = np.sum((bank - centroids[labels]) ** 2, axis=1)
    needed = np.sum(squares_of(centroids[labels], centroids) <= 4 * own[:, None] + 1e-9, axis=1)
    work = 1 + 0.5 * m / n
    costs = {0: m} | {
        c: work * c + 0.5 * m * m / n + m * np.mean(needed > c) for c in 2 ** np.arange(1, 6) if work * c < m
    }
    assert costs[told] == pytest.approx(min(costs.values()))
    if told:
        with mock.patch.object(tiles, "ROWS", 4):
            _, _, sure = map(variant.to_host, tiles.near(*args, told))
        assert sure.sum() >= np.sum(needed < told) * 0.9


@every_variant
def test_groups_decide_how_many_are_enough(variant):
    """Eight groups far apart with four centroids each: four do; on rows without groups tiles are of no use."""
    rng = np.random.default_rng(3)
    group = np.arange(640) % 8
    bank = np.eye(8)[group] + 0.01 * rng.standard_normal((640, 8))
    centroids = np.repeat(np.eye(8), 4, axis=0) + 0.001 * rng.standard_normal((32, 8))
    labels = (4 * group).astype(np.int32)
    alike = unit_rows(rng, 640, 8)
    with mock.patch.multiple(tiles, ROWS=4, NEAR=2, WORK=2.0, LISTS=1.0):
        assert tiles.enough(*map(variant.asarray, (bank, labels, centroids))) == 4
        assert tiles.enough(*map(variant.asarray, (alike, labels, alike[:32]))) == 0


@every_variant
@given(seed=seeds)
def test_rows_that_are_copies_share_a_centroid_with_room_for_all(variant, seed):
    bank = integer_rows(seed, 60, 2).astype(np.float64)
    distinct = len(np.unique(bank, axis=0))
    with small():
        labels, inertia, *_ = run(variant, bank, n_clusters=distinct, seed=seed % 5, n_iter=60, tolerance=0.0)
    assert len(np.unique(labels)) == distinct
    assert_close(inertia, np.zeros(1), 1e-12, 1.0)


@every_variant
def test_without_structure_every_centroid_is_looked_at(variant):
    """Few rows are sure, so the answer is that of the full product, to the bit."""
    bank = unit_rows(np.random.default_rng(0), 200, 16)
    want = run(variant, bank, n_clusters=40, n_clusterings=2, seed=0)
    with mock.patch.multiple(tiles, ROWS=4, NEAR=3, WORK=1.0, LISTS=0.0, pay=lambda n, m: True):
        found = run(variant, bank, n_clusters=40, n_clusterings=2, seed=0)
    assert_same(found[0], want[0])
    assert_same(found[1], want[1])


@every_variant
@pytest.mark.parametrize("kind", ["hierarchical", "isotropic"])
def test_at_its_own_size_inertia_is_that_of_full_lloyd(variant, kind):
    """Within half a percent of twenty iterations of the full product, from the same rows."""
    rng = np.random.default_rng(0)
    n, m, dim = (16_384, 1024, 24) if variant.name != "strict" else (16_384, 1024, 4)
    bank = unit_rows(rng, n, dim)
    if kind == "hierarchical":
        top, sub = unit_rows(rng, 8, dim), unit_rows(rng, 256, dim)
        chosen = rng.integers(256, size=n)
        bank = top[chosen % 8] + 0.6 * sub[chosen] + 0.3 * bank
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    assert tiles.pay(n, m)
    bank = bank.astype(np.float32)
    _, inertia, *_ = run(variant, bank, n_clusters=m, seed=0)
    with mock.patch.object(tiles, "pay", return_value=False):
        _, full, *_ = run(variant, bank, n_clusters=m, seed=0, tolerance=0.0)
    assert inertia[0] <= 1.005 * full[0]


@every_variant
@given(seed=seeds)
def test_a_clustering_goes_on_from_its_own_labels(variant, seed):
    """It is no worse than where it started, and stays at a fixed point."""
    there = variant.asarray(grouped(seed, 40))
    options = {"n_clusters": 6, "n_clusterings": 2, "seed": 0, "tolerance": 0.0}
    early = la_core.cluster(there, n_iter=1, **options)
    late = la_core.cluster(there, n_iter=100, start=early.labels, **options)
    again = la_core.cluster(there, n_iter=100, start=late.labels, **options)
    assert np.all(variant.to_host(late.inertia) <= variant.to_host(early.inertia) * (1 + 1e-12))
    assert_same(variant.to_host(again.labels), variant.to_host(late.labels))
    assert_close(variant.to_host(again.inertia), variant.to_host(late.inertia), 1e-12)


@every_variant
@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        (np.zeros((2, 10), np.int32), ShapeError, ("start", "3 rows")),
        (np.full((3, 10), 4), RangeError, ("start", "0 to 3")),
        (np.full((3, 10), -1), RangeError, ("start", "0 to 3")),
        (np.zeros((3, 9), np.int32), ShapeError, ("10",)),
    ],
)
def test_labels_that_cannot_start_a_clustering(variant, start, error, words):
    bank = variant.asarray(unit_rows(np.random.default_rng(0), 10, 3))
    with pytest.raises(error) as told:
        la_core.cluster(bank, n_clusters=4, n_clusterings=3, seed=0, start=variant.asarray(start))
    assert all(word in str(told.value) for word in words)
