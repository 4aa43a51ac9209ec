"""Views of a sample: what the encoder sees of it, at random while it learns, always the same when it is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias

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
        if not (0 <= self.noise < math.inf and 0 <= self.drop < 1):
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


def of_channels(values: Sequence[float], channels: int) -> np.ndarray:
    """One number for each channel; for all of them the mean, where there are as many as of other images."""
    x = np.array(values, np.float32)
    return x if x.size == channels else x.mean(keepdims=True)


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
        if not math.isfinite(self.degrees):
            raise SettingsError(f"degrees must be finite; got {self.degrees}")
        if not {len(self.mean), len(self.std)} <= {1, 3}:
            raise SettingsError(f"mean and std must have one or three numbers; got {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(0 < x < math.inf for x in self.std):
            raise SettingsError(f"mean must be finite, and std above 0; got mean {self.mean}, std {self.std}")
        if not 0 <= self.shear < 90:
            raise SettingsError(f"shear must be at least 0 and below 90 degrees; got {self.shear}")
        if len(self.jitter) != 4 or not all(0 <= j <= 1 for j in self.jitter) or self.jitter[3] > 0.5:
            raise SettingsError(
                f"jitter must be brightness, contrast and saturation between 0 and 1, and hue between 0 and 0.5; "
                f"got {self.jitter}"
            )

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """(H, W[, C]) uint8 -> (C, size, size) float32."""
        row: np.ndarray = self.finish(self.begin([sample], None if rng is None else [rng]))[0]
        return row

    def begin(self, samples: Sequence[np.ndarray], rngs: Sequence[np.random.Generator] | None) -> list[Begun]:
        """Of images (H, W[, C]) uint8 what Pillow does: all but brightness and contrast of gray ones, and the scaling.

        All are taken through a step before the next begins: its instructions stay in the processor's cache.

        Raises
        ------
        DataError
            Not such arrays.
        """
        for sample in samples:
            if sample.dtype != np.uint8 or sample.ndim not in (2, 3):
                raise DataError(f"an image must be (H, W) or (H, W, C) uint8; got {sample.shape} {sample.dtype}")
        samples = [sample[:, :, 0] if sample.shape[2:] == (1,) else sample for sample in samples]
        if rngs is None:
            return [Begun(self._evaluated(sample), ()) for sample in samples]
        drawn = [self._draw(sample.shape, rng) for sample, rng in zip(samples, rngs, strict=True)]
        images = [_pillow().fromarray(sample) for sample in samples]
        images = [self._resize(image, one.box) for image, one in zip(images, drawn, strict=True)]
        if self._moves:
            affine, bilinear = _pillow().Transform.AFFINE, _pillow().Resampling.BILINEAR
            images = [
                image.transform(image.size, affine, one.affine, bilinear)
                for image, one in zip(images, drawn, strict=True)
            ]
        return [_recoloured(image, one) for image, one in zip(images, drawn, strict=True)]

    def finish(self, begun: Sequence[Begun]) -> np.ndarray:
        """Views (B, C, size, size) float32 of what was begun, all gray or all of one number of channels."""
        pixels = np.stack([np.asarray(one.pixels) for one in begun])
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        scaled = pixels.astype(np.float32, order="C")
        _level(scaled, [one.levels for one in begun])
        mean, std = (of_channels(x, scaled.shape[1]) for x in (self.mean, self.std))
        scaled /= 255
        scaled -= mean[:, None, None]
        scaled /= std[:, None, None]
        return scaled

    def _evaluated(self, sample: np.ndarray) -> Any:
        if sample.shape[:2] == (self.size, self.size) and sample.shape[2:] in ((), (3,)):
            return sample  # as Pillow would leave it
        return self._centre(_pillow().fromarray(sample))

    def _centre(self, image: Any) -> Any:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return self._resize(image, (left, top, left + side, top + side))

    def _resize(self, image: Any, box: tuple[float, ...]) -> Any:
        if image.size == (self.size, self.size) and box == (0, 0, *image.size):
            return image
        return image.resize((self.size, self.size), _pillow().Resampling.BILINEAR, box=box)

    @property
    def _moves(self) -> bool:
        return bool(self.degrees or self.shift or self.shear or self.scale != (1.0, 1.0))

    def _draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Drawn:
        """All that is random in a view of an image of this shape."""
        coloured = shape[2:] == (3,)
        return Drawn(
            box=self._crop_box(shape[1], shape[0], rng),
            affine=self._affine(rng) if self._moves else (),
            grayscale=coloured and rng.random() < self.grayscale,
            levels=self._levels(coloured, rng),
            flip=rng.random() < self.flip,
        )

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
        turn, bend, grow, along, down = rng.random(5).tolist()
        angle = math.radians(_between(-self.degrees, self.degrees, turn))
        shear = math.tan(math.radians(_between(-self.shear, self.shear, bend)))
        zoom = math.exp(_between(math.log(self.scale[0]), math.log(self.scale[1]), grow))
        right, down = (self.size * _between(-self.shift, self.shift, share) for share in (along, down))
        # Pillow maps output to input, about the corner; this turns about the centre. Rows of the inverse of
        # zoom * turn * shear:
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        a, b, c, d = cos + shear * sin, sin - shear * cos, -sin, cos
        half = self.size / 2
        x, y = half + right, half + down
        return (a, b, half - a * x - b * y, c, d, half - c * x - d * y)

    def _levels(self, coloured: bool, rng: np.random.Generator) -> Levels:
        chosen = [which for which in rng.permutation(4).tolist() if self.jitter[which] and (coloured or which < 2)]
        return tuple((which, _between(-self.jitter[which], self.jitter[which], rng.random())) for which in chosen)


Levels: TypeAlias = tuple[tuple[int, float], ...]
"""Which of brightness (0), contrast (1), saturation (2) and hue (3) is changed by how much, in order."""


class Drawn(NamedTuple):
    """What is random in a view, in the order in which it is drawn."""

    box: tuple[float, ...]
    """Left, top, right and bottom of the crop, in pixels."""
    affine: tuple[float, ...]
    """Of each place in the view the place in the crop, as Pillow has it; () where nothing moves."""
    grayscale: bool
    levels: Levels
    flip: bool


class Begun(NamedTuple):
    """A view of an image without the last of its arithmetic."""

    pixels: Any
    """(H, W) or (H, W, C) uint8, or Pillow's image of them."""
    levels: Levels
    """Of a gray image, what is still to be changed."""


