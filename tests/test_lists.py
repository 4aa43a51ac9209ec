"""Laws of the search through lists. With all of them read it is the exact search."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import unit_rows
from test_planted_bugs import mutated
from variants import NUMPY, assert_close, assert_same, every_variant

import la_core
from la_core import Settings, kernels, lists
from la_core.errors import RangeError, SettingsError
from la_core.views import FeatureView

seeds = st.integers(0, 2**32 - 1)


def made(variant, seed, n=40, m=6, clusterings=2):
    rng = np.random.default_rng(seed)
    bank, z = unit_rows(rng, n, 5), unit_rows(rng, 4, 5)
    labels = rng.integers(-1, m, size=(clusterings, n)).astype(np.int32)
    there = variant.asarray(bank)
    return bank, labels, z, there, lists.lists(there, variant.asarray(labels), m)


def host(variant, found):
    return [variant.to_host(part) for part in found]


def law_lists_hold_the_rows_of_their_cluster(variant, seed):
    bank, labels, _, _, among = made(variant, seed)
    centroids, rows = host(variant, among)
    for h, line in enumerate(labels):
        for j in range(6):
            want = np.flatnonzero(line == j)[: rows.shape[2]]
            assert_same(rows[h, j][rows[h, j] >= 0], want.astype(rows.dtype))
            mean = bank[line == j].mean(axis=0) if (line == j).any() else np.zeros(5)
            assert_close(centroids[h, j], mean, 1e-12, 1.0)


def law_what_is_found_is_the_best_of_what_is_read(variant, seed, probes=2, k=5):
    bank, _, z, there, among = made(variant, seed)
    centroids, rows = host(variant, among)
    scores, indices, valid = host(variant, lists.nearest(variant.asarray(z), there, among, k, probes))
    for i, query in enumerate(z):
        read = set()
        for h in range(2):
            far = np.where(rows[h, :, 0] < 0, np.inf, ((query - centroids[h]) ** 2).sum(axis=1))
            read |= set(rows[h][np.argsort(far)[:probes]].ravel().tolist())
        read = np.array(sorted(read - {-1}))
        best = read[np.argsort(-(bank[read] @ query))[:k]]
        assert set(indices[i][valid[i]].tolist()) == set(best.tolist())
        assert_close(scores[i][valid[i]], bank[indices[i][valid[i]]] @ query, 1e-12, 1.0)


@every_variant
@given(seed=seeds)
def test_lists_hold_the_rows_of_their_cluster(variant, seed):
    law_lists_hold_the_rows_of_their_cluster(variant, seed)


@every_variant
@given(seed=seeds, probes=st.sampled_from([1, 2, 6, 9]), k=st.sampled_from([1, 5, 12]))
def test_what_is_found_is_the_best_of_what_is_read(variant, seed, probes, k):
    law_what_is_found_is_the_best_of_what_is_read(variant, seed, probes, k)


@every_variant
@given(seed=seeds, budget=st.sampled_from([1, 5000, 2**26]))
def test_all_lists_are_the_exact_search(variant, seed, budget):
    rng = np.random.default_rng(seed)
    bank, z = variant.asarray(unit_rows(rng, 40, 5)), variant.asarray(unit_rows(rng, 7, 5))
    labels = variant.asarray(rng.permutation(np.arange(40) % 5)[None, :])
    among = lists.lists(bank, labels, 5)
    found = host(variant, lists.nearest(z, bank, among, 9, 5, budget))
    scores, indices = host(variant, kernels.nearest(z, bank, 9))
    assert found[2].all()
    assert_same(found[1], indices)
    assert_close(found[0], scores, 1e-12, 1.0)
    assert lists.recall(z, bank, among, 9, 5) == 1.0


@every_variant
def test_recall_is_the_share_that_is_met(variant):
    """Two clusters of five; the ten nearest are all, and one list holds half of them."""
    rng = np.random.default_rng(0)
    bank = variant.asarray(unit_rows(rng, 10, 3))
    among = lists.lists(bank, variant.asarray(np.arange(10)[None, :] % 2), 2)
    assert lists.recall(bank, bank, among, 10, 2) == 1.0
    assert lists.recall(bank, bank, among, 10, 1) == 0.5


def test_labels_of_few_bits_make_the_same_lists():
    bank = unit_rows(np.random.default_rng(0), 300, 3)
    labels = np.arange(300)[None, :] % 256
    for x, y in zip(lists.lists(bank, labels, 256), lists.lists(bank, labels.astype(np.uint8), 256), strict=True):
        np.testing.assert_array_equal(x, y)


@every_variant
def test_too_few_lists_are_named(variant):
    bank = variant.asarray(unit_rows(np.random.default_rng(0), 20, 3))
    among = lists.lists(bank, variant.asarray(np.arange(20)[None, :] % 10), 10)
    with pytest.raises(RangeError, match="probes must be at least 3"):
        lists.nearest(bank, bank, among, 12, 2)
    with pytest.raises(RangeError, match="below n_clusters, 9"):
        lists.lists(bank, variant.asarray(np.arange(20)[None, :] % 10), 9)


class AsTheyAre:
    """An encoder that gives a batch back and learns nothing."""

    def apply(self, batch):
        return batch, batch

    def pullback(self, batch):
        return batch, lambda cotangent: None

    def step(self, learning_rate):
        pass

    def weights(self):
        return {}

    def load(self, weights):
        pass

    def training_state(self):
        return {}

    def load_training_state(self, state):
        pass


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("views", [1, 2])
def test_a_run_through_all_lists_is_the_exact_run(name, views):
    """Two clusterings of three clusters: both are read whole, and the losses are the same."""
    pytest.importorskip(name)
    backend = la_core.backend(name)
    data = np.random.default_rng(0).standard_normal((48, 6)).astype(np.float32)
    settings = Settings(epochs=3, warmup_epochs=1, batch_size=16, n_background=9, n_clusters=3, n_clusterings=2,
                        views=views, health_every=0)  # fmt: skip
    view = FeatureView(noise=0.1)

    def history(**options):
        chosen = replace(settings, **options)
        return la_core.train(data, AsTheyAre(), backend=backend, settings=chosen, view=view, progress=False).history

    exact, through = history(), history(search="lists", probes=3)
    for one, other in zip(exact, through, strict=True):
        # A loss is the difference of two logarithms, each rounded to float32; a row that is lost changes it by 1e-3.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5, abs=2e-6)
        assert ("recall" in other) == (other["phase"] != "warm-up")
    assert through[-1]["recall"] == 1.0
    assert "recall" not in exact[-1]
    if views == 1:
        few = history(search="lists", probes=1)
        assert 0.3 < few[-1]["recall"] <= 1.0


def test_lists_hold_four_times_the_background_by_default():
    settings = Settings(n_background=100, n_clusters=50, n_clusterings=2).resolved(1000)
    assert settings.probes == 10
    assert Settings(n_background=900, n_clusters=50, n_clusterings=2).resolved(1000).probes == 50


def test_a_run_that_reads_too_few_lists_does_not_start():
    settings = Settings(n_background=100, n_clusters=50, n_clusterings=2, search="lists", probes=1)
    with pytest.raises(SettingsError, match="probes must be at least 2"):
        settings.resolved(1000)
    replace(settings, probes=2).resolved(1000)


def planted(law):
    for seed in range(12):
        law(NUMPY, seed)


@pytest.mark.parametrize(
    ("function", "before", "after", "law"),
    [
        (lists.lists, "axis=0) - size", "axis=0)", law_lists_hold_the_rows_of_their_cluster),
        (lists.nearest, "- 0.5 * xp.vecdot", "- 0.0 * xp.vecdot", law_what_is_found_is_the_best_of_what_is_read),
        (
            lists.nearest,
            "rows[:, 1:] > xp.clip",
            "rows[:, 1:] >= xp.clip",
            law_what_is_found_is_the_best_of_what_is_read,
        ),
    ],
)
def test_planted_bug_is_caught(monkeypatch, function, before, after, law):
    planted(law)
    monkeypatch.setattr(function, "__code__", mutated(function, before, after))
    with pytest.raises(AssertionError):
        planted(law)
