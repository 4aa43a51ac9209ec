"""Probes of frozen layers: crops, softmax averaging, stochastic gradient as PyTorch's, and a frozen encoder."""

import importlib.util
import json
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import la_core
from la_core import transfer
from la_core.data import Samples
from la_core.errors import BackendError, DataError, KindError, NotFiniteError, RangeError, SettingsError, ShapeError
from la_core.transfer import PROBES, CropView, ProbeSGD, Softmax, TenCrop, probe_layers

pytest.importorskip("sklearn", reason="test_transfer.py needs scikit-learn")
NUMPY = la_core.backend("numpy")
RNG = np.random.default_rng(0)
PLAIN = {"mean": (0.0,), "std": (1.0,)}


# Views ----------------------------------------------------------------------------------------------------------------


def law_of_ten_crops():
    """Corners, centre and mirror images of an image that need not be resized."""
    image = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    ten = TenCrop(size=8, resize=12, mean=(0.0,) * 3, std=(1.0,) * 3)(image, None)
    assert ten.shape == (10, 3, 8, 8)
    assert ten.dtype == np.float32
    whole = image.transpose(2, 0, 1) / np.float32(255)
    for crop, (top, left) in zip(ten[:5], [(0, 0), (0, 12), (4, 0), (4, 12), (2, 6)], strict=True):
        np.testing.assert_allclose(crop, whole[:, top : top + 8, left : left + 8], atol=1e-6)
    np.testing.assert_array_equal(ten[5:], ten[:5, :, :, ::-1])


def test_ten_crops():
    law_of_ten_crops()


def test_the_law_of_ten_crops_sees_a_planted_bug(monkeypatch):
    right = CropView._crop
    monkeypatch.setattr(CropView, "_crop", lambda *given: right(*given)[:, ::-1])
    with pytest.raises(AssertionError):
        law_of_ten_crops()