def _recoloured(image: Any, drawn: Drawn) -> Begun:
    levels = drawn.levels
    if drawn.grayscale:
        image = image.convert("L").convert("RGB")
    if image.mode != "L":
        image, levels = _jittered(image, levels), ()
    return Begun(image.transpose(_pillow().Transpose.FLIP_LEFT_RIGHT) if drawn.flip else image, levels)


def _between(low: float, high: float, share: float) -> float:
    """What ``Generator.uniform(low, high)`` makes of the number in [0, 1) that it draws."""
    return low + (high - low) * share


def _level(pixels: np.ndarray, levels: Sequence[Levels]) -> None:
    """Change brightness and contrast of gray images (B, 1, H, W), float32 of whole numbers, as Pillow's blend would.

    Which is truncated and clipped to 8 bits after each change. Of a small image Pillow's calls take longer than its
    pixels; here a call serves a batch.
    """
    for step in range(max(map(len, levels), default=0)):
        each = [one[step] if step < len(one) else (0, 0.0) for one in levels]
        amounts = np.array([1 + amount for _, amount in each], np.float32)[:, None, None, None]
        middle = np.array([which == 1 for which, _ in each])[:, None, None, None] * _middle(pixels)
        pixels -= middle
        pixels *= amounts
        pixels += middle
        np.trunc(np.clip(pixels, 0, 255, out=pixels), out=pixels)


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The mean of each image, rounded to a whole number: (B, 1, 1, 1) float32."""
    means = pixels.mean(axis=(1, 2, 3), dtype=np.float64, keepdims=True)  # exact: a sum of whole numbers
    whole: np.ndarray = np.trunc(means + 0.5).astype(np.float32)
    return whole


def _jittered(image: Any, levels: Levels) -> Any:
    for which, amount in levels:
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
    gray = image.convert("L")
    if which == 1:
        pixels = np.frombuffer(gray.tobytes(), np.uint8)
        gray = _pillow().new("L", image.size, int(int(pixels.sum()) / pixels.size + 0.5))
    return gray.convert(image.mode)


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
