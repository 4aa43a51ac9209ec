"""PyTorch networks: an image batch (B, C, H, W) or a feature batch (B, F) to embeddings (B, dim).

Each has ``features(x)``, the backbone's output (B, F), and ``head``, which makes the embedding of it: one linear layer,
as published, or with ``projection`` hidden units Linear, batch norm, ReLU, Linear. ``whiten`` is how many coordinates
of the embedding are whitened together (:class:`Whiten`), so that embeddings neither drift together nor spend several
coordinates on one thing; 1 is batch norm without scale and shift, and 0 leaves it out. ``la_core.backends.jax`` has
twins with the same names, so that weights move between them. ``initial`` is the rule by which :func:`initialise` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from la_core import check, whitening
from la_core.errors import RangeError, ShapeError
from la_core.initial import draws
from la_core.presets import chosen

Norm = Callable[[int], nn.Module]


def _conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, stride, size // 2, bias=False)


class Whiten(nn.Module):
    """Embeddings whitened in groups of coordinates: over the batch in training, by running statistics in evaluation.

    In float32 at least, whatever autocast says. See :mod:`la_core.whitening`.
    """

    running_mean: Tensor
    running_covariance: Tensor

    def __init__(self, dim: int, size: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_covariance", torch.eye(size).repeat(whitening.groups(dim, size), 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        kind = x.device.type
        known = torch.amp.autocast_mode.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if known else nullcontext():
            return self._whitened(x.to(self.running_mean.dtype))

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{self.running_mean.shape[0]}, {self.running_covariance.shape[-1]}, momentum={self.momentum}"

    def _whitened(self, x: Tensor) -> Tensor:
        mean, covariance = self.running_mean, self.running_covariance
        if self.training:
            mean, covariance = whitening.moments(x, covariance.shape[-1])
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_covariance.lerp_(covariance.detach(), self.momentum)
        rows: Tensor = whitening.whitened(x, mean, covariance)
        return rows


def _head(features: int, dim: int, projection: int | None, whiten: int) -> nn.Module:
    # What takes the mean takes a bias away again; its gradient would be noise, which Adam magnifies.
    last = nn.Linear(features if projection is None else projection, dim, bias=not whiten)
    layers: list[nn.Module] = [last]
    if projection is not None:
        layers = [nn.Linear(features, projection, bias=False), nn.BatchNorm1d(projection), nn.ReLU(), last]
    if whiten:
        layers.append(nn.BatchNorm1d(dim, affine=False) if whiten == 1 else Whiten(dim, whiten))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _dense(rows: int, columns: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(rows, columns, bias=False), nn.BatchNorm1d(columns, momentum=momentum), nn.ReLU(inplace=True)
    )


def _channels_last(module: nn.Module) -> None:
    """Order the weights in memory as CPUs convolve faster: a step takes 0.6 of the time. Values are the same."""
    move: Any = module.to  # typed without memory_format
    move(memory_format=torch.channels_last)


def _check_size(x: Tensor, size: int) -> None:
    if x.ndim != 4 or x.shape[2:] != (size, size):
        raise ShapeError(f"this network was made for images (B, C, {size}, {size}); got {tuple(x.shape)}")


def _check_least(x: Tensor, size: int) -> None:
    if x.ndim != 4 or min(x.shape[2:]) < size:
        raise ShapeError(f"this network takes images (B, C, H, W) of at least {size} pixels; got {tuple(x.shape)}")


class SmallCNN(nn.Module):
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
    ) -> None:
        super().__init__()
        check.count("unpooled", unpooled, blocks - 1, "all convolutions but the last", least=0)
        body: list[nn.Module] = []
        for block in range(blocks):
            out = width * 2**block
            body += [_conv(channels, out, 3), nn.BatchNorm2d(out)]
            if unpooled <= block < blocks - 1:  # ReLU of a maximum is the maximum of ReLU, at a quarter of the places
                body.append(nn.MaxPool2d(2))
            body.append(nn.ReLU(inplace=True))
            channels = out
        self.body = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.least = 2 ** (blocks - 1 - unpooled)
        self.head = _head(channels, dim, projection, whiten)
        _channels_last(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width * 2 ** (blocks - 1))."""
        _check_least(x, self.least)
        features: Tensor = self.body(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        z: Tensor = self.head(self.features(x))
        return z


class Perceptron(nn.Module):
    """Linear layers with batch norm and ReLU between them; a batch is flattened first."""

    initial: ClassVar[str] = "uniform"

    def __init__(self, sizes: Sequence[int], *, projection: int | None = None, whiten: int = 0) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for rows, columns in pairwise(sizes[:-1]):
            body += [nn.Linear(rows, columns, bias=False), nn.BatchNorm1d(columns), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body)
        self.head = _head(sizes[-2], sizes[-1], projection, whiten)

    def features(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, sizes[-2])."""
        features: Tensor = self.body(x.flatten(1))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, sizes[-1])."""
        z: Tensor = self.head(self.features(x))
        return z


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1, around which the input passes.

    In the form of He et al. 2016a, conv-norm-ReLU, or of 2016b with ``preactivation``, norm-ReLU-conv.
    """

    def __init__(
        self, channels: int, width: int, stride: int, *, bottleneck: bool, preactivation: bool, norm: Norm
    ) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        layers = [(channels, width, 3, stride), (width, out, 3, 1)]
        if bottleneck:
            layers = [(channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        for i, (rows, columns, size, step) in enumerate(layers, 1):
            self.add_module(f"conv{i}", _conv(rows, columns, size, step))
            self.add_module(f"bn{i}", norm(rows if preactivation else columns))
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(_conv(channels, out, 1, stride), *([] if preactivation else [norm(out)]))
        self.depth, self.preactivation = len(layers), preactivation

    def forward(self, x: Tensor) -> Tensor:
        y = past = x
        for i in range(1, self.depth + 1):
            conv, bn = self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}")
            if self.preactivation:
                y = relu(bn(y))
                if i == 1 and self.downsample is not None:
                    past = self.downsample(y)
                y = conv(y)
            else:
                y = bn(conv(y))
                y = relu(y) if i < self.depth else y
        if self.preactivation:
            return past + y
        return relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """What the ResNets share. Parts and names are torchvision's; ``fc`` makes the embedding.

    Parameters
    ----------
    channels, dim
        Of an image, and of an embedding.
    width
        Channels of the stem, 64 as published.
    stem
        ``"imagenet"``, 7 x 7 with stride 2 and a pooling, or ``"small"``, 3 x 3 for images below 100 pixels.
    preactivation
        The second form (He et al. 2016b), which the Local Aggregation paper uses: norm and ReLU before each
        convolution and once more at the end. Its weights do not fit the first form.
    momentum
        Weight of a batch in the running statistics.
    projection
        Hidden units of a two-layer head.
    whiten
        Coordinates of the embedding that are whitened together; 1 is batch norm, 0 none.
    """

    initial: ClassVar[str] = "he"
    blocks: ClassVar[tuple[int, ...]]
    """Residual blocks in each of four stages."""
    bottleneck: ClassVar[bool]
    """Blocks of 1 x 1, 3 x 3 (which has the stride) and 1 x 1; else of two 3 x 3."""

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
    ) -> None:
        super().__init__()
        check.choice("stem", stem, ("imagenet", "small"))
        norm = partial(nn.BatchNorm2d, momentum=momentum)
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = _conv(channels, width, size, stride)
        self.bn1 = nn.Identity() if preactivation else norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inside = width
        for stage, n_blocks in enumerate(self.blocks):
            inner = width * 2**stage
            parts = []
            for block in range(n_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                parts.append(
                    _Residual(inside, inner, stride, bottleneck=self.bottleneck, preactivation=preactivation, norm=norm)
                )
                inside = 4 * inner if self.bottleneck else inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*parts))
        self.bn5 = norm(inside) if preactivation else nn.Identity()
        self.fc = _head(inside, dim, projection, whiten)
        self.preactivation = preactivation

    @property
    def head(self) -> nn.Module:
        """What makes the embedding of the features: ``fc``."""
        return self.fc

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F), F of 8 or 32 times the width."""
        x = self.bn1(self.conv1(x))
        x = self.maxpool(x if self.preactivation else relu(x))
        for stage in range(len(self.blocks)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        x = relu(self.bn5(x)) if self.preactivation else x
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        z: Tensor = self.fc(self.features(x))
        return z


class ResNet18(ResNet):
    """ResNet-18 (He et al. 2016): see :class:`ResNet`."""

    blocks = (2, 2, 2, 2)
    bottleneck = False


class ResNet50(ResNet):
    """ResNet-50 (He et al. 2016): see :class:`ResNet`."""

    blocks = (3, 4, 6, 3)
    bottleneck = True


class AlexNet(nn.Module):
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
    ) -> None:
        super().__init__()
        self.size = size
        side = (size - 11) // 4 + 1
        for i, (out, kernel) in enumerate(((1, 11), (3, 5), (6, 3), (6, 3), (4, 3)), 1):
            conv = _conv(channels, out * width, kernel) if i > 1 else nn.Conv2d(channels, width, 11, 4, bias=False)
            channels = out * width
            self.add_module(
                f"conv{i}", nn.Sequential(conv, nn.BatchNorm2d(channels, momentum=momentum), nn.ReLU(inplace=True))
            )
            side = (side - 3) // 2 + 1 if i in (1, 2, 5) else side
        if side < 1:
            raise RangeError(f"size must be at least 67 pixels for an AlexNet; got {size}")
        self.fc6 = _dense(channels * side**2, 64 * width, momentum)
        self.fc7 = _dense(64 * width, 64 * width, momentum)
        self.head = _head(64 * width, dim, projection, whiten)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, size, size) -> (B, 64 * width)."""
        _check_size(x, self.size)
        for i in range(1, 6):
            x = self.get_submodule(f"conv{i}")(x)
            x = max_pool2d(x, 3, 2) if i in (1, 2, 5) else x
        features: Tensor = self.fc7(self.fc6(x.flatten(1)))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, size, size) -> (B, dim)."""
        z: Tensor = self.head(self.features(x))
        return z


