"""What benchmarks/learning.py stands on: rivals as their papers say, sets without an original on both sides."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn", reason="the benchmark's sets are made of scikit-learn's and others' pictures")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import learning
import pictures
import rivals

from la_core import Settings
from la_core.data import Samples
from la_core.views import FeatureView


def two_views(seed=0, rows=5, dim=4):
    rng = np.random.default_rng(seed)
    return (torch.tensor(rng.standard_normal((rows, dim))) for _ in range(2))


def test_simclr_is_the_mean_over_all_pairs():
    a, b = two_views()
    v = [row / row.norm() for row in (*a, *b)]
    losses = []
    for i in range(10):
        scores = [float(v[i] @ v[j]) / 0.3 for j in range(10)]
        others = math.log(sum(math.exp(s) for j, s in enumerate(scores) if j != i))
        losses.append(others - scores[(i + 5) % 10])
    assert float(rivals.simclr(0.3)(a, b)) == pytest.approx(np.mean(losses), rel=1e-12)


def test_vicreg_is_its_three_parts():
    a, b = two_views(rows=50)
    x, y = a.numpy(), b.numpy()
    spread = sum(np.maximum(0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)).mean() for z in (x, y)) / 2
    covariance = sum((np.cov(z.T) ** 2).sum() - (np.diag(np.cov(z.T)) ** 2).sum() for z in (x, y)) / 4
    want = 25 * ((x - y) ** 2).mean() + 25 * spread + covariance
    assert float(rivals.vicreg()(a, b)) == pytest.approx(want, rel=1e-12)


def test_a_rival_learns_by_the_loop():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), 12)
    data = Samples((3 * rng.standard_normal((4, 10))[kinds] + rng.standard_normal((48, 10))).astype(np.float32), kinds)
    settings = Settings(epochs=8, warmup_epochs=0, batch_size=16, optimizer="adam", learning_rate=1e-2)
    from la_core.backends.torch import Perceptron, TorchEncoder, initialise, make_optimizer

    module = initialise(Perceptron((10, 16, 8)), 0)
    encoder = TorchEncoder(module, make_optimizer(module, settings))
    loss, views = rivals.simclr(0.2), torch.from_numpy(np.asarray(data.source))

    def now():
        noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 48, 10)).astype(np.float32))
        return float(loss(*(encoder.apply(views + 0.1 * n)[0] for n in noise)))

    before = now()
    rivals.fit(encoder, data, FeatureView(noise=0.3), settings, loss)
    assert now() < before - 0.1


@pytest.mark.parametrize("name", ["digits", "pictograms"])
def test_a_set_is_the_same_each_time(name):
    pytest.importorskip("matplotlib")
    one, two = (pictures.SETS[name][0](False) for _ in range(2))
    for part in ("train", "test"):
        ours, theirs = getattr(one, part), getattr(two, part)
        np.testing.assert_array_equal(ours.source, theirs.source)
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        assert len(np.unique(ours.classes)) == len(np.unique(one.test.classes))


def test_no_typeface_is_on_both_sides():
    assert len(set(pictures.TYPEFACES)) == 6


@pytest.mark.parametrize("name", ["digits", "pictograms"])
def test_a_validation_split_is_made_of_the_training_images_alone(name):
    pytest.importorskip("matplotlib")
    whole, split = (pictures.SETS[name][0](validation) for validation in (False, True))
    images = {image.tobytes() for image in whole.train.source}
    assert {image.tobytes() for image in split.train.source} < images
    if name == "digits":  # a pictogram of the validation has a place of its own, in a typeface of the training
        assert {image.tobytes() for image in split.test.source} < images
        assert len(split.train) + len(split.test) == len(whole.train)


ALL_TILES = {(i, j) for i in range(4) for j in range(4)}


@pytest.mark.parametrize("fold", range(len(pictures.SETS["surfaces"])))
def test_validation_patches_come_from_tiles_of_the_training(fold):
    tiles = {part: set(pictures._tiles(part, fold)) for part in ("train", "test", "fit", "validation")}
    assert tiles["fit"] | tiles["validation"] == tiles["train"]
    assert not tiles["fit"] & tiles["validation"]
    assert tiles["train"] | tiles["test"] == ALL_TILES
    assert not tiles["train"] & tiles["test"]


def test_every_tile_is_in_the_test_once():
    tested = [tile for fold in range(len(pictures.SETS["surfaces"])) for tile in pictures._tiles("test", fold)]
    assert len(tested) == len(ALL_TILES)
    assert set(tested) == ALL_TILES


def test_test_patches_come_from_parts_that_training_never_saw():
    """A picture that is rough in the training tiles and smooth in the others."""
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 255, (400, 400)).astype(np.float64)
    smooth = np.add.outer(np.arange(400), np.arange(400)) / 800 * 255
    tile = np.arange(400) // 100
    picture = np.where(tile[:, None] == tile[None, :], smooth, rough).astype(np.uint8)

    def roughness(test):
        tiles = pictures._tiles("test" if test else "train", 0)
        patches = [pictures._patch(picture, tiles, np.random.default_rng(i)) for i in range(40)]
        return [np.abs(np.diff(p.astype(float), axis=0)).mean() for p in patches]

    assert max(roughness(True)) < min(roughness(False))


def test_all_methods_get_the_same_passes():
    for label, method in learning.methods(2000).items():
        if method.settings:
            assert method.settings.epochs * method.settings.views == learning.PASSES, label
            assert method.settings.batch_size * method.settings.views == 128, label
    for values in learning.ablations(2000).values():
        for method in values.values():
            assert method.settings.epochs * method.settings.views == learning.PASSES


def test_the_table_has_mean_and_range():
    """The range is that of the seeds, each of which is a mean over its folds."""
    scores = {(0, 0): 0.3, (0, 1): 0.7, (1, 0): 0.6, (1, 1): 0.8}
    results = [{"set": "s", "label": "a", "seed": seed, "fold": fold, "embedding": x, "before": None}
               for (seed, fold), x in scores.items()]  # fmt: skip
    assert "60.0 (50.0-70.0)" in learning.table(results)


def test_a_run_on_another_fold_is_another_run():
    method = learning.methods(2000)["SimCLR"]
    keys = [learning.Job("surfaces", "SimCLR", method, 0, fold).key for fold in range(2)]
    assert keys[0] != keys[1]
    assert "fold" not in keys[0]  # so that results of before there were folds hold
