"""The health of a run: each measure against its definition, and warnings that come when they should and not before."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from variants import EXACT, NUMPY, assert_close, every_variant

import la_core
from la_core import Settings, health, train
from la_core.errors import KindError, RangeError, ShapeError
from la_core.health import Health
from la_core.mlp import MLP
from la_core.neighbours import close
from la_core.run import AGGREGATION, WARM_UP, Callback

RNG = np.random.default_rng(0)
N, SETTINGS = 400, Settings(epochs=4, warmup_epochs=2).resolved(400)  # 10 clusters of 40


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def spectrum(variant, bank):
    total, gram = map(variant.to_host, health.moments(variant.asarray(bank)))
    return health.effective_rank(gram), health.mean_similarity(total, gram, len(bank))


# The bank -------------------------------------------------------------------------------------------------------------


@every_variant
@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), dim=st.integers(1, 9))
def test_mean_similarity_is_the_mean_over_all_pairs(variant, seed, n, dim):
    bank = unit(np.random.default_rng(seed).standard_normal((n, dim)))
    pairs = [bank[i] @ bank[j] for i in range(n) for j in range(n) if i != j]
    assert_close(spectrum(variant, bank)[1], np.mean(pairs), EXACT, scale=1.0)


@every_variant
@given(seed=st.integers(0, 2**16), n=st.integers(1, 40), dim=st.integers(1, 9))
def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values(variant, seed, n, dim):
    bank = np.random.default_rng(seed).standard_normal((n, dim))
    p = np.linalg.svd(bank, compute_uv=False)
    p = p[p > 1e-12] / p.sum()
    assert_close(spectrum(variant, bank)[0], np.exp(-np.sum(p * np.log(p))), 1e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_directions_count_one_each_and_the_rest_nothing(rank, dtype):
    turn = np.linalg.qr(RNG.standard_normal((8, 8)))[0]
    bank = (np.eye(8)[np.arange(72) % rank] @ turn).astype(dtype)
    assert spectrum(NUMPY, bank)[0] == pytest.approx(rank, rel=2e-3 if dtype == np.float32 else 1e-6)


def test_one_row_and_no_row_at_all():
    assert spectrum(NUMPY, np.ones((1, 4)))[1] == 1.0
    assert health.effective_rank(np.zeros((3, 3))) == 0.0


# Clusters and close neighbours ----------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("combine", ["union", "intersection", "majority"])
@given(seed=st.integers(0, 2**16), clusterings=st.integers(1, 4), budget=st.sampled_from([1, 5000, 2**26]))
def test_close_sizes_count_the_close_of_the_whole_bank(variant, combine, seed, clusterings, budget):
    rng = np.random.default_rng(seed)
    labels, rows = rng.integers(-1, 5, (clusterings, 30)), rng.integers(0, 30, 7)
    everyone = np.broadcast_to(np.arange(30), (7, 30))
    want = close(labels, rows, everyone, combine=combine).sum(axis=1)
    got = health.close_sizes(variant.asarray(labels), variant.asarray(rows), combine=combine, budget=budget)
    np.testing.assert_array_equal(variant.to_host(got), want)


def test_cluster_sizes_count_what_has_a_cluster_and_clusters_without_anything():
    labels = np.array([[0, 0, 2, -1, 2, 2], [1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(health.cluster_sizes(labels, (4, 2)), [2, 0, 3, 0, 0, 6])
    np.testing.assert_array_equal(health.cluster_sizes(labels, np.int64(3)), [2, 0, 3, 0, 6, 0])
    np.testing.assert_array_equal(health.cluster_sizes(labels), [2, 3, 6])
    np.testing.assert_array_equal(health.cluster_sizes(labels * 10**9), [2, 3, 6])  # whatever they are called


@given(seed=st.integers(0, 2**16), m=st.integers(2, 60))
def test_agreement_is_one_for_equal_labels_and_nothing_above_chance_for_unrelated_ones(seed, m):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, m, (2, 1200))
    renamed = rng.permutation(m)[a]
    facts = dict(zip(("within", "within_chance"), health.agreement([(a, renamed)]), strict=True))
    assert health.above_chance({"agreement": facts}, "within") == pytest.approx(1.0)
    facts = dict(zip(("between", "between_chance"), health.agreement([(a, b)]), strict=True))
    assert abs(health.above_chance({"agreement": facts}, "between")) < 0.05


def test_agreement_of_clusterings_that_differ_in_size_is_nothing_above_chance():
    rng = np.random.default_rng(0)
    before, after = ([rng.integers(0, m, 5000) for m in (5, 1500, 1500)] for _ in range(2))
    found = health.agreement(list(zip(before, after, strict=True)))
    facts = dict(zip(("between", "between_chance"), found, strict=True))
    assert facts["between"] > 0.5
    assert abs(health.above_chance({"agreement": facts}, "between")) < 0.05


@pytest.mark.parametrize("labels", [np.zeros(40, int), np.arange(40)])
def test_where_chance_makes_all_agree_nothing_is_told(labels):
    facts = dict(zip(("within", "within_chance"), health.agreement([(labels, labels)] * 2), strict=True))
    assert health.above_chance({"agreement": facts}, "within") is None


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: health.moments(np.zeros(3)), ShapeError),
        (lambda: health.moments(np.zeros((3, 2), np.int32)), KindError),
        (lambda: health.close_sizes(np.zeros((2, 5), int), np.array([5])), RangeError),
        (lambda: health.close_sizes(np.zeros(5, int), np.array([1])), ShapeError),
        (lambda: health.close_sizes(np.zeros((2, 5), int), np.array([1]), combine="both"), RangeError),
    ],
)
def test_bad_input(call, error):
    with pytest.raises(error):
        call()


# A run ----------------------------------------------------------------------------------------------------------------


class Watch(Callback):
    """Records every epoch, as train does when it is asked to."""

    def __init__(self, brought=False):
        self.health, self.records, self.labels, self.brought = Health(), [], [], brought

    def on_epoch(self, run, record):
        self.records.append({**record, "health": self.health.record(run, brought=self.brought)})
        self.labels.append(None if run.state.labels is None else np.array(run.state.labels))


KINDS = np.arange(200) % 4
FEATURES = (4 * RNG.standard_normal((4, 12))[KINDS] + RNG.standard_normal((200, 12))).astype(np.float32)
SMALL = Settings(epochs=4, warmup_epochs=2, batch_size=50, n_clusters=5, n_clusterings=2, learning_rate=0.03)


def watched(settings=SMALL, **options):
    watch, backend = Watch("labels" in options), la_core.backend("numpy")
    encoder = MLP(backend, (12, 24, 8), settings)
    run = train(FEATURES, encoder, backend=backend, settings=settings, callbacks=[watch], progress=False, **options)
    return run, watch


def test_a_record_holds_numbers_that_agree_with_the_run_and_goes_through_json():
    run, watch = watched()
    assert json.loads(json.dumps(watch.records)) == watch.records
    first, last = watch.records[0]["health"], watch.records[-1]["health"]
    assert set(first) == {"rows", "dim", "effective_rank", "mean_similarity", "staleness"}
    assert set(last) == set(first) | {"clusters", "close", "agreement"}
    assert (last["rows"], last["dim"]) == run.state.bank.shape
    assert last["staleness"]["age_max"] == 3
    assert last["staleness"]["age_mean"] == 1.5
    assert 0.5 < last["staleness"]["cosine"] <= 1
    sizes = health.cluster_sizes(run.state.labels)
    assert last["clusters"]["n"] == sum(last["clusters"]["histogram"]) == 10
    assert last["clusters"]["quantiles"][0] == sizes.min()
    assert last["clusters"]["quantiles"][-1] == sizes.max()
    assert last["close"]["quantiles"][-1] <= sizes.reshape(2, 5).max(axis=1).sum()
    assert 0 < last["close"]["in_background"] <= 1
    assert watch.records[2]["health"]["agreement"]["between"] is None  # the first round
    pairs = list(zip(watch.labels[2], watch.labels[3], strict=True))
    assert last["agreement"]["between"] == round(health.agreement(pairs)[0], 4)


def test_measuring_changes_nothing():
    run, _ = watched()
    backend = la_core.backend("numpy")
    plain = train(FEATURES, MLP(backend, (12, 24, 8), SMALL), backend=backend, settings=SMALL, progress=False)
    np.testing.assert_array_equal(run.state.bank, plain.state.bank)
    np.testing.assert_array_equal(run.state.labels, plain.state.labels)


def test_labels_that_were_brought_are_measured_too():
    _, watch = watched(labels=np.stack([KINDS, np.where(KINDS == 0, -1, KINDS), KINDS]))
    last = watch.records[-1]["health"]
    assert last["clusters"]["n"] == 11  # in the second clustering the kind 0 has no cluster
    assert last["clusters"]["empty"] == 0
    assert last["close"]["quantiles"] == [50.0] * 5
    assert last["agreement"]["between"] is None  # never another round


def test_the_settings_say_nothing_about_clusters_that_were_brought():
    """As many clusterings as the settings have, of sizes that are well, though the settings' own would not be."""
    labels = np.stack([np.arange(200) % 5 * 10**9] * 2)
    run, watch = watched(replace(SMALL, n_clusters=1), labels=labels)
    assert run.history[-1]["health"]["clusters"] == watch.records[-1]["health"]["clusters"]
    assert (run.history[-1]["health"]["clusters"]["n"], run.history[-1]["health"]["clusters"]["empty"]) == (10, 0)
    assert "cluster size" not in health.warnings(run.history[-1], run.settings, 200)
    own = watched(replace(SMALL, n_clusters=1))[0]
    assert "cluster size" in health.warnings(own.history[-1], own.settings, 200)


