"""flax NNX networks: an image batch (B, C, H, W) or a feature batch (B, F) to embeddings (B, dim).

Each has ``features(x)``, the backbone's output (B, F), and ``head``, which makes the embedding of it. They are the
twins of ``la_core.backends.torch``: the same options, names, and arithmetic, described there. Images come channels
first, as everywhere in la_core, and are turned channels last at the door, as XLA likes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from la_core import check, whitening
from la_core.errors import RangeError, ShapeError
from la_core.presets import chosen

Layer = Callable[..., Array]
Norm = Callable[..., Layer]


class BatchNorm(nnx.BatchNorm):
    """As PyTorch's: the running variance takes in the unbiased variance of a batch. ``momentum`` is flax's, the weight
    of what was there.
    """

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        """(B, ..., C) -> (B, ..., C)."""
        kept = self.momentum * self.var[...]
        y: Array = super().__call__(x, use_running_average, mask=mask)
        if not (self.use_running_average if use_running_average is None else use_running_average):
            n = x.size // x.shape[-1]
            self.var[...] = kept + (self.var[...] - kept) * (n / max(n - 1, 1))
        return y


class Whiten(nnx.Module):
    """Embeddings whitened in groups of coordinates: over the batch in training, by running statistics in evaluation.

    ``momentum`` is the weight of a batch. See :mod:`la_core.whitening`.
    """

    def __init__(self, dim: int, size: int, momentum: float = 0.1) -> None:
        self.momentum, self.use_running_average = momentum, False
        self.mean = nnx.BatchStat(jnp.zeros(dim))
        self.covariance = nnx.BatchStat(jnp.tile(jnp.eye(size), (whitening.groups(dim, size), 1, 1)))

    def __call__(self, x: Array) -> Array:
        """(B, D) -> (B, D)."""
        mean, covariance = self.mean[...], self.covariance[...]
        x = x.astype(mean.dtype)
        if not self.use_running_average:
            mean, covariance = whitening.moments(x, covariance.shape[-1])
            for kept, new in ((self.mean, mean), (self.covariance, covariance)):
                kept[...] = jax.lax.stop_gradient(kept[...] + self.momentum * (new - kept[...]))
        whitened: Array = whitening.whitened(x, mean, covariance)
        return whitened


def _norm(rngs: nnx.Rngs, momentum: float = 0.1) -> Callable[..., BatchNorm]:
    return partial(BatchNorm, momentum=1 - momentum, epsilon=1e-5, rngs=rngs)


def _uniform(fan_in: int) -> Any:
    """Within 1 / sqrt(fan in), as PyTorch draws; on the host, since XLA would compile for seconds for each shape."""
    bound = fan_in**-0.5

    def draw(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **sharding: Any) -> Array:
        if isinstance(key, jax.core.Tracer):
            return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jnp.asarray(rng.uniform(-bound, bound, tuple(shape)), dtype)

    return draw


def _linear(rows: int, columns: int, rngs: nnx.Rngs, *, use_bias: bool = True) -> nnx.Linear:
    draw = _uniform(rows)
    return nnx.Linear(rows, columns, use_bias=use_bias, kernel_init=draw, bias_init=draw, rngs=rngs)


def _conv(
    channels: int,
    out: int,
    size: int,
    rngs: nnx.Rngs,
    stride: int = 1,
    *,
    padding: int | None = None,
    use_bias: bool = False,
) -> nnx.Conv:
    draw = _uniform(channels * size**2)
    return nnx.Conv(
        *(channels, out, (size, size)),
        strides=stride,
        padding=size // 2 if padding is None else padding,
        use_bias=use_bias,
        kernel_init=draw,
        bias_init=draw,
        rngs=rngs,
    )


def _head(features: int, dim: int, projection: int | None, whiten: int, rngs: nnx.Rngs) -> Layer:
    last = _linear(features if projection is None else projection, dim, rngs, use_bias=not whiten)
    layers: list[Layer] = [last]
    if projection is not None:
        layers = [_linear(features, projection, rngs, use_bias=False), _norm(rngs)(projection), nnx.relu, last]
    if whiten:
        layers.append(_norm(rngs)(dim, use_bias=False, use_scale=False) if whiten == 1 else Whiten(dim, whiten))
    return layers[0] if len(layers) == 1 else nnx.Sequential(*layers)


def _dense(rows: int, columns: int, momentum: float, rngs: nnx.Rngs) -> nnx.Sequential:
    return nnx.Sequential(_linear(rows, columns, rngs, use_bias=False), _norm(rngs, momentum)(columns), nnx.relu)


def _halved(x: Array) -> Array:
    """The largest of every 2 x 2 pixels, as a reshape: its derivative is cheaper than that of a window."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _pooled(x: Array, padding: int = 0) -> Array:
    """The largest of 3 x 3 pixels, at every second one."""
    pooled: Array = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((padding, padding),) * 2)
    return pooled


