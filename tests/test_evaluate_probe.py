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


def digits():
    """Half of scikit-learn's digits against the other half."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return [part for half in (order[:900], order[900:]) for part in (x[half].astype(np.float32), y[half])]


def law_as_good_as_scikit_learns(given, method):
    """Within half a point of their own standardisation and fit."""
    x, y, test_x, test_y = given
    scaler = preprocessing.StandardScaler().fit(x)
    theirs = linear_model.LogisticRegression(max_iter=2000).fit(scaler.transform(x), y)
    probe = evaluate.linear_probe(x, y, test_x, test_y, method=method)
    assert probe.accuracy >= theirs.score(scaler.transform(test_x), test_y) - 0.005
    assert probe.accuracy == np.mean(probe.predicted == test_y)


@pytest.mark.parametrize(("source", "method"), [(features, "lbfgs"), (features, "sgd"), (digits, "lbfgs")])
def test_as_good_as_scikit_learns(source, method):
    law_as_good_as_scikit_learns(source(), method)


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
        law_as_good_as_scikit_learns(features(), "lbfgs")


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
    assert whole.weight_decay == part.weight_decay == min(whole.held_out, key=whole.held_out.get)
    np.testing.assert_array_equal(whole.predicted[:9], part.predicted)


def test_a_fifth_of_each_class_is_held_out():
    y = np.repeat([3, -1, 7], [50, 11, 4])
    for seed in range(3):
        apart = module._held_out(y, seed)
        assert [int(apart[y == label].sum()) for label in (3, -1, 7)] == [10, 2, 0]
    assert np.any(module._held_out(y, 0) != module._held_out(y, 1))
    np.testing.assert_array_equal(module._held_out(y, 0), module._held_out(y, 0))


def test_the_choice_is_by_cross_entropy():
    metrics = pytest.importorskip("sklearn.metrics")
    x, y, *_ = features()
    apart = module._held_out(y, 0)
    model = linear_model.LogisticRegression(max_iter=5000).fit(x[~apart, :3], y[~apart])
    theirs = metrics.log_loss(y[apart], model.predict_proba(x[apart, :3]))
    assert module._cross_entropy(model, x[apart, :3], y[apart]) == pytest.approx(theirs, rel=1e-5)


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
