"""The linear probe: as good as scikit-learn's own fit, blind to the test samples when it chooses, with an interval."""

import sys

import numpy as np
import pytest

from la_core import evaluate
from la_core.errors import BackendError, KindError, NotFiniteError, RangeError, ShapeError

linear_model = pytest.importorskip("sklearn.linear_model", reason="test_evaluate_probe.py needs scikit-learn")
preprocessing = pytest.importorskip("sklearn.preprocessing", reason="test_evaluate_probe.py needs scikit-learn")
module = sys.modules["la_core.evaluate.probe"]


def features(seed=0, n=600, q=2000, n_classes=4, width=10):
    """Overlapping classes, features of very different scales, one that is constant."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_classes, width))
    scale, shift = 10.0 ** rng.uniform(-2, 2, width), rng.uniform(-5, 5, width)
    parts = []
    for m in (n, q):
        y = rng.integers(0, n_classes, m)
        x = (centres[y] + rng.standard_normal((m, width))) * scale + shift
        x[:, 3] = 7.1
        parts += [x.astype(np.float32), 10 * y - 5]  # ids need not be 0, 1, 2, ...
    return parts


def shipped(name, n_train):
    """A data set of scikit-learn's, in another half for each seed."""
    x, y = getattr(pytest.importorskip("sklearn.datasets"), f"load_{name}")(return_X_y=True)

    def split(seed=0):
        order = np.random.default_rng(seed).permutation(len(y))
        parts = order[:n_train], order[n_train:]
        return [part for half in parts for part in (x[half].astype(np.float32), y[half])]

    return split


digits, tumours = shipped("digits", 900), shipped("breast_cancer", 280)


def gain(given, method="lbfgs", seed=0):
    """Accuracy of the probe less that of scikit-learn's own standardisation and fit."""
    x, y, test_x, test_y = given
    scaler = preprocessing.StandardScaler().fit(x)
    theirs = linear_model.LogisticRegression(max_iter=2000).fit(scaler.transform(x), y)
    probe = evaluate.linear_probe(x, y, test_x, test_y, method=method, seed=seed)
    assert probe.accuracy == np.mean(probe.predicted == test_y)
    return probe.accuracy - theirs.score(scaler.transform(test_x), test_y)


def law_as_good_as_scikit_learns(source, seeds, method="lbfgs"):
    """Within half a point, or two test samples where that is more."""
    for seed in range(seeds):
        given = source(seed)
        assert gain(given, method, seed) >= -max(0.005, 2 / len(given[3])), seed


@pytest.mark.parametrize(
    ("source", "seeds", "method"),
    [(features, 4, "lbfgs"), (features, 1, "sgd"), (digits, 9, "lbfgs"), (tumours, 9, "lbfgs")],
    ids=["features", "features-sgd", "digits", "tumours"],
)
def test_as_good_as_scikit_learns(source, seeds, method):
    law_as_good_as_scikit_learns(source, seeds, method)


@pytest.mark.parametrize(("source", "seeds"), [(digits, 9), (tumours, 9)], ids=["digits", "tumours"])
def test_the_law_sees_a_choice_by_one_fifth(monkeypatch, source, seeds):
    """What was there before: the least cross-entropy of a single fifth, which is mostly its noise."""
    monkeypatch.setattr(module, "ENOUGH", 1)
    monkeypatch.setattr(module, "_strongest", lambda losses: losses.mean(axis=1).argmin())
    with pytest.raises(AssertionError):
        law_as_good_as_scikit_learns(source, seeds)


def test_one_weight_decay_is_scikit_learns_to_the_sample():
    x, y, test_x, test_y = features()
    probe = evaluate.linear_probe(x, y, test_x, test_y, weight_decays=[0.01], standardise=False)
    theirs = linear_model.LogisticRegression(C=1 / (0.01 * len(y)), max_iter=5000).fit(x, y)
    np.testing.assert_array_equal(probe.predicted, theirs.predict(test_x))
    assert probe.held_out == {}
    assert probe.c == theirs.C


def test_the_law_sees_a_planted_bug(monkeypatch):
    right = module._standard
    monkeypatch.setattr(module, "_standard", lambda x: (right(x)[0], right(x)[1] ** 2))  # variance for deviation
    with pytest.raises(AssertionError):
        law_as_good_as_scikit_learns(lambda seed: features(seed, n=200), 1)