def _same(x: Array) -> Array:
    return x


def _mean(x: Array) -> Array:
    return x.mean(axis=(1, 2))


def _averaged(x: Array, side: int) -> Array:
    """(B, H, W, C) -> (B, side, side, C), means over windows as PyTorch's adaptive pooling cuts them."""
    for axis in (1, 2):
        n = x.shape[axis]
        if n != side:
            cuts = [(i * n // side, -(-(i + 1) * n // side)) for i in range(side)]
            windows = [jax.lax.slice_in_dim(x, low, high, axis=axis).mean(axis) for low, high in cuts]
            x = jnp.stack(windows, axis)
    return x


def _flat(x: Array) -> Array:
    """(B, H, W, C) -> (B, C * H * W), in PyTorch's order."""
    return jnp.moveaxis(x, -1, 1).reshape(len(x), -1)


def _check_size(x: Array, size: int) -> None:
    if x.ndim != 4 or x.shape[2:] != (size, size):
        raise ShapeError(f"this network was made for images (B, C, {size}, {size}); got {x.shape}")


def _check_least(x: Array, size: int) -> None:
    if x.ndim != 4 or min(x.shape[2:]) < size:
        raise ShapeError(f"this network takes images (B, C, H, W) of at least {size} pixels; got {x.shape}")


class SmallCNN(nnx.Module):
    """3 x 3 convolutions with batch norm, each at half the size and twice the width; global mean.

    For images of about 24 to 96 pixels. A larger one wants a ResNet. The first ``unpooled`` of them keep the size, for
    things of few pixels: it takes two or three times as long, and learns in fewer epochs.
    """

    initial: ClassVar[str] = "uniform"

    def __init__(
        self,
        channels: int,
        dim: int = 128,
        width: int = 32,
        blocks: int = 4,
        *,
        unpooled: int = 0,
        projection: int | None = None,
        whiten: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        check.count("unpooled", unpooled, blocks - 1, "all convolutions but the last", least=0)
        body: list[Layer] = []
        for block in range(blocks):
            out = width * 2**block
            body += [_conv(channels, out, 3, rngs), _norm(rngs)(out), nnx.relu]
            if unpooled <= block < blocks - 1:
                body.append(_halved)
            channels = out
        self.body = nnx.Sequential(*body, _mean)
        self.least = 2 ** (blocks - 1 - unpooled)
        self.head = _head(channels, dim, projection, whiten, rngs)

    def features(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, width * 2 ** (blocks - 1))."""
        _check_least(x, self.least)
        features: Array = self.body(jnp.moveaxis(x, 1, -1))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, dim)."""
        return self.head(self.features(x))


class Perceptron(nnx.Module):
    """Linear layers with batch norm and ReLU between them; a batch is flattened first."""

    initial: ClassVar[str] = "uniform"

    def __init__(self, sizes: Sequence[int], *, projection: int | None = None, whiten: int = 0, rngs: nnx.Rngs) -> None:
        body: list[Layer] = []
        for rows, columns in pairwise(sizes[:-1]):
            body += [_linear(rows, columns, rngs, use_bias=False), _norm(rngs)(columns), nnx.relu]
        self.body = nnx.Sequential(*body)
        self.head = _head(sizes[-2], sizes[-1], projection, whiten, rngs)

    def features(self, x: Array) -> Array:
        """(B, ...) -> (B, sizes[-2])."""
        features: Array = self.body(x.reshape(len(x), -1))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, ...) -> (B, sizes[-1])."""
        return self.head(self.features(x))


class _Residual(nnx.Module):
    """Two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1, around which the input passes.

    In the form of He et al. 2016a, conv-norm-ReLU, or of 2016b with ``preactivation``, norm-ReLU-conv.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        *,
        bottleneck: bool,
        preactivation: bool,
        norm: Norm,
        rngs: nnx.Rngs,
    ) -> None:
        out = 4 * width if bottleneck else width
        layers = [(channels, width, 3, stride), (width, out, 3, 1)]
        if bottleneck:
            layers = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        for i, (rows, columns, size, step) in enumerate(layers, 1):
            setattr(self, f"conv{i}", _conv(rows, columns, size, rngs, step))
            setattr(self, f"bn{i}", norm(rows if preactivation else columns))
        changes = stride != 1 or channels != out
        around: list[Layer] = [_conv(channels, out, 1, rngs, stride), *([] if preactivation else [norm(out)])]
        self.downsample = nnx.Sequential(*around) if changes else None
        self.depth, self.preactivation = len(layers), preactivation

    def __call__(self, x: Array) -> Array:
        y = past = x
        for i in range(1, self.depth + 1):
            conv, bn = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
            if self.preactivation:
                y = nnx.relu(bn(y))
                if i == 1 and self.downsample is not None:
                    past = self.downsample(y)
                y = conv(y)
            else:
                y = bn(conv(y))
                y = nnx.relu(y) if i < self.depth else y
        if self.preactivation:
            return past + y
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nnx.Module):
    """What the ResNets share. Parts and names are torchvision's; ``fc`` makes the embedding.

    The options are those of the torch twin.
    """

    initial: ClassVar[str] = "he"
    blocks: ClassVar[tuple[int, ...]]
    bottleneck: ClassVar[bool]

    def __init__(
        self,
        channels: int = 3,
        dim: int = 128,
        width: int = 64,
        stem: str = "imagenet",
        *,
        preactivation: bool = False,
        momentum: float = 0.1,
        projection: int | None = None,
        whiten: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        check.choice("stem", stem, ("imagenet", "small"))
        norm = _norm(rngs, momentum)
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = _conv(channels, width, size, rngs, stride)
        self.bn1 = _same if preactivation else norm(width)
        self.maxpool = partial(_pooled, padding=1) if stem == "imagenet" else _same
        residual = partial(_Residual, bottleneck=self.bottleneck, preactivation=preactivation, norm=norm, rngs=rngs)
        inside = width
        for stage, n_blocks in enumerate(self.blocks):
            inner = width * 2**stage
            parts = []
            for block in range(n_blocks):
                parts.append(residual(inside, inner, 2 if stage > 0 and block == 0 else 1))
                inside = 4 * inner if self.bottleneck else inner
            setattr(self, f"layer{stage + 1}", nnx.Sequential(*parts))
        self.bn5 = norm(inside) if preactivation else _same
        self.fc = _head(inside, dim, projection, whiten, rngs)
        self.preactivation = preactivation

    @property
    def head(self) -> Layer:
        """What makes the embedding of the features: ``fc``."""
        return self.fc

    def features(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, F), F of 8 or 32 times the width."""
        x = self.bn1(self.conv1(jnp.moveaxis(x, 1, -1)))
        x = self.maxpool(x if self.preactivation else nnx.relu(x))
        for stage in range(len(self.blocks)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return _mean(nnx.relu(self.bn5(x)) if self.preactivation else x)

    def __call__(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, dim)."""
        return self.fc(self.features(x))


class ResNet18(ResNet):
    """ResNet-18 (He et al. 2016): see :class:`ResNet`."""

    blocks = (2, 2, 2, 2)
    bottleneck = False


class ResNet50(ResNet):
    """ResNet-50 (He et al. 2016): see :class:`ResNet`."""

    blocks = (3, 4, 6, 3)
    bottleneck = True


class AlexNet(nnx.Module):
    """AlexNet in one column (Krizhevsky 2014) with batch norm, without dropout, as Local Aggregation published it.

    For images of ``size`` pixels. Layers ``conv1`` to ``conv5``, ``fc6`` and ``fc7`` each end in their ReLU.
    """

    initial: ClassVar[str] = "he"

    def __init__(
        self,
        channels: int = 3,
        dim: int = 128,
        width: int = 64,
        *,
        size: int = 224,
        momentum: float = 0.1,
        projection: int | None = None,
        whiten: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.size = size
        side = (size - 11) // 4 + 1
        for i, (out, kernel) in enumerate(((1, 11), (3, 5), (6, 3), (6, 3), (4, 3)), 1):
            stride, padding = (1, None) if i > 1 else (4, 0)
            conv = _conv(channels, out * width, kernel, rngs, stride, padding=padding)
            channels = out * width
            setattr(self, f"conv{i}", nnx.Sequential(conv, _norm(rngs, momentum)(channels), nnx.relu))
            side = (side - 3) // 2 + 1 if i in (1, 2, 5) else side
        if side < 1:
            raise RangeError(f"size must be at least 67 pixels for an AlexNet; got {size}")
        self.fc6 = _dense(channels * side**2, 64 * width, momentum, rngs)
        self.fc7 = _dense(64 * width, 64 * width, momentum, rngs)
        self.head = _head(64 * width, dim, projection, whiten, rngs)

    def features(self, x: Array) -> Array:
        """(B, C, size, size) -> (B, 64 * width)."""
        _check_size(x, self.size)
        x = jnp.moveaxis(x, 1, -1)
        for i in range(1, 6):
            x = getattr(self, f"conv{i}")(x)
            x = _pooled(x) if i in (1, 2, 5) else x
        features: Array = self.fc7(self.fc6(_flat(x)))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, C, size, size) -> (B, dim)."""
        return self.head(self.features(x))


class VGG16(nnx.Module):
    """VGG16 (Simonyan and Zisserman 2015) as Local Aggregation published it, without dropout.

    Batch norm stands on the last convolution of each block and on ``fc6`` and ``fc7``. For images of ``size`` pixels.
    Layers ``conv1_1`` to ``conv5_3``, ``fc6`` and ``fc7`` each end in their ReLU.
    """

    initial: ClassVar[str] = "he"
    blocks: ClassVar[tuple[tuple[int, int], ...]] = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
    """Width in units of ``width``, and number of convolutions."""

    def __init__(
        self,
        channels: int = 3,
        dim: int = 128,
        width: int = 64,
        *,
        size: int = 224,
        momentum: float = 0.1,
        projection: int | None = None,
        whiten: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.size = size
        if size < 32:
            raise RangeError(f"size must be at least 32 pixels for a VGG16; got {size}")
        for block, (out, depth) in enumerate(self.blocks, 1):
            for i in range(1, depth + 1):
                last = i == depth
                norm = [_norm(rngs, momentum)(out * width)] if last else []
                conv = _conv(channels, out * width, 3, rngs, use_bias=not last)
                setattr(self, f"conv{block}_{i}", nnx.Sequential(conv, *norm, nnx.relu))
                channels = out * width
        self.fc6 = _dense(channels * (size // 32) ** 2, 64 * width, momentum, rngs)
        self.fc7 = _dense(64 * width, 64 * width, momentum, rngs)
        self.head = _head(64 * width, dim, projection, whiten, rngs)

    def features(self, x: Array) -> Array:
        """(B, C, size, size) -> (B, 64 * width)."""
        _check_size(x, self.size)
        x = jnp.moveaxis(x, 1, -1)
        for block, (_, depth) in enumerate(self.blocks, 1):
            for i in range(1, depth + 1):
                x = getattr(self, f"conv{block}_{i}")(x)
            x = _halved(x)
        features: Array = self.fc7(self.fc6(_flat(x)))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, C, size, size) -> (B, dim)."""
        return self.head(self.features(x))


class _Torchvision(nnx.Module):
    """``features``, ``avgpool`` and ``classifier``, whose last layer makes the embedding, as torchvision lays them out.

    A place that torchvision gives to dropout is empty here.
    """

    initial: ClassVar[str] = "he"
    smallest: ClassVar[int]

    def __init__(
        self, convolutions: Sequence[Layer], features: int, side: int, hidden: int, head: Layer, rngs: nnx.Rngs
    ) -> None:
        self.features = nnx.Sequential(*convolutions)
        self.avgpool = partial(_averaged, side=side)
        first, second = _linear(features * side**2, hidden, rngs), _linear(hidden, hidden, rngs)
        self.classifier = nnx.Sequential(*self._dense(first, second), head)

    def _dense(self, first: Layer, second: Layer) -> list[Layer]:
        raise NotImplementedError

    @property
    def head(self) -> Layer:
        """What makes the embedding: ``classifier.6``."""
        made: Layer = self.classifier.layers[-1]
        return made

    def before_head(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, 64 * width)."""
        _check_least(x, self.smallest)
        x = _flat(self.avgpool(self.features(jnp.moveaxis(x, 1, -1))))
        for layer in self.classifier.layers[:-1]:
            x = layer(x)
        return x

    def __call__(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, dim)."""
        return self.head(self.before_head(x))


class TorchvisionAlexNet(_Torchvision):
    """AlexNet with the parts, names and shapes of ``torchvision.models.alexnet``, without its dropout.

    There is no batch norm in it; Local Aggregation was published with :class:`AlexNet`. For images of 63 pixels or
    more.
    """

    smallest = 63

    def __init__(
        self,
        channels: int = 3,
        dim: int = 128,
        width: int = 64,
        *,
        projection: int | None = None,
        whiten: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        layers: list[Layer] = []
        for i, (out, size, stride) in enumerate(((1, 11, 4), (3, 5, 1), (6, 3, 1), (4, 3, 1), (4, 3, 1)), 1):
            padding = 2 if i == 1 else None
            layers += [_conv(channels, out * width, size, rngs, stride, padding=padding, use_bias=True), nnx.relu]
            channels = out * width
            if i in (1, 2, 5):
                layers.append(_pooled)
        super().__init__(layers, channels, 6, 64 * width, _head(64 * width, dim, projection, whiten, rngs), rngs)

    def _dense(self, first: Layer, second: Layer) -> list[Layer]:
        return [_same, first, nnx.relu, _same, second, nnx.relu]


class TorchvisionVGG16(_Torchvision):
    """VGG16 with the parts, names and shapes of ``torchvision.models.vgg16_bn``, without its dropout.

    Batch norm stands on every convolution and on no dense layer; Local Aggregation was published with :class:`VGG16`.
    For images of 32 pixels or more.
    """

    smallest = 32
    blocks: ClassVar[tuple[tuple[int, int], ...]] = VGG16.blocks

    def __init__(
        self,
        channels: int = 3,
        dim: int = 128,
        width: int = 64,
        *,
        momentum: float = 0.1,
        projection: int | None = None,
        whiten: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        layers: list[Layer] = []
        for out, depth in self.blocks:
            for _ in range(depth):
                conv = _conv(channels, out * width, 3, rngs, use_bias=True)
                layers += [conv, _norm(rngs, momentum)(out * width), nnx.relu]
                channels = out * width
            layers.append(_halved)
        super().__init__(layers, channels, 7, 64 * width, _head(64 * width, dim, projection, whiten, rngs), rngs)

    def _dense(self, first: Layer, second: Layer) -> list[Layer]:
        return [first, nnx.relu, _same, second, nnx.relu, _same]


NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    made.__name__: made
    for made in (SmallCNN, Perceptron, ResNet18, ResNet50, AlexNet, VGG16, TorchvisionAlexNet, TorchvisionVGG16)
}


def network(name: str, *, rngs: nnx.Rngs | None = None, **options: Any) -> nnx.Module:
    """A network by its name: ``network(preset.network, **preset.options)``.

    Raises
    ------
    RangeError
        There is no such network: says which there are.
    """
    return chosen("network", name, NETWORKS)(rngs=nnx.Rngs(0) if rngs is None else rngs, **options)