@pytest.mark.parametrize("shape", [(30, 47), (47, 30, 1), (5, 9, 3)])
def test_a_crop_is_one_of_the_places_and_the_evaluation_view_is_the_centre(shape):
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    view, ten = CropView(size=12, resize=16), TenCrop(size=12, resize=16)
    crop = view(image, None)
    assert crop.shape == (3 if shape[2:] == (3,) else 1, 12, 12)
    np.testing.assert_array_equal(crop, ten(image, None)[4])
    np.testing.assert_array_equal(ten(image, None), ten(image, np.random.default_rng(0)))
    plain = Image.fromarray(image[:, :, 0] if shape[2:] == (1,) else image)
    sides = [max(16, round(side * 16 / min(shape[:2]))) for side in shape[1::-1]]
    whole = np.asarray(plain.resize(sides, Image.Resampling.BILINEAR), np.float32)
    whole = (whole[None] if whole.ndim == 2 else whole.transpose(2, 0, 1)) / 255
    view = CropView(size=12, resize=16, **PLAIN)
    rng = np.random.default_rng(1)
    drawn = [view(image, rng) for _ in range(40)]
    down, across = (side - 12 for side in whole.shape[1:])
    crops = [whole[:, y : y + 12, x : x + 12] for y in range(down + 1) for x in range(across + 1)]
    places = [place for place in crops for place in (place, place[:, :, ::-1])]
    # ... to a unit in the last place of 8 bits: the crop alone is resized
    assert all(any(np.abs(one - place).max() < 1.01 / 255 for place in places) for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 10


def test_a_narrow_image_takes_no_more_memory_than_its_crop():
    """Resized whole, with its shorter side at 256, it would take 3 GB."""
    image = np.zeros((4, 16_000, 3), np.uint8)
    tracemalloc.start()
    try:
        crop = CropView()(image, np.random.default_rng(0))
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    assert crop.shape == (3, 224, 224)


def test_views_that_no_probe_could_use():
    for bad in ({"size": 0}, {"resize": 1.5}, {"size": 300}):
        with pytest.raises(SettingsError, match=next(iter(bad))):
            CropView(**bad)
    with pytest.raises(DataError, match="uint8"):
        CropView()(np.ones((9, 9)), None)


# Softmax regression ---------------------------------------------------------------------------------------------------


def law_steps_are_pytorchs(name):
    """The same weights as ``torch.optim.SGD`` on a linear layer that starts at 0, and the same losses."""
    torch = pytest.importorskip("torch")
    backend = la_core.backend(name)
    x, y = RNG.standard_normal((5, 16, 7)), RNG.integers(0, 3, (5, 16))
    layer = torch.nn.Linear(7, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    mine = None
    for batch, classes in zip(x, y, strict=True):
        given = backend.asarray(batch)
        mine = mine or Softmax(backend, 7, 3, like=given)
        loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(batch)), torch.from_numpy(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert mine.step(given, classes, 0.5, 0.9, 0.1) == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(backend.to_host(mine.weights), layer.weight.detach().numpy().T, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(backend.to_host(mine.bias), layer.bias.detach().numpy(), rtol=1e-10, atol=1e-14)
    shares = backend.to_host(mine.shares(backend.asarray(x[0])))
    np.testing.assert_allclose(shares, layer(torch.from_numpy(x[0])).softmax(1).detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_steps_are_pytorchs(name):
    law_steps_are_pytorchs(name)


def test_the_law_of_steps_sees_a_planted_bug(monkeypatch):
    right = Softmax.step
    monkeypatch.setattr(Softmax, "step", lambda self, x, y, rate, m, decay: right(self, x, y, rate, m, 2 * decay))
    with pytest.raises(AssertionError):
        law_steps_are_pytorchs("numpy")


def test_steps_on_jax_in_float32():
    pytest.importorskip("jax")
    x, y = RNG.standard_normal((16, 7)).astype(np.float32), RNG.integers(0, 3, 16)
    found = []
    for name in ("numpy", "jax"):
        backend = la_core.backend(name)
        given = backend.asarray(x)
        softmax = Softmax(backend, 7, 3, like=given)
        losses = [softmax.step(given, y, 0.5, 0.9, 0.1) for _ in range(5)]
        found.append([*losses, *backend.to_host(softmax.weights).ravel()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_huge_scores_stay_finite():
    x = np.array([[1e4], [-1e4]], np.float32)
    softmax = Softmax(NUMPY, 1, 2, like=x)
    assert softmax.step(x, np.array([0, 1]), 1.0) == pytest.approx(np.log(2))
    assert softmax.step(x, np.array([1, 0]), 1.0) < 100  # wrong with a share of 0
    assert np.isfinite(softmax.weights).all()
    np.testing.assert_allclose(softmax.shares(x).sum(axis=1), 1)


def test_the_rate_falls_to_a_tenth_after_each_drop():
    sgd = PROBES["AlexNet"].sgd
    assert [sgd.rate(epoch) for epoch in (0, 44.9, 45, 55, 64)] == pytest.approx([0.01, 0.01, 1e-3, 1e-4, 1e-4])
    for bad, error in (
        ({"epochs": 0}, RangeError),
        ({"momentum": 1}, SettingsError),
        ({"learning_rate": 0}, RangeError),
    ):
        with pytest.raises(error, match=next(iter(bad))):
            ProbeSGD(**bad)


# Probes ---------------------------------------------------------------------------------------------------------------


@dataclass
class Coded:
    """An encoder of (B, 6) whose layers hold more or less of the class."""

    seen: int = 0

    def apply(self, batch):
        return batch, batch

    def layers(self, batch, names):
        self.seen = max(self.seen, len(batch))
        every = {
            "clear": batch,
            "noise": batch[:, 4:],
            "map": np.broadcast_to(batch[:, :, None, None], (*batch.shape, 3, 3)),
        }
        return {name: every[name] for name in names if name in every}


@dataclass(frozen=True)
class Noisy:
    """Noise on the vector: one view, or several for evaluation, each its own function of the sample."""

    k: int | None = None

    def __call__(self, sample, rng):
        x = np.asarray(sample, np.float32)
        if self.k is None:
            return x if rng is None else x + rng.normal(0, 0.3, x.shape).astype(np.float32)
        shifts = np.random.default_rng(3).normal(0, 2.0, (self.k, len(x)))
        return (x + shifts).astype(np.float32)


def labelled(n, seed, names=()):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = np.concatenate([3 * np.eye(4)[y], np.zeros((n, 2))], axis=1) + rng.standard_normal((n, 6))
    return Samples(x.astype(np.float32), y, names)


TRAIN, TEST = labelled(300, 1), labelled(100, 2)
SGD = ProbeSGD(epochs=15, drops=(10,), learning_rate=0.1, batch_size=50)


def probe(layers=("clear", "noise"), train=TRAIN, test=TEST, encoder=None, **options):
    return probe_layers(encoder or Coded(), NUMPY, train, test, Noisy(), layers, **options)


@pytest.mark.parametrize("sgd", [None, SGD], ids=["memory", "sgd"])
@pytest.mark.parametrize("crops", [None, Noisy(10)], ids=["one", "ten"])
def test_a_layer_is_as_good_as_what_it_holds(sgd, crops):
    told = []
    probes = probe(sgd=sgd, crops=crops, on_progress=told.append)
    clear, noise = probes.layers
    assert clear.accuracy > (0.9 if crops is None else 0.6)
    assert noise.accuracy < 0.5
    assert [(row.layer, row.n_features) for row in probes.layers] == [("clear", 6), ("noise", 2)]
    for row in probes.layers:
        assert row.accuracy == np.mean(row.predicted == TEST.classes)
        assert row.interval[0] <= row.accuracy <= row.interval[1]
    assert len(told) == (2 if sgd is None else SGD.epochs)
    if sgd is not None:
        assert probes.losses["clear"][-1] < 0.5 * probes.losses["clear"][0]
        assert {row.weight_decay for row in probes.layers} == {sgd.weight_decay}


def test_the_protocol_is_told_in_words():
    shown = str(probe(crops=TenVectors(), max_features=50, sgd=SGD)).replace("\n", " ")
    for words in (
        *("300 training", "100 test", "3 classes", "TenVectors", "softmax averaged over crops", "above 50 values"),
        *("running statistics", "last of 15 epochs", "batches of 50", "rate 0.1", "momentum 0.9", "decay 0.0001"),
    ):
        assert words in shown
    shown = str(probe()).replace("\n", " ")
    for words in ("logistic regression", "held-out", "0.1, 0.01", "one view of a test sample, Noisy"):
        assert words in shown


@dataclass(frozen=True)
class TenVectors:
    def __call__(self, sample, rng):
        return Noisy(10)(sample, rng)


def law_shares_of_crops_are_averaged():
    """By scikit-learn alone, crop by crop."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(TRAIN.source)
    model = LogisticRegression(C=1 / (0.01 * len(TRAIN)), max_iter=5000).fit(
        scaler.transform(TRAIN.source), TRAIN.classes
    )
    crops = np.stack([Noisy(10)(x, None) for x in TEST.source])
    shares = model.predict_proba(scaler.transform(crops.reshape(-1, 6))).reshape(100, 10, 3)
    (row,) = probe(("clear",), crops=Noisy(10), weight_decays=[0.01]).layers
    np.testing.assert_array_equal(row.predicted, shares.mean(axis=1).argmax(axis=1))


def test_shares_of_crops_are_averaged():
    law_shares_of_crops_are_averaged()


def test_the_law_of_shares_sees_a_planted_bug(monkeypatch):
    right = transfer._logistic_shares
    # To average the logarithms is to average the scores, that is the features.
    monkeypatch.setattr(transfer, "_logistic_shares", lambda *given: lambda x: np.log(right(*given)(x)))
    with pytest.raises(AssertionError):
        law_shares_of_crops_are_averaged()


def test_in_memory_with_one_crop_is_the_linear_probe():
    (row,) = probe(("clear",)).layers
    theirs = la_core.evaluate.linear_probe(TRAIN.source, TRAIN.classes, TEST.source, TEST.classes)
    assert (row.accuracy, row.interval, row.weight_decay) == (theirs.accuracy, theirs.interval, theirs.weight_decay)
    (again,) = probe(("clear",), crops=Noisy1()).layers
    np.testing.assert_array_equal(again.predicted, theirs.predicted)  # one crop that is the evaluation view


@dataclass(frozen=True)
class Noisy1:
    def __call__(self, sample, rng):
        return Noisy()(sample, None)[None]


def test_streamed_repeats_to_the_bit_and_random_views_are_of_the_epoch():
    one, two, other = (probe(sgd=SGD, seed=seed) for seed in (1, 1, 2))
    assert one.losses == two.losses != other.losses
    still = probe(sgd=ProbeSGD(epochs=3, drops=(), learning_rate=1e-12, batch_size=300, momentum=0), seed=1)
    assert len(set(still.losses["clear"])) == 1  # weights of 0 see nothing of the views


def test_maps_are_pooled_in_both_ways():
    for sgd in (None, SGD):
        (row,) = probe(("map",), sgd=sgd, max_features=30).layers
        assert row.n_features == 6 * 2 * 2
        assert row.accuracy > 0.9


def test_no_more_views_at_once_than_a_batch():
    encoder = Coded()
    probe(encoder=encoder, crops=Noisy(10), batch_size=64, sgd=SGD)
    assert encoder.seen == 60


def test_classes_are_matched_by_name():
    y = np.array([2, 0, 1])[TEST.classes]
    named = probe(
        train=Samples(TRAIN.source, TRAIN.classes, ("a", "b", "c")), test=Samples(TEST.source, y, ("b", "c", "a"))
    )
    assert named.layers[0].accuracy == probe().layers[0].accuracy
    with pytest.raises(DataError, match=r"test has a class 'd' that train has not; train has a, b, c"):
        probe(
            train=Samples(TRAIN.source, TRAIN.classes, ("a", "b", "c")), test=Samples(TEST.source, y, ("b", "c", "d"))
        )


def test_a_torch_encoder_stays_frozen_to_its_running_statistics():
    pytest.importorskip("torch")
    from la_core.backends.torch import SmallCNN, TorchBackend, TorchEncoder, initialise

    encoder = TorchEncoder(initialise(SmallCNN(3, 4, width=2, blocks=2), 0))
    before = encoder.weights()
    train, test = (Samples(RNG.integers(0, 256, (n, 9, 9, 3), dtype=np.uint8), np.arange(n) % 2) for n in (12, 6))
    sgd = ProbeSGD(epochs=2, drops=(), batch_size=4)
    view, crops = CropView(size=8, resize=9), TenCrop(size=8, resize=9)
    rows = probe_layers(
        encoder, TorchBackend("cpu"), train, test, view, ("body.3", "body.8"), crops=crops, sgd=sgd
    ).layers
    assert [row.n_features for row in rows] == [2 * 4 * 4, 4]
    after = encoder.weights()
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(x, after[name])


def test_torch_and_jax_agree():
    for name in ("torch", "jax"):
        pytest.importorskip(name)
    from la_core.backends import jax as on_jax
    from la_core.backends import torch as on_torch

    theirs = on_torch.TorchEncoder(on_torch.initialise(on_torch.SmallCNN(3, 4, width=2, blocks=2), 0))
    mine = on_jax.nnx_encoder(on_jax.network("SmallCNN", channels=3, dim=4, width=2, blocks=2))
    mine.load_torch_weights(theirs.torch_weights())
    train, test = (Samples(RNG.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), np.arange(n) % 3) for n in (12, 8))
    sgd, view = ProbeSGD(epochs=3, drops=(2,), batch_size=6, learning_rate=0.1), CropView(size=8, resize=8)
    found = [
        probe_layers(encoder, la_core.backend(name), train, test, view, ("body.3",), max_features=20, sgd=sgd)
        for name, encoder in (("torch", theirs), ("jax", mine))
    ]
    assert [probes.layers[0].n_features for probes in found] == [8, 8]
    np.testing.assert_allclose(*(probes.losses["body.3"] for probes in found), rtol=1e-4)
    np.testing.assert_array_equal(*(probes.layers[0].predicted for probes in found))


def test_without_scikit_learn_it_says_so_before_anything_is_seen(monkeypatch):
    encoder = Coded()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BackendError, match=r"la-core\[demo\]"):
        probe(encoder=encoder)
    assert encoder.seen == 0
    assert probe(sgd=SGD).layers


def test_published_layers_are_layers_of_the_networks():
    pytest.importorskip("torch")
    from la_core.backends.torch import network

    for name, recipe in PROBES.items():
        options = {"AlexNet": {"size": 67}, "VGG16": {"size": 32}}.get(name, {})
        parts = dict(network(name, width=1, **options).named_modules())
        assert set(recipe.layers) <= set(parts)
        assert len(recipe.layers) == 5


class Exploding(Coded):
    def layers(self, batch, names):
        return {name: batch * np.where(np.arange(len(batch)) == 40, np.nan, 1)[:, None] for name in names}


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"train": Samples(TRAIN.source)}, DataError, "classes of train are not known"),
        ({"test": Samples(TEST.source)}, DataError, "classes of test are not known"),
        ({"train": Samples(TRAIN.source, np.zeros(300, int))}, RangeError, "one class only"),
        ({"layers": ("none",)}, KindError, "did not give the layers 'none'"),
        ({"layers": ()}, KindError, "names must be a list"),
        ({"layers": ("clear", "clear")}, KindError, "'clear' twice"),
        ({"test": Samples(TEST.source, TEST.classes + 7)}, DataError, "that train has not"),
        ({"crops": Noisy()}, ShapeError, r"crops must give \(K, 6\)"),
        ({"memory": 100}, RangeError, "more than memory"),
        ({"batch_size": 0}, RangeError, "batch_size"),
        ({"encoder": Exploding(), "sgd": SGD}, NotFiniteError, "layer 'clear' must be finite"),
    ],
)
def test_bad_input(change, error, told):
    with pytest.raises(error, match=told):
        probe(**change)


def test_a_probe_that_diverges_is_named():
    with np.errstate(all="ignore"), pytest.raises(NotFiniteError, match="'clear' diverges in epoch 1"):
        probe(sgd=ProbeSGD(learning_rate=1e38))


# The example ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("torch")
    path = Path(__file__).parents[1] / "examples" / "probe.py"
    spec = importlib.util.spec_from_file_location("probe_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty images of each of two patterns, stripes along and across."""
    root = tmp_path_factory.mktemp("images")
    for name, stripes in (("across", np.arange(20)[:, None]), ("along", np.arange(20)[None])):
        (root / name).mkdir()
        for i in range(20):
            marked = np.broadcast_to((stripes + i) % 4 < 2, (20, 20))
            pixels = np.where(marked, 200, 50)[:, :, None] + RNG.integers(-40, 40, (20, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_the_example_prints_a_table_of_a_run_and_of_a_file(example, images, tmp_path, capsys):
    pytest.importorskip("safetensors")
    from la_core import export
    from la_core.backends.torch import SmallCNN, TorchEncoder, initialise

    encoder = TorchEncoder(initialise(SmallCNN(3, 4, width=4, blocks=2, projection=6), 0))
    (tmp_path / "run").mkdir()
    np.savez(tmp_path / "run" / "encoder.npz", **encoder.weights())
    export.save(encoder, tmp_path / "cnn.safetensors")
    options = ["--data", str(images), "--size", "16", "--resize", "18", "--layers", "body.3", "body.8"]
    accuracies = []
    for weights in ("run", "cnn.safetensors"):
        assert example.main([str(tmp_path / weights), *options, "--out", str(tmp_path / "table.json")]) == 0
        out = capsys.readouterr().out
        assert "TenCrop(size=16" in out
        assert "body.3" in out
        table = json.loads((tmp_path / "table.json").read_text())
        accuracies.append({name: row["accuracy"] for name, row in table["layers"].items()})
        assert "softmax averaged" in table["protocol"]
    assert accuracies[0] == accuracies[1]
    assert accuracies[0]["body.3"] > 0.8
    more = ["--sgd", "--epochs", "2", "--augment", "--crops", "one", "--test", str(images), "--batch-size", "8"]
    assert example.main([str(tmp_path / "run"), *options, *more]) == 0
    assert "last of 2 epochs, batches of 8" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ResNet18", {"width": 2, "dim": 5, "stem": "small", "channels": 1, "projection": None}),
        ("ResNet18", {"width": 2, "dim": 5, "projection": 7, "preactivation": True, "stem": "imagenet"}),
        ("ResNet50", {"width": 1, "dim": 5, "stem": "imagenet"}),
        ("AlexNet", {"width": 1, "dim": 5}),
        ("VGG16", {"width": 1, "dim": 5}),
        ("TorchvisionAlexNet", {"width": 1, "dim": 5, "projection": 7}),
        ("TorchvisionVGG16", {"width": 1, "dim": 5}),
        ("SmallCNN", {"width": 2, "dim": 5, "blocks": 3, "unpooled": 0, "channels": 2}),
        ("SmallCNN", {"width": 2, "dim": 5, "blocks": 4, "unpooled": 2}),
        ("SmallCNN", {"width": 2, "dim": 6, "whiten": 3}),
        ("ResNet18", {"width": 2, "dim": 6, "whiten": 1, "projection": 7}),
        ("TorchvisionAlexNet", {"width": 1, "dim": 6, "whiten": 2}),
    ],
)
def test_the_example_knows_a_network_by_its_weights(example, name, options):
    from la_core.backends.torch import network

    size = {"AlexNet": {"size": 67}, "VGG16": {"size": 32}}.get(name, {})
    made = network(name, **{"channels": 3, **options, **size})
    found, guessed = example.describe({key: x.numpy() for key, x in made.state_dict().items()})
    assert found == name
    assert options.items() <= guessed.items()
    shapes = {key: x.shape for key, x in network(name, **guessed, **size).state_dict().items()}
    assert shapes == {key: x.shape for key, x in made.state_dict().items()}


def test_a_file_of_weights_that_is_none_is_one_line(example, images, tmp_path, capsys):
    pytest.importorskip("safetensors")
    assert example.main([str(tmp_path / "none.safetensors"), "--data", str(images)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "cannot be read as safetensors" in err


def test_errors_of_the_example_are_one_line(example, images, tmp_path, capsys, monkeypatch):
    def said(*options):
        assert example.main([*map(str, options)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    assert "no encoder.npz" in said(tmp_path, "--data", images)
    np.savez(tmp_path / "encoder.npz", x=np.zeros(3))
    assert "are of none of ResNet50" in said(tmp_path, "--data", images)
    from la_core.backends.torch import SmallCNN, TorchEncoder

    weights = TorchEncoder(SmallCNN(3, 4, width=2, blocks=2)).weights()
    np.savez(tmp_path / "encoder.npz", **weights)
    assert "--layers must name some of the layers of this SmallCNN: body, body.0" in said(tmp_path, "--data", images)
    layer = ("--layers", "body.3", "--size", 16, "--resize", 16)
    assert "at least two subfolders" in said(tmp_path, "--data", images / "along", *layer)
    assert "at most resize" in said(tmp_path, "--data", images, "--layers", "body.3", "--size", 300)
    assert "names must name submodules" in said(tmp_path, "--data", images, *layer[2:], "--layers", "body.77")
    assert "there is no folder" in said(tmp_path, "--data", images, *layer, "--out", tmp_path / "none" / "table.json")
    assert "PyTorch cannot use device" in said(tmp_path, "--data", images, *layer, "--device", "cuda:77")
    assert "--epochs must be" in said(tmp_path, "--data", images, *layer, "--sgd", "--epochs", 0)
    np.savez(tmp_path / "encoder.npz", **{"parameters.x": np.zeros(3)})
    assert "is a run on JAX" in said(tmp_path, "--data", images)
    np.savez(tmp_path / "encoder.npz", **{**weights, "more": np.zeros(2)})
    assert "not those of a SmallCNN" in said(tmp_path, "--data", images, *layer)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert "la-core[export]" in said(tmp_path / "x.safetensors", "--data", images)
    with pytest.raises(BackendError):
        example.read_weights(tmp_path / "x.safetensors")
