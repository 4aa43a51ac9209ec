"""Views of a sample: what the encoder sees of it, at random while it learns, always the same when it is evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Protocol

import numpy as np

from la_core.errors import DataError, SettingsError


class View(Protocol):
    """Turns a sample into what the encoder takes."""

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """A random view when given a generator, else the one evaluation view."""
        ...


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """Views of feature vectors: Gaussian noise, and coordinates set to zero. The evaluation view is the vector."""

    noise: float = 0.0
    """Standard deviation, in units of the features."""
    drop: float = 0.0
    """Share of the coordinates set to zero."""

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and 0 <= self.drop < 1):
            raise SettingsError(
                f"noise must be at least 0 and drop between 0 and 1; got noise {self.noise}, drop {self.drop}"
            )

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """(F,) -> (F,) float32."""
        x = sample.astype(np.float32)
        if rng is not None and self.noise:
            x = x + np.float32(self.noise) * rng.standard_normal(x.shape, dtype=np.float32)
        if rng is not None and self.drop:
            x = np.where(rng.random(x.shape) < self.drop, np.float32(0), x)
        return x


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """Views of images by Pillow: resized crop, affine, grayscale, colour jitter, flip.

    The evaluation view is the largest centred square. Both are resized to ``size`` and leave as (C, size, size)
    float32, minus ``mean``, over ``std``. The defaults are the published augmentation.
    """

    size: int = 224
    crop: tuple[float, float] = (0.2, 1.0)
    """Range of the area of the crop, as a share of the image. (1, 1): no crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the aspect of the crop."""
    degrees: float = 0.0
    """Rotation up to this much either way."""
    shift: float = 0.0
    """Translation up to this share of the size either way, along each axis."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the zoom, drawn evenly in its logarithm."""
    shear: float = 0.0
    """Shear up to this many degrees either way."""
    flip: float = 0.5
    """Chance of a mirror image."""
    grayscale: float = 0.2
    """Chance of losing the colour."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.4)
    """Strength of the change of brightness, contrast, saturation and hue, in random order."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Of each channel. A gray image takes the mean of three."""

    def __post_init__(self) -> None:
        ranges = {"crop": (self.crop, 1.0), "ratio": (self.ratio, math.inf), "scale": (self.scale, math.inf)}
        shares = {"shift": self.shift, "flip": self.flip, "grayscale": self.grayscale}
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise SettingsError(f"size must be an integer of at least 1; got {self.size!r}")
        for name, ((low, high), most) in ranges.items():
            if not 0 < low <= high <= most:
                limit = "" if most == math.inf else f" and at most {most:g}"
                raise SettingsError(f"{name} must be a range (low, high) above 0{limit}; got {(low, high)}")
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise SettingsError(f"{name} must be between 0 and 1; got {share}")
        if not 0 <= self.shear < 90:
            raise SettingsError(f"shear must be at least 0 and below 90 degrees; got {self.shear}")
        if len(self.jitter) != 4 or not all(0 <= j <= 1 for j in self.jitter) or self.jitter[3] > 0.5:
            raise SettingsError(
                f"jitter must be brightness, contrast and saturation between 0 and 1, and hue between 0 and 0.5; "
                f"got {self.jitter}"
            )

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """(H, W[, C]) uint8 -> (C, size, size) float32."""
        if sample.dtype != np.uint8 or sample.ndim not in (2, 3):
            raise DataError(f"an image must be (H, W) or (H, W, C) uint8; got {sample.shape} {sample.dtype}")
        whole = _pillow().fromarray(sample[:, :, 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample)
        image = self._centre(whole) if rng is None else self._random(whole, rng)
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        if pixels.shape[0] != mean.size:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        scaled: np.ndarray = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        return scaled

    def _centre(self, image: Any) -> Any:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return self._resize(image, (left, top, left + side, top + side))

    def _resize(self, image: Any, box: tuple[float, ...]) -> Any:
        return image.resize((self.size, self.size), _pillow().Resampling.BILINEAR, box=box)

    def _random(self, image: Any, rng: np.random.Generator) -> Any:
        pillow = _pillow()
        image = self._resize(image, self._crop_box(image.width, image.height, rng))
        if self.degrees or self.shift or self.shear or self.scale != (1.0, 1.0):
            affine, bilinear = pillow.Transform.AFFINE, pillow.Resampling.BILINEAR
            image = image.transform(image.size, affine, self._affine(rng), bilinear)
        if image.mode == "RGB" and rng.random() < self.grayscale:
            image = image.convert("L").convert("RGB")
        image = self._jittered(image, rng)
        if rng.random() < self.flip:
            image = image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _crop_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[float, ...]:
        if self.crop == (1.0, 1.0):
            return (0, 0, width, height)
        for _ in range(10):  # the usual rejection: ten tries, then the whole image
            area = rng.uniform(*self.crop) * width * height
            aspect = np.exp(rng.uniform(np.log(self.ratio[0]), np.log(self.ratio[1])))
            w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
            if w <= width and h <= height:
                left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                return (left, top, left + w, top + h)
        return (0, 0, width, height)

    def _affine(self, rng: np.random.Generator) -> tuple[float, ...]:
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        shear = math.tan(math.radians(rng.uniform(-self.shear, self.shear)))
        zoom = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        right, down = (self.size * shift for shift in rng.uniform(-self.shift, self.shift, 2).tolist())
        # Pillow maps output to input, about the corner; this turns about the centre. Rows of the inverse of
        # zoom * turn * shear:
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        a, b, c, d = cos + shear * sin, sin - shear * cos, -sin, cos
        half = self.size / 2
        x, y = half + right, half + down
        return (a, b, half - a * x - b * y, c, d, half - c * x - d * y)

    def _jittered(self, image: Any, rng: np.random.Generator) -> Any:
        for which in rng.permutation(4).tolist():
            strength = self.jitter[which]
            if not strength or (image.mode != "RGB" and which >= 2):
                continue
            amount = rng.uniform(-strength, strength)
            less = None if which == 3 else _without(which, image)
            image = _turn_hue(image, amount) if less is None else _pillow().blend(less, image, 1 + amount)
        return image


@cache
def _pillow() -> Any:
    """``PIL.Image``, looked up once: a view asks for it several times."""
    from PIL import Image

    return Image


@lru_cache(4)
def _black(mode: str, size: tuple[int, int]) -> Any:
    return _pillow().new(mode, size)


def _without(which: int, image: Any) -> Any:
    """The image without light (0), without contrast (1), or without colour (2): what a blend moves away from or to.

    What Pillow's ``ImageEnhance`` blends with, whose mean takes a third of the time of a small view.
    """
    if which == 0:
        return _black(image.mode, image.size)
    gray = image if image.mode == "L" else image.convert("L")
    if which == 1:
        pixels = np.frombuffer(gray.tobytes(), np.uint8)
        gray = _pillow().new("L", image.size, int(int(pixels.sum()) / pixels.size + 0.5))
    return gray if image.mode == "L" else gray.convert(image.mode)


def default_view(sample: np.ndarray) -> View:
    """The published augmentation for an image (H, W[, C]) uint8, at its own size; anything else as it is."""
    if sample.dtype == np.uint8 and sample.ndim in (2, 3):
        return ImageView(size=min(sample.shape[:2]))
    return FeatureView()


def _turn_hue(image: Any, amount: float) -> Any:
    """Turn the hue by ``amount`` of a full circle, in [-0.5, 0.5]."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int32) + round(amount * 256)) % 256
    return _pillow().merge("HSV", (_pillow().fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
