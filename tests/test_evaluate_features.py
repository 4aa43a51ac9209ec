"""Embedding every sample, and its layers by name."""

import io
import sys

import numpy as np
import pytest
from variants import VARIANTS, every_variant

import la_core
from la_core import evaluate
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError

module = sys.modules["la_core.evaluate.features"]
NUMPY = la_core.backend("numpy")
VIEW = la_core.FeatureView(noise=1.0)  # the evaluation view is the vector itself
RNG = np.random.default_rng(0)
SAMPLES = RNG.standard_normal((11, 3 * 5 * 7)).astype(np.float32)
DATA = la_core.samples(SAMPLES)


class Maps:
    """An encoder whose layer ``map`` is the sample itself as a map of 3 channels, 5 high and 7 wide."""

    def apply(self, batch):
        return 2.0 * batch[:, :4], batch[:, :9]

    def layers(self, batch, names):
        every = {"map": batch.reshape(-1, 3, 5, 7), "flat": batch[:, :9], "odd": batch.reshape(-1, 3, 35)}
        return {name: every[name] for name in names if name in every}


class OfVariant:
    """The arrays of a library under test, as a backend."""

    def __init__(self, variant):
        self.asarray, self.to_host = variant.asarray, variant.to_host


class Broken:
    """An encoder that gives NaN for samples whose first number is above 100."""

    def apply(self, batch):
        return np.where(batch[:, :1] > 100, np.nan, batch[:, :4]), batch[:, :9]


def test_an_embedding_that_is_not_finite_is_named_by_its_sample():
    data = la_core.samples(np.where(np.arange(12)[:, None] == 7, 200.0, np.ones((12, 9))))
    with pytest.raises(NotFiniteError, match=r"1 of 3 samples, first for sample 7"):
        evaluate.embed(Broken(), la_core.backend("numpy"), data, VIEW, indices=np.array([5, 7, 9]))
    with pytest.raises(ShapeError, match="at least one sample"):
        evaluate.embed(Broken(), la_core.backend("numpy"), data, VIEW, indices=np.array([], int))


def look(*names, encoder=None, backend=NUMPY, **options):
    return evaluate.layer_features(encoder or Maps(), backend, DATA, VIEW, names, batch_size=4, **options)


def pooled(maps, p):
    """Averages over windows of p x p, by loops."""
    n, channels, height, width = maps.shape
    return np.array(
        [[[[maps[i, c, y : y + p, x : x + p].mean() for x in range(0, width, p)] for y in range(0, height, p)]
          for c in range(channels)] for i in range(n)]
    ).reshape(n, -1)  # fmt: skip


def law_maps_are_averaged_over_windows(max_features, p, **options):
    got = look("map", max_features=max_features, **options)["map"]
    np.testing.assert_allclose(got, pooled(SAMPLES.reshape(-1, 3, 5, 7), p), rtol=0, atol=1e-6)
    assert got.shape[1] <= max_features
    assert got.dtype == np.float32


def test_embed_is_apply_sample_by_sample():
    got = evaluate.embed(Maps(), NUMPY, DATA, VIEW, batch_size=4)
    np.testing.assert_array_equal(got.embeddings, 2.0 * SAMPLES[:, :4])
    np.testing.assert_array_equal(got.features, SAMPLES[:, :9])
    assert evaluate.embed(Maps(), NUMPY, DATA, VIEW, dtype="float64").embeddings.dtype == np.float64


def test_a_bar_in_a_terminal_changes_nothing(monkeypatch):
    pytest.importorskip("tqdm", reason="test_a_bar_in_a_terminal_changes_nothing needs tqdm")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    quiet = evaluate.embed(Maps(), NUMPY, DATA, VIEW, 4)
    assert not terminal.getvalue()
    shown = evaluate.embed(Maps(), NUMPY, DATA, VIEW, 4, progress=True)
    assert "3/3" in terminal.getvalue()
    np.testing.assert_array_equal(shown.embeddings, quiet.embeddings)


def test_a_bar_asked_for_without_tqdm_or_terminal_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for tty in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda tty=tty: tty, raising=False)
        assert len(evaluate.embed(Maps(), NUMPY, DATA, VIEW, progress=True).embeddings) == 11


def test_layers_by_name():
    got = look("flat", "map")
    assert list(got) == ["flat", "map"]
    np.testing.assert_array_equal(got["flat"], SAMPLES[:, :9])
    np.testing.assert_array_equal(got["map"], SAMPLES)


@pytest.mark.parametrize(("max_features", "p"), [(105, 1), (104, 2), (36, 2), (35, 3), (12, 4), (9, 5), (5, 7), (3, 7)])
def test_maps_are_averaged_over_windows(max_features, p):
    law_maps_are_averaged_over_windows(max_features, p)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.name.startswith("strict")], ids=str)
def test_on_any_library(variant):
    law_maps_are_averaged_over_windows(20, 3, backend=OfVariant(variant))


@every_variant
def test_windows_in_the_pure_standard(variant):
    x = variant.asarray(SAMPLES.reshape(-1, 3, 5, 7))
    got = variant.to_host(module.flattened("map", x, OfVariant(variant), 20))
    np.testing.assert_allclose(got, pooled(SAMPLES.reshape(-1, 3, 5, 7), 3), rtol=0, atol=1e-6)


def test_the_law_of_windows_sees_a_planted_bug(monkeypatch):
    right = module._windows
    monkeypatch.setattr(module, "_windows", lambda n, side: right(n, side) * (n / side / -(-n // side)))  # ragged edge
    with pytest.raises(AssertionError):
        law_maps_are_averaged_over_windows(36, 2)


class Without:
    apply = Maps.apply


class Bad(Maps):
    def apply(self, batch):
        return np.where(batch[:, :1] == SAMPLES[7, 0], np.nan, batch[:, :2]), batch

    def layers(self, batch, names):
        return {"flat": self.apply(batch)[0]}


def test_bad_input():
    with pytest.raises(KindError, match=r"Without.*no method layers"):
        look("map", encoder=Without())
    with pytest.raises(KindError, match="did not give the layers 'none', 'nor'"):
        look("flat", "none", "nor")
    for names in ((), "map", (3,)):
        with pytest.raises(KindError, match="names must be a list"):
            evaluate.layer_features(Maps(), NUMPY, DATA, VIEW, names)
    with pytest.raises(ShapeError, match="'odd' must give features"):
        look("odd")
    with pytest.raises(RangeError, match="3 channels of layer 'map'"):
        look("map", max_features=2)
    with pytest.raises(
        NotFiniteError, match="layer 'flat' holds NaN or infinity for 1 of 11 samples, first for sample 7"
    ):
        look("flat", encoder=Bad())
    with pytest.raises(NotFiniteError, match="first for sample 7"):
        evaluate.embed(Bad(), NUMPY, DATA, VIEW, batch_size=4)