def test_features_are_standardised_as_scikit_learn_does(monkeypatch):
    x = features()[0]
    monkeypatch.setattr(module, "BUDGET", 16 * 10 * 7)  # seven rows at a time
    theirs = preprocessing.StandardScaler().fit(x.astype(np.float64))
    mean, scale = module._standard(x)
    vary = np.arange(10) != 3
    np.testing.assert_allclose(mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(scale[vary], 1 / theirs.scale_[vary], rtol=1e-6)
    assert scale[3] == 0.0


def test_units_of_a_feature_do_not_matter():
    x, y, test_x, test_y = (a.astype(np.float64) if a.dtype.kind == "f" else a for a in features())
    plain = evaluate.linear_probe(x, y, test_x, test_y)
    scaled = evaluate.linear_probe(8.0 * x, y, 8.0 * test_x, test_y)
    np.testing.assert_array_equal(plain.predicted, scaled.predicted)


def test_test_samples_choose_nothing():
    x, y, test_x, test_y = features()
    whole, part = evaluate.linear_probe(x, y, test_x, test_y), evaluate.linear_probe(x, y, test_x[:9], -test_y[:9])
    assert whole.held_out == part.held_out
    assert whole.weight_decay == part.weight_decay >= min(whole.held_out, key=whole.held_out.get)
    np.testing.assert_array_equal(whole.predicted[:9], part.predicted)


def test_each_sample_is_held_out_once_and_each_fifth_has_all_classes():
    y = np.repeat([3, -1, 7], [50, 11, 4])
    for seed in range(3):
        part = module._fifths(y, seed)
        assert np.bincount(part[y == 3]).tolist() == [10] * 5
        assert np.bincount(part[y == -1]).tolist() == [3, 2, 2, 2, 2]
        assert (part[y == 7] == -1).all()
    assert np.any(module._fifths(y, 0) != module._fifths(y, 1))
    np.testing.assert_array_equal(module._fifths(y, 0), module._fifths(y, 0))


@pytest.mark.parametrize(("enough", "fifths"), [(10_000, 5), (150, 2), (1, 1)])
def test_the_choice_is_by_cross_entropy_of_the_fifths_that_are_enough(monkeypatch, enough, fifths):
    metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr(module, "ENOUGH", enough)
    x, y, *_ = features()
    x = preprocessing.StandardScaler().fit_transform(x.astype(np.float64))
    probe = evaluate.linear_probe(x, y, x[:9], y[:9], weight_decays=[1e-2, 1e-3], standardise=False)
    part = module._fifths(y, 0)
    for decay, found in probe.held_out.items():
        theirs = []
        for kept, asked in ((part != i, part == i) for i in range(fifths)):
            model = linear_model.LogisticRegression(C=1 / (decay * kept.sum()), max_iter=5000).fit(x[kept], y[kept])
            theirs.append(asked.sum() * metrics.log_loss(y[asked], model.predict_proba(x[asked])))
        assert found == pytest.approx(sum(theirs) / np.isin(part, range(fifths)).sum(), rel=1e-5)


def test_the_strongest_that_is_not_surely_worse_is_chosen():
    noise = np.random.default_rng(0).standard_normal(400)
    best, same, worse = np.ones(400), 1.001 + 0.5 * noise, 1.2 + 0.5 * noise
    assert module._strongest(np.stack([worse, same, best, best])) == 1
    assert module._strongest(np.stack([worse, best, same])) == 1
    assert module._strongest(np.stack([best, worse])) == 0
    assert module._strongest(np.stack([best + 1e-3, best])) == 1  # by little, but surely


def law_interval_is_the_bootstraps():
    """Against samples drawn one by one; and more test samples give a narrower interval."""
    x, y, test_x, test_y = features()
    probe = evaluate.linear_probe(x, y, test_x, test_y, weight_decays=[1e-3], bootstrap=20_000)
    right = probe.predicted == test_y
    draws = right[np.random.default_rng(0).integers(0, len(right), (5000, len(right)))].mean(axis=1)
    np.testing.assert_allclose(probe.interval, np.quantile(draws, (0.025, 0.975)), atol=0.005)
    assert probe.interval[0] < probe.accuracy < probe.interval[1]
    few = evaluate.linear_probe(x, y, test_x[:50], test_y[:50], weight_decays=[1e-3])
    assert np.diff(few.interval) > 2 * np.diff(probe.interval)


def test_interval_is_the_bootstraps():
    law_interval_is_the_bootstraps()


def test_the_law_of_the_interval_sees_a_planted_bug(monkeypatch):
    right = np.quantile
    monkeypatch.setattr(module.np, "quantile", lambda x, q: right(x, (0.25, 0.75)) if len(x) != 5000 else right(x, q))
    with pytest.raises(AssertionError):
        law_interval_is_the_bootstraps()


@pytest.mark.parametrize("method", module.METHODS)
def test_a_seed_repeats_to_the_bit(method):
    one, two = (evaluate.linear_probe(*features(), method=method, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.predicted, two.predicted)
    assert (one.interval, one.held_out) == (two.interval, two.held_out)


def test_arguments_are_left_as_they_are_and_the_probe_shows_itself():
    given = features()
    before = [a.copy() for a in given]
    probe = evaluate.linear_probe(*given, weight_decays=[1e-3])
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert f"{probe.accuracy:.1%}" in str(probe)
    assert "2000 test samples, 600 training samples, weight decay 0.001" in str(probe)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"train_features": np.ones(9)}, ShapeError, "train_features"),
        ({"train_features": np.full((9, 2), np.inf)}, NotFiniteError, "train_features"),
        ({"test_features": np.ones((4, 3))}, ShapeError, "test_features must have 2 columns"),
        ({"test_features": np.ones((4, 2), int)}, KindError, "test_features"),
        ({"train_labels": np.arange(8)}, ShapeError, "train_labels"),
        ({"train_labels": np.zeros(9, int)}, RangeError, "at least two classes"),
        ({"train_labels": np.arange(9)}, RangeError, "no class of train_labels has 5"),
        ({"test_labels": np.zeros(4)}, KindError, "test_labels"),
        ({"method": "svm"}, RangeError, "method"),
        ({"weight_decays": ()}, ShapeError, "weight_decays"),
        ({"weight_decays": (0.0,)}, RangeError, "weight_decays"),
        ({"bootstrap": 0}, RangeError, "bootstrap"),
    ],
)
def test_bad_input(change, error, told):
    given = {
        "train_features": np.ones((9, 2)),
        "train_labels": np.arange(9) % 2,
        "test_features": np.ones((4, 2)),
        "test_labels": np.zeros(4, int),
    }
    with pytest.raises(error, match=told):
        evaluate.linear_probe(**{**given, **change})


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(BackendError, match=r"la-core\[demo\]"):
        evaluate.linear_probe(*features())


def test_half_precision_of_large_features_is_learnt_from():
    """Whose squares it cannot hold."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (300 * (2 * y[:, None] - 1) + rng.standard_normal((60, 4))).astype(np.float16)
    probe = evaluate.linear_probe(x, y, x, y, method="sgd", standardise=False, weight_decays=(1e-4,))
    assert probe.accuracy == 1.0