def test_the_histogram_is_by_powers_of_two():
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 7, 8])[None, :]
    sizes = health.cluster_sizes(labels, 7)
    assert np.bincount(np.ceil(np.log2(sizes + 1)).astype(int)).tolist() == [1, 1, 2, 2, 1]


# Warnings -------------------------------------------------------------------------------------------------------------


def record(bank, epoch=3, labels=None, before=None, without=0.0):
    """A line of metrics, as a run with this bank and these labels would write it."""
    total, gram = health.moments(bank)
    facts = {
        "rows": len(bank),
        "dim": bank.shape[1],
        "effective_rank": health.effective_rank(gram),
        "mean_similarity": health.mean_similarity(total, gram, len(bank)),
    }
    phase = WARM_UP if epoch <= 2 else AGGREGATION
    if labels is not None:
        facts |= {"clusters": {"n": 10}, "agreement": {}}
        within, chance = health.agreement([(labels[0], labels[1])])
        facts["agreement"] |= {"within": within, "within_chance": chance}
        if before is not None:
            between, chance = health.agreement(list(zip(before, labels, strict=True)))
            facts["agreement"] |= {"between": between, "between_chance": chance}
    return {"epoch": epoch, "phase": phase, "without_close": without, "health": facts}


def healthy():
    """Spread rows; two clusterings that agree in part, and with those before in part."""
    rng = np.random.default_rng(1)
    true = np.arange(N) % 10

    def blurred():
        return np.where(rng.random((2, N)) < 0.15, rng.integers(0, 10, (2, N)), true)

    return {"bank": unit(rng.standard_normal((N, 16))), "labels": blurred(), "before": blurred()}


