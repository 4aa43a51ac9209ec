"""Small flax NNX encoders: an image batch (B, C, H, W) or a feature batch (B, F) to embeddings (B, D).

Each has ``features``, the layer before the embedding, and ``head``. Images come channels first, as everywhere in
la_core, and are turned channels last at the door, as XLA likes them. Weights start as PyTorch draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_he = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


def _linear(rows: int, columns: int, rngs: nnx.Rngs, *, use_bias: bool = True) -> nnx.Linear:
    def bias(key: Array, shape: Sequence[int], *args: Any, **kwargs: Any) -> Array:
        return jax.random.uniform(key, tuple(shape), jnp.float32, -(rows**-0.5), rows**-0.5)

    return nnx.Linear(rows, columns, use_bias=use_bias, kernel_init=_fan_in, bias_init=bias, rngs=rngs)


def _conv(channels: int, out: int, size: int, rngs: nnx.Rngs, stride: int = 1, init: Any = _fan_in) -> nnx.Conv:
    return nnx.Conv(
        *(channels, out, (size, size)),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=init,
        rngs=rngs,
    )


def _halved(x: Array) -> Array:
    """The largest of every 2 x 2 pixels, as a reshape: its derivative is cheaper than that of a window."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))


def _mean(x: Array) -> Array:
    return x.mean(axis=(1, 2))


class SmallCNN(nnx.Module):
    """3 x 3 convolutions with batch norm, each at half the size and twice the width; global mean; one linear head.

    For images of about 24 to 96 pixels. A larger one wants a :class:`ResNet18`.
    """

    def __init__(self, channels: int, dim: int = 128, width: int = 32, blocks: int = 4, *, rngs: nnx.Rngs) -> None:
        body: list[Callable[..., Array]] = []
        for block in range(blocks):
            out = width * 2**block
            body += [_conv(channels, out, 3, rngs), _norm(out, rngs=rngs), nnx.relu]
            body.append(_halved if block < blocks - 1 else _mean)
            channels = out
        self.body = nnx.Sequential(*body)
        self.head = _linear(channels, dim, rngs)

    def features(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, F)."""
        features: Array = self.body(jnp.moveaxis(x, 1, -1))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, dim)."""
        return self.head(self.features(x))


class _Block(nnx.Module):
    """Two 3 x 3 convolutions around which the input passes."""

    def __init__(self, channels: int, out: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = _conv(channels, out, 3, rngs, stride, _he)
        self.first_norm = _norm(out, rngs=rngs)
        self.second = _conv(out, out, 3, rngs, 1, _he)
        self.second_norm = _norm(out, rngs=rngs)
        changes = stride != 1 or channels != out
        around = [_conv(channels, out, 1, rngs, stride, _he), _norm(out, rngs=rngs)] if changes else []
        self.past = nnx.Sequential(*around) if changes else None

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.first_norm(self.first(x)))
        past: Array = x if self.past is None else self.past(x)
        return nnx.relu(past + self.second_norm(self.second(y)))


class ResNet18(nnx.Module):
    """ResNet-18 (He et al. 2016) with a linear head to (B, dim).

    ``stem`` is ``"imagenet"``, 7 x 7 with stride 2 and a pooling, or ``"small"``, 3 x 3 for images below 100 pixels.
    """

    def __init__(
        self, channels: int = 3, dim: int = 128, width: int = 64, stem: str = "imagenet", *, rngs: nnx.Rngs
    ) -> None:
        size, stride = {"imagenet": (7, 2), "small": (3, 1)}[stem]
        pool = [partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))]
        body: list[Callable[..., Array]] = [_conv(channels, width, size, rngs, stride, _he), _norm(width, rngs=rngs)]
        body += [nnx.relu, *(pool if stem == "imagenet" else [])]
        inside = width
        for stage in range(4):
            out = width * 2**stage
            body += [_Block(inside, out, 1 if stage == 0 else 2, rngs), _Block(out, out, 1, rngs)]
            inside = out
        self.body = nnx.Sequential(*body, _mean)
        self.head = _linear(inside, dim, rngs)

    def features(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, 8 * width)."""
        features: Array = self.body(jnp.moveaxis(x, 1, -1))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, C, H, W) -> (B, dim)."""
        return self.head(self.features(x))


class Perceptron(nnx.Module):
    """Linear layers with batch norm and ReLU between them; a batch is flattened first."""

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs) -> None:
        layers: list[Callable[..., Array]] = []
        for rows, columns in pairwise(sizes[:-1]):
            layers += [_linear(rows, columns, rngs, use_bias=False), _norm(columns, rngs=rngs), nnx.relu]
        self.body = nnx.Sequential(*layers)
        self.head = _linear(sizes[-2], sizes[-1], rngs)

    def features(self, x: Array) -> Array:
        """(B, ...) -> (B, sizes[-2])."""
        features: Array = self.body(x.reshape(len(x), -1))
        return features

    def __call__(self, x: Array) -> Array:
        """(B, ...) -> (B, sizes[-1])."""
        return self.head(self.features(x))
