"""What a frozen encoder has learnt, layer by layer: a linear classifier on each, for any labelled images.

    from la_core.transfer import PROBES, CropView, TenCrop, probe_layers
    train, test = la_core.samples("places/train"), la_core.samples("places/val")
    recipe = PROBES["ResNet18"]
    print(probe_layers(encoder, backend, train, test, CropView(), recipe.layers, crops=TenCrop(), sgd=recipe.sgd))

ImageNet and Places differ in the folder only. The encoder never learns here, and its batch norm runs on its running
statistics.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from la_core import check, kernels
from la_core.data import Samples, Workers, batches, load, samples
from la_core.errors import BackendError, DataError, KindError, NotFiniteError, RangeError, SettingsError, ShapeError
from la_core.evaluate import layer_features, linear_probe
from la_core.evaluate.features import flattened
from la_core.evaluate.probe import WEIGHT_DECAYS, interval
from la_core.kernels import Array
from la_core.protocol import Backend, Encoder
from la_core.spaces import array_namespace, device
from la_core.views import View, of_channels

MEMORY = 8 << 30
"""Bytes that the features of one layer may take by default, both sides together."""


@dataclass(frozen=True, kw_only=True)
class CropView:
    """Views of images for a probe: the shorter side resized to ``resize``, then a square of ``size``.

    At random anywhere, and mirrored half of the time; for evaluation from the centre. They leave as (C, size, size)
    float32, minus ``mean``, over ``std``. An image of one channel takes the mean of three.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("resize", self.resize)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name} must be an integer of at least 1; got {value!r}")
        if self.size > self.resize:
            raise SettingsError(f"size must be at most resize, {self.resize}; got {self.size}")

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """(H, W[, C]) uint8 -> (C, size, size) float32."""
        image = self._image(sample)
        down, across = self._room(image)
        if rng is None:
            return self._crop(image, down // 2, across // 2)
        crop = self._crop(image, int(rng.integers(down + 1)), int(rng.integers(across + 1)))
        return np.flip(crop, axis=2) if rng.random() < 0.5 else crop

    def _image(self, sample: np.ndarray) -> Any:
        """(H, W[, C]) uint8 -> Pillow's image."""
        from PIL import Image

        if sample.dtype != np.uint8 or sample.ndim not in (2, 3):
            raise DataError(f"an image must be (H, W) or (H, W, C) uint8; got {sample.shape} {sample.dtype}")
        return Image.fromarray(sample[:, :, 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample)

    def _resized(self, image: Any) -> tuple[int, int]:
        """Height and width, of which the shorter is ``resize``."""
        height, width = (max(self.resize, round(s * self.resize / min(image.size))) for s in image.size[::-1])
        return height, width

    def _room(self, image: Any) -> tuple[int, int]:
        """How far a crop of the resized image may be from its top, and from its left."""
        height, width = self._resized(image)
        return height - self.size, width - self.size

    def _crop(self, image: Any, top: int, left: int) -> np.ndarray:
        """(C, size, size) float32 of the resized image, of which no more is made: a narrow one would be huge."""
        from PIL import Image

        height, width = self._resized(image)
        down, across = image.size[1] / height, image.size[0] / width
        right, bottom = min((left + self.size) * across, image.size[0]), min((top + self.size) * down, image.size[1])
        crop = image.resize(
            (self.size, self.size), Image.Resampling.BILINEAR, (left * across, top * down, right, bottom)
        )
        pixels = np.asarray(crop, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        mean, std = (of_channels(x, pixels.shape[0]) for x in (self.mean, self.std))
        scaled: np.ndarray = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        return scaled


@dataclass(frozen=True, kw_only=True)
class TenCrop(CropView):
    """The ten views of Krizhevsky et al. (2012): four corners and the centre, and their mirror images. Not random."""

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """(H, W[, C]) uint8 -> (10, C, size, size) float32, the mirror images last."""
        image = self._image(sample)
        down, across = self._room(image)
        places = ((0, 0), (0, across), (down, 0), (down, across), (down // 2, across // 2))
        five = np.stack([self._crop(image, top, left) for top, left in places])
        return np.concatenate([five, np.flip(five, axis=3)])


@dataclass(frozen=True, kw_only=True)
class ProbeSGD:
    """Stochastic gradient for a softmax classifier on each layer, as the Local Aggregation code trains its probes."""

    epochs: int = 70
    drops: tuple[float, ...] = (30, 60)
    """Epochs after which the learning rate is a tenth."""
    batch_size: int = 128
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """lambda of (lambda / 2) ||W||^2, on the classifier's weights and not on its biases."""

    def __post_init__(self) -> None:
        check.count("epochs", self.epochs)
        check.count("batch_size", self.batch_size)
        check.number("learning_rate", self.learning_rate, 0.0, open_low=True)
        check.number("weight_decay", self.weight_decay, 0.0)
        if not 0 <= self.momentum < 1:
            raise SettingsError(f"momentum must be at least 0 and below 1; got {self.momentum}")

    def rate(self, epoch: float) -> float:
        """The learning rate at a place in the run."""
        return self.learning_rate * 0.1 ** sum(epoch >= drop for drop in self.drops)


@dataclass(frozen=True)
class ProbeRecipe:
    """Layers of a network and how the published code probes them."""

    layers: tuple[str, ...]
    sgd: ProbeSGD


_ALEXNET = ProbeSGD(epochs=65, drops=(45, 55), weight_decay=0.0)
_VGG16 = ProbeSGD(epochs=51, drops=(11, 41))
PROBES: dict[str, ProbeRecipe] = {
    "AlexNet": ProbeRecipe(tuple(f"conv{i}" for i in range(1, 6)), _ALEXNET),
    "TorchvisionAlexNet": ProbeRecipe(tuple(f"features.{i}" for i in (1, 4, 7, 9, 11)), _ALEXNET),
    "VGG16": ProbeRecipe(("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"), _VGG16),
    "TorchvisionVGG16": ProbeRecipe(tuple(f"features.{i}" for i in (5, 12, 22, 32, 42)), _VGG16),
    **dict.fromkeys(
        ("ResNet18", "ResNet50"), ProbeRecipe(("maxpool", "layer1", "layer2", "layer3", "layer4"), ProbeSGD())
    ),
}
"""By network: layers and schedule of the published ImageNet probes."""


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """The probe of one layer."""

    layer: str
    n_features: int
    """F, of the flattened, and where it was too large pooled, layer."""
    accuracy: float
    interval: tuple[float, float]
    """95 % of the accuracies that other test sets of this size would give (bootstrap percentiles)."""
    predicted: np.ndarray
    """(Q,) class of each test sample."""
    weight_decay: float


@dataclass(frozen=True, eq=False)
class LayerProbes:
    """The probes of some layers, in order, with the protocol in words. ``print`` shows both."""

    layers: tuple[LayerProbe, ...]
    protocol: str
    losses: dict[str, list[float]] = field(default_factory=dict)
    """Mean training loss by layer and epoch, where probes were trained by stochastic gradient."""

    def __str__(self) -> str:
        width = max(len("layer"), *(len(row.layer) for row in self.layers))
        lines = [
            *textwrap.wrap(self.protocol, 100),
            "",
            f"{'layer':<{width}}{'features':>10}{'accuracy':>10}   95 % interval",
        ]
        for row in self.layers:
            low, high = row.interval
            lines.append(f"{row.layer:<{width}}{row.n_features:>10}{row.accuracy:>10.1%}   {low:.1%} to {high:.1%}")
        return "\n".join(lines)


def probe_layers(
    encoder: Encoder,
    backend: Backend,
    train: Any,
    test: Any,
    view: View,
    layers: Sequence[str],
    *,
    crops: View | None = None,
    sgd: ProbeSGD | None = None,
    max_features: int | None = None,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    batch_size: int = 128,
    dtype: str = "float32",
    bootstrap: int = 1000,
    seed: int = 0,
    memory: int = MEMORY,
    on_progress: Callable[[str], None] | None = None,
    workers: Workers | None = None,
) -> LayerProbes:
    """Test a linear classifier on each of some layers of a frozen encoder.

    Without ``sgd``, in memory: features of the evaluation views, standardised, logistic regression to convergence, the
    weight decay chosen on held-out training samples (:func:`la_core.evaluate.linear_probe`). With ``sgd``, as
    published: random views of each epoch pass through the encoder, and a softmax classifier on each layer, as it is,
    learns by stochastic gradient on the backend's device. Memory then depends on no number of samples, and an epoch
    costs a forward pass over the training samples.

    Parameters
    ----------
    encoder, backend
        An encoder with a method ``layers``: see :func:`la_core.evaluate.layer_features`.
    train, test
        With classes, in any form that :func:`la_core.data.samples` takes. Where both have class names, those of
        ``test`` are looked up among those of ``train``.
    view
        Evaluation views, and for ``sgd`` random ones.
    layers
        Names as the encoder calls them; ``PROBES[network].layers`` are the published ones.
    crops
        Several views of a test sample, (K, ...), such as :class:`TenCrop`: the class shares (softmax) of the K are
        averaged, not their features. By default the evaluation view alone.
    sgd
        How to train by stochastic gradient.
    max_features
        Maps of more values are averaged over windows. By default 200 000 with ``sgd``, where the published code halves
        a map, and halves it again; and 10 000 without.
    weight_decays
        To choose from, without ``sgd``.
    batch_size
        Views that pass through the encoder at once, where ``sgd`` does not say so.
    dtype
        Of views and features.
    bootstrap, seed
        Draws behind the interval; of the order, the random views, the held-out samples and the bootstrap.
    memory
        Bytes that the features of all layers may take, without ``sgd``.
    on_progress
        Told in words how far it is, such as ``print``.
    workers
        Load the batches; by default this process.

    Raises
    ------
    DataError
        Classes that are not known, or a test class that training does not know.
    RangeError
        One class only, or features that do not fit into ``memory``.
    KindError, ShapeError, NotFiniteError
        As :func:`la_core.evaluate.layer_features` raises them; a classifier that diverges.
    BackendError
        scikit-learn is not installed, which is needed without ``sgd``.
    """
    train, test = samples(train), samples(test)
    train_y, test_y = _classes(train, test)
    twice = [name for i, name in enumerate(layers) if name in layers[:i]]
    if twice:
        raise KindError(f"layers names {twice[0]!r} twice")
    check.count("batch_size", batch_size)
    check.count("bootstrap", bootstrap)
    check.count("seed", seed, least=0)
    check.count("memory", memory)
    if sgd is None and find_spec("sklearn") is None:  # now, not when every sample has been seen
        raise BackendError(
            "probes in memory need scikit-learn, not installed: pip install 'la-core[demo]'; sgd does not"
        )
    if max_features is None:
        max_features = 10_000 if sgd is None else 200_000
    first = layer_features(
        encoder, backend, train.part(np.array([0])), view, layers, 1, dtype, max_features=max_features
    )
    n_features = {name: first[name].shape[1] for name in layers}
    eye = _Eye(encoder, backend, layers, max_features, dtype)
    if crops is not None:
        _several(crops, test, view)
    job = _Job(eye, train, test, view, crops, train_y, test_y, batch_size, seed, on_progress, workers or Workers())
    losses: dict[str, list[float]] = {}
    if sgd is None:
        needed = (len(train) + len(test)) * sum(n_features.values()) * np.dtype(dtype).itemsize
        if needed > memory:
            raise RangeError(
                f"the features would take {needed / 2**30:.1f} GiB, more than memory = {memory / 2**30:.1f} GiB: "
                "lower max_features, take fewer layers at a time, or give sgd, which keeps none"
            )
        predicted, decays = job.in_memory(weight_decays)
        how = "logistic regression on standardised features of the evaluation views, weight decay chosen on held-out "
        how += f"training samples among {', '.join(f'{d:g}' for d in weight_decays)}"
    else:
        predicted, losses = job.streamed(sgd, n_features)
        decays = dict.fromkeys(layers, sgd.weight_decay)
        how = (
            f"softmax classifier by SGD on random views, the last of {sgd.epochs} epochs, batches of {sgd.batch_size}, "
            f"learning rate {sgd.learning_rate:g}, a tenth after epochs "
            f"{', '.join(f'{d:g}' for d in sgd.drops) or 'none'}, "
            f"momentum {sgd.momentum:g}, weight decay {sgd.weight_decay:g}"
        )
    rows = []
    for name in layers:
        accuracy = float((predicted[name] == test_y).mean())
        between = interval(accuracy, len(test_y), bootstrap, seed)
        rows.append(LayerProbe(name, n_features[name], accuracy, between, predicted[name], decays[name]))
    protocol = (
        f"linear probes of frozen layers: {how}; {len(train)} training samples, {len(test)} test samples, "
        f"{len(np.unique(train_y))} classes; "
        + (f"{crops}, softmax averaged over crops; " if crops is not None else f"one view of a test sample, {view}; ")
        + f"maps above {max_features} values averaged over windows; batch norm on running statistics"
    )
    return LayerProbes(tuple(rows), protocol, losses)


@dataclass(frozen=True)
class _Eye:
    """What is seen of a batch of views: each layer as (B, F), on the device."""

    encoder: Any
    backend: Backend
    names: Sequence[str]
    max_features: int
    dtype: str

    def __call__(self, views: np.ndarray) -> dict[str, Array]:
        given = self.encoder.layers(self.backend.asarray(views.astype(self.dtype, copy=False), copy=False), self.names)
        found = {name: flattened(name, given[name], self.backend, self.max_features) for name in self.names}
        for name, x in found.items():
            check.finite(f"layer {name!r}", x)
        return found


@dataclass(frozen=True)
class _Job:
    eye: _Eye
    train: Samples
    test: Samples
    view: View
    crops: View | None
    train_y: np.ndarray
    test_y: np.ndarray
    batch_size: int
    seed: int
    on_progress: Callable[[str], None] | None
    workers: Workers

    def in_memory(self, weight_decays: Sequence[float]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Predicted classes (Q,) and the weight decay, by layer."""
        eye, n_asked = self.eye, len(self.test) if self.crops is None else 1
        there, here = (
            layer_features(
                *(eye.encoder, eye.backend, data, self.view, eye.names, self.batch_size, eye.dtype),
                max_features=eye.max_features,
                workers=self.workers,
            )
            for data in (self.train, self.test if self.crops is None else self.test.part(np.array([0])))
        )
        predicted, decays, shares = {}, {}, {}
        for name in eye.names:
            x = there.pop(name)
            probe = linear_probe(
                *(x, self.train_y, here[name], self.test_y[:n_asked]), weight_decays=weight_decays, seed=self.seed
            )
            predicted[name], decays[name] = probe.predicted, probe.weight_decay
            if self.crops is not None:
                # The same fit once more: a Probe gives classes, and crops are averaged by their shares.
                shares[name] = _logistic_shares(x, self.train_y, probe.c, eye.backend)
            self._tell(f"probe of {name} fitted, weight decay {probe.weight_decay:g}")
        if self.crops is not None:
            classes = np.unique(self.train_y)
            predicted = {name: classes[best] for name, best in self._voted(shares).items()}
        return predicted, decays

    def streamed(
        self, sgd: ProbeSGD, n_features: Mapping[str, int]
    ) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
        """Predicted classes (Q,), and the training loss of each epoch, by layer."""
        classes, y = np.unique(self.train_y, return_inverse=True)
        probes: dict[str, Softmax] = {}
        losses: dict[str, list[float]] = {name: [] for name in self.eye.names}
        for epoch in range(sgd.epochs):
            order = batches(len(self.train), sgd.batch_size, seed=self.seed, epoch=epoch)
            sums = dict.fromkeys(self.eye.names, 0.0)
            for step, (rows, views) in enumerate(self.workers.load(self.train, order, self.view, (self.seed, epoch))):
                rate = sgd.rate(epoch + step / len(order))
                for name, x in self.eye(views).items():
                    if name not in probes:
                        probes[name] = Softmax(self.eye.backend, n_features[name], len(classes), like=x)
                    loss = probes[name].step(x, y[rows], rate, sgd.momentum, sgd.weight_decay)
                    if not math.isfinite(loss):
                        raise NotFiniteError(
                            f"the probe of layer {name!r} diverges in epoch {epoch + 1}: lower learning_rate"
                        )
                    sums[name] += loss * len(rows)
            for name, total in sums.items():
                losses[name].append(total / len(self.train))
            told = ", ".join(f"{name} {losses[name][-1]:.3f}" for name in self.eye.names)
            self._tell(f"probes, epoch {epoch + 1}/{sgd.epochs}: loss {told}")
        found = self._voted({name: probe.host_shares for name, probe in probes.items()})
        return {name: classes[best] for name, best in found.items()}, losses

    def _voted(self, shares: Mapping[str, Callable[[Array], np.ndarray]]) -> dict[str, np.ndarray]:
        """The class of largest share of each test sample, by layer: (Q,) places among the classes."""
        found = {name: np.empty(len(self.test), dtype=np.int64) for name in shares}
        for rows, views in self._views_of_test():
            several = views if self.crops is not None else views[:, None]  # (B, K, ...)
            flat = several.reshape(-1, *several.shape[2:])
            for name, x in self.eye(flat).items():
                of_crops = shares[name](x).reshape(*several.shape[:2], -1)
                found[name][rows] = of_crops.mean(axis=1).argmax(axis=1)
        return found

    def _views_of_test(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        view = self.view if self.crops is None else self.crops
        k = 1 if self.crops is None else len(load(self.test, [0], view, None)[0])
        blocks = kernels.blocks(len(self.test), max(1, self.batch_size // k))
        return self.workers.load(self.test, [np.arange(rows.start, rows.stop) for rows in blocks], view, None)

    def _tell(self, words: str) -> None:
        if self.on_progress is not None:
            self.on_progress(words)


class Softmax:
    """Multinomial logistic regression on any array library, by stochastic gradient with momentum. It starts at 0.

    With class shares p of (B, C) and their truth e: the loss is -mean log p_y, its gradient X^T (p - e) / B.
    The convention of momentum is PyTorch's: v <- momentum v + gradient, W <- W - rate v.

    Parameters
    ----------
    backend
        Of the arrays.
    n_features, n_classes
        F and C.
    like
        An array that gives dtype and device.
    """

    def __init__(self, backend: Backend, n_features: int, n_classes: int, like: Array) -> None:
        xp = array_namespace(like)
        self.backend, self.n_classes = backend, n_classes
        options = {"dtype": like.dtype, "device": device(like)}
        self.weights, self._dw = (xp.zeros((n_features, n_classes), **options) for _ in range(2))
        self.bias, self._db = (xp.zeros((n_classes,), **options) for _ in range(2))

    def shares(self, x: Array) -> Array:
        """(B, F) -> (B, C), the softmax: rows sum to 1."""
        xp = array_namespace(x)
        scores = x @ self.weights + self.bias
        powers = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        return powers / xp.sum(powers, axis=1, keepdims=True)

    def host_shares(self, x: Array) -> np.ndarray:
        """The same, on the host."""
        return self.backend.to_host(self.shares(x))

    def step(self, x: Array, y: np.ndarray, rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> float:
        """One step on a batch (B, F) with classes (B,), on the host. Returns the loss before it, without the decay."""
        xp = array_namespace(x)
        truth = xp.astype(self.backend.asarray(np.eye(self.n_classes, dtype=np.float32)[y]), x.dtype)
        shares = self.shares(x)
        # A share that underflows costs as much as the smallest number that there is.
        least = float(xp.finfo(x.dtype).smallest_normal)
        loss = -xp.mean(xp.log(xp.clip(xp.sum(shares * truth, axis=1), min=least)))
        error = (shares - truth) / x.shape[0]
        self._dw = momentum * self._dw + xp.matrix_transpose(x) @ error + weight_decay * self.weights
        self._db = momentum * self._db + xp.sum(error, axis=0)
        self.weights, self.bias = self.weights - rate * self._dw, self.bias - rate * self._db
        return float(loss)


def _logistic_shares(x: np.ndarray, y: np.ndarray, c: float, backend: Backend) -> Callable[[Array], np.ndarray]:
    """The class shares that logistic regression on standardised features gives: (B, F) -> (B, C), on the host."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000)).fit(x, y)

    def shares(asked: Array) -> np.ndarray:
        found: np.ndarray = model.predict_proba(backend.to_host(asked))
        return found

    return shares


def _several(crops: View, test: Samples, view: View) -> None:
    """``crops`` gives some views of a sample, each of the shape of the evaluation view."""
    one, many = load(test, [0], view, None)[0], load(test, [0], crops, None)[0]
    if many.ndim != one.ndim + 1 or many.shape[1:] != one.shape:
        raise ShapeError(f"crops must give (K, {', '.join(map(str, one.shape))}), K of the views; got {many.shape}")


def _classes(train: Samples, test: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' classes, by the numbers of the training side."""
    for name, data in (("train", train), ("test", test)):
        if data.classes is None:
            raise DataError(f"the classes of {name} are not known: a probe learns and tests them")
    assert train.classes is not None
    assert test.classes is not None
    classes, named = test.classes, bool(train.class_names and test.class_names)
    if named:
        number = {name: i for i, name in enumerate(train.class_names)}
        unknown = [name for name in test.class_names if name not in number]
        if unknown:
            raise DataError(f"test has a class {unknown[0]!r} that train has not; train has {', '.join(number)}")
        classes = np.array([number[name] for name in test.class_names])[classes]
    if train.classes.min() == train.classes.max():
        raise RangeError("train holds one class only: there is nothing to tell apart")
    strange = np.setdiff1d(classes, train.classes)
    if strange.size and not named:  # what has a name may be rare, and all of it in the test
        raise DataError(f"test has a class {strange[0]} that train has not")
    return train.classes, classes