COLLAPSED = unit(np.eye(16)[0] + 0.002 * RNG.standard_normal((N, 16)))
FLAT = unit(RNG.standard_normal((N, 2)) @ RNG.standard_normal((2, 64)))
SHUFFLED = RNG.integers(0, 10, (2, N))


def law_healthy_is_silent():
    assert health.warnings(record(**healthy()), SETTINGS, N) == {}


def law_collapse_is_seen():
    assert {"collapsed", "few dimensions"} == set(health.warnings(record(COLLAPSED), SETTINGS, N))
    assert {"few dimensions"} == set(health.warnings(record(FLAT), SETTINGS, N))


test_healthy_is_silent = law_healthy_is_silent
test_collapse_is_seen = law_collapse_is_seen


@pytest.mark.parametrize(
    ("change", "settings", "name", "remedy"),
    [
        ({"without": 0.4}, {}, "without close neighbours", "n_background"),
        ({}, {"n_clusters": 80}, "cluster size", "between 3 and 16"),
        ({}, {"n_clusters": 2}, "cluster size", "between 3 and 16"),
        ({}, {"n_clusters": (10, 10, 100)}, "cluster size", "between 3 and 16"),
        ({"labels": np.stack([SHUFFLED[0]] * 2), "before": None}, {}, "identical clusterings", "n_clusterings"),
        ({"before": SHUFFLED}, {}, "changing clusters", "recluster_every"),
    ],
)
def test_each_warning_comes_alone_and_names_a_remedy(change, settings, name, remedy):
    found = health.warnings(record(**{**healthy(), **change}), replace(SETTINGS, **settings), N)
    assert list(found) == [name]
    assert remedy in found[name]
    assert found[name].endswith(".")