class VGG16(nn.Module):
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
    ) -> None:
        super().__init__()
        self.size = size
        if size < 32:
            raise RangeError(f"size must be at least 32 pixels for a VGG16; got {size}")
        for block, (out, depth) in enumerate(self.blocks, 1):
            for i in range(1, depth + 1):
                last = i == depth
                norm = [nn.BatchNorm2d(out * width, momentum=momentum)] if last else []
                conv = nn.Conv2d(channels, out * width, 3, padding=1, bias=not last)
                self.add_module(f"conv{block}_{i}", nn.Sequential(conv, *norm, nn.ReLU(inplace=True)))
                channels = out * width
        self.fc6 = _dense(channels * (size // 32) ** 2, 64 * width, momentum)
        self.fc7 = _dense(64 * width, 64 * width, momentum)
        self.head = _head(64 * width, dim, projection, whiten)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, size, size) -> (B, 64 * width)."""
        _check_size(x, self.size)
        for block, (_, depth) in enumerate(self.blocks, 1):
            for i in range(1, depth + 1):
                x = self.get_submodule(f"conv{block}_{i}")(x)
            x = max_pool2d(x, 2)
        features: Tensor = self.fc7(self.fc6(x.flatten(1)))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, size, size) -> (B, dim)."""
        z: Tensor = self.head(self.features(x))
        return z


class _Torchvision(nn.Module):
    """``features``, ``avgpool`` and ``classifier``, whose last layer makes the embedding, as torchvision lays them out.

    A place that torchvision gives to dropout is empty here.
    """

    initial: ClassVar[str] = "he"
    smallest: ClassVar[int]
    """Pixels of an image."""

    def __init__(
        self, convolutions: Sequence[nn.Module], features: int, side: int, hidden: int, head: nn.Module
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*convolutions)
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        first, second = nn.Linear(features * side**2, hidden), nn.Linear(hidden, hidden)
        self.classifier = nn.Sequential(*self._dense(first, second), head)

    def _dense(self, first: nn.Linear, second: nn.Linear) -> list[nn.Module]:
        raise NotImplementedError

    @property
    def head(self) -> nn.Module:
        """What makes the embedding: ``classifier.6``."""
        return self.classifier[-1]

    def before_head(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64 * width)."""
        _check_least(x, self.smallest)
        features: Tensor = self.classifier[:-1](self.avgpool(self.features(x)).flatten(1))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        z: Tensor = self.head(self.before_head(x))
        return z


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
    ) -> None:
        layers: list[nn.Module] = []
        for i, (out, size, stride, padding) in enumerate(
            ((1, 11, 4, 2), (3, 5, 1, 2), (6, 3, 1, 1), (4, 3, 1, 1), (4, 3, 1, 1)), 1
        ):
            layers += [nn.Conv2d(channels, out * width, size, stride, padding), nn.ReLU(inplace=True)]
            channels = out * width
            if i in (1, 2, 5):
                layers.append(nn.MaxPool2d(3, 2))
        super().__init__(layers, channels, 6, 64 * width, _head(64 * width, dim, projection, whiten))

    def _dense(self, first: nn.Linear, second: nn.Linear) -> list[nn.Module]:
        return [nn.Identity(), first, nn.ReLU(inplace=True), nn.Identity(), second, nn.ReLU(inplace=True)]


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
    ) -> None:
        layers: list[nn.Module] = []
        for out, depth in self.blocks:
            for _ in range(depth):
                norm = nn.BatchNorm2d(out * width, momentum=momentum)
                layers += [nn.Conv2d(channels, out * width, 3, padding=1), norm, nn.ReLU(inplace=True)]
                channels = out * width
            layers.append(nn.MaxPool2d(2))
        super().__init__(layers, channels, 7, 64 * width, _head(64 * width, dim, projection, whiten))

    def _dense(self, first: nn.Linear, second: nn.Linear) -> list[nn.Module]:
        return [first, nn.ReLU(inplace=True), nn.Identity(), second, nn.ReLU(inplace=True), nn.Identity()]


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    made.__name__: made
    for made in (SmallCNN, Perceptron, ResNet18, ResNet50, AlexNet, VGG16, TorchvisionAlexNet, TorchvisionVGG16)
}


def network(name: str, **options: Any) -> nn.Module:
    """A network by its name: ``network(preset.network, **preset.options)``.

    Raises
    ------
    RangeError
        There is no such network: says which there are.
    """
    return chosen("network", name, NETWORKS)(**options)


def initialise(module: nn.Module, seed: int, rule: str | None = None) -> nn.Module:
    """Draw the weights of dense layers and convolutions anew, in place, by :func:`la_core.initial.draws`.

    By default with the rule that the module names as ``initial``, or ``"uniform"``.
    """
    parameters = dict(module.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    drawn = draws(shapes, seed, rule or str(getattr(module, "initial", "uniform")))
    with torch.no_grad():
        for name, x in drawn.items():
            parameters[name].copy_(torch.from_numpy(x))
    return module