def test_a_run_may_begin_in_one_direction():
    start = replace(SETTINGS, epochs=20, warmup_epochs=10)
    assert health.warnings(record(COLLAPSED, epoch=5), start, N) == {}
    assert "collapsed" in health.warnings(record(COLLAPSED, epoch=6), start, N)


def test_no_record_no_warning():
    assert health.warnings({"epoch": 1, "phase": WARM_UP, "loss": 1.0}, SETTINGS, N) == {}


def test_a_warning_is_said_once_and_again_after_it_had_passed():
    said, good, bad = Health(), record(**healthy()), record(COLLAPSED)
    assert [len(said.warnings(r, SETTINGS, N)) for r in (good, bad, bad, good, bad)] == [0, 2, 0, 0, 2]


def test_a_real_run_that_learns_is_silent_and_one_that_cannot_is_not():
    _, watch = watched()
    assert [list(health.warnings(r, SMALL.resolved(200), 200)) for r in watch.records] == [[]] * 4
    # An encoder that sees nothing gives the same embedding for every sample.
    backend, watch = la_core.backend("numpy"), Watch()
    encoder = MLP(backend, (12, 24, 8), SMALL)
    train(np.ones_like(FEATURES), encoder, backend=backend, settings=SMALL, callbacks=[watch], progress=False)
    assert {"collapsed", "few dimensions"} <= set(health.warnings(watch.records[-1], SMALL.resolved(200), 200))


# Planted bugs ---------------------------------------------------------------------------------------------------------


def similarity_of_the_rows_themselves(total, gram, n):
    return float(np.trace(gram)) / n


def test_planted_similarity_with_itself_is_caught(monkeypatch):
    monkeypatch.setattr(health, "mean_similarity", similarity_of_the_rows_themselves)
    with pytest.raises(AssertionError):
        law_healthy_is_silent()


def test_planted_rank_of_the_dimensions_is_caught(monkeypatch):
    monkeypatch.setattr(health, "effective_rank", lambda gram: float(len(gram)))
    with pytest.raises(AssertionError):
        law_collapse_is_seen()


def test_planted_agreement_without_chance_is_caught(monkeypatch):
    """NMI as it is: among many small clusters, unrelated labels look related."""
    a, b = np.random.default_rng(0).integers(0, 300, (2, N))
    facts = dict(zip(("between", "between_chance"), health.agreement([(a, b)]), strict=True))
    assert facts["between"] > 0.5
    changing = {**record(healthy()["bank"]), "health": {**record(healthy()["bank"])["health"], "agreement": facts}}
    assert "changing clusters" in health.warnings(changing, SETTINGS, N)
    monkeypatch.setattr(health, "above_chance", lambda h, which: h.get("agreement", {}).get(which))
    assert "changing clusters" not in health.warnings(changing, SETTINGS, N)
