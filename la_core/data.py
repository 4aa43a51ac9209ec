"""Samples with their dataset indices: any sized indexable source, the order of an epoch, and views of a sample.

A sample is addressed by its place in the source, always: that number is its row in the bank, before any shuffling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from la_core.errors import DataError
from la_core.randomness import generator


class Source(Protocol):
    """Anything sized and indexable: an array, a memory-mapped array, a list, a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class Samples:
    """A source with, if they are known, the classes of its samples. Classes serve evaluation only."""

    source: Source
    classes: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.source) == 0:
            raise DataError("the source is empty: there is nothing to embed")
        if self.classes is not None and self.classes.shape != (len(self.source),):
            raise DataError(
                f"classes must have shape ({len(self.source)},), one for each sample; got {self.classes.shape}"
            )

    def __len__(self) -> int:
        return len(self.source)

    def part(self, indices: np.ndarray) -> Samples:
        """Some of the samples, numbered anew from 0."""
        return Samples(_Part(self.source, indices), None if self.classes is None else self.classes[indices])

    def __getitem__(self, index: int) -> np.ndarray:
        """The sample as it is: an image (H, W[, C]) uint8, or any float array."""
        try:
            item = self.source[index]
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"sample {index} cannot be read: {error}") from error
        if isinstance(item, tuple | list):  # (sample, label, ...), as map-style data sets give it
            item = item[0]
        sample = np.asarray(item)
        if sample.dtype == object:
            raise DataError(f"sample {index} must be an array or an image; got {type(item).__name__}")
        if sample.dtype.kind == "f" and not np.isfinite(sample).all():
            raise DataError(f"sample {index} holds NaN or infinity")
        return sample


class _Part:
    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self._indices[index])]


def samples(data: object, classes: Any = None) -> Samples:
    """Samples of whatever the user has.

    Parameters
    ----------
    data
        :class:`Samples` (as it is), an array (N, ...) or memory-mapped array, the path of a folder of images, or any
        sized indexable source of samples or of tuples that begin with one.
    classes
        (N,) integers, if they are known. By default the source's ``classes`` array or ``targets``, if it has one of
        the right length.

    Raises
    ------
    DataError
        An empty source, or one that is not sized and indexable.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, str | Path):
        data = ImageFolder(data)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DataError(f"data must be sized and indexable (len(data), data[i]); got {type(data).__name__}")
    if classes is None:
        classes = next(
            (
                found
                for found in (getattr(data, "classes", None), getattr(data, "targets", None))
                if found is not None
                and np.ndim(found) == 1
                and len(found) == len(data)
                and np.asarray(found).dtype.kind in "iu"
            ),
            None,
        )
    return Samples(data, None if classes is None else np.asarray(classes))


class ImageFolder:
    """The images under a folder, at any depth, in order of their path. Decoded one by one, when they are asked for.

    ``classes`` numbers the first-level subfolders by name, if every image lies in one and there are at least two.
    """

    def __init__(self, root: str | Path) -> None:
        from PIL import Image

        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder")
        suffixes = set(Image.registered_extensions())
        self.files = sorted(f for f in self.root.rglob("*") if f.suffix.lower() in suffixes and f.is_file())
        if not self.files:
            raise DataError(f"there is no image under {self.root} (looked for .png, .jpg and what else Pillow reads)")
        parents = [f.relative_to(self.root).parts[:-1] for f in self.files]
        names = sorted({p[0] for p in parents if p})
        self.class_names = names if all(parents) and len(names) > 1 else []
        self.classes = np.array([names.index(p[0]) for p in parents]) if self.class_names else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        """The image as (H, W) or (H, W, 3) uint8, upright.

        Raises
        ------
        DataError
            The file cannot be decoded: names it.
        """
        from PIL import Image, ImageOps

        file = self.files[index]
        try:
            with Image.open(file) as image:
                upright = ImageOps.exif_transpose(image)
                return np.asarray(upright if upright.mode == "L" else upright.convert("RGB"))
        except Exception as error:
            raise DataError(f"the image {file} cannot be read: {error}") from error


def load_npz(path: str | Path) -> tuple[Samples, Samples | None]:
    """Train and, if there are any, test samples of an ``.npz`` file.

    It holds ``images`` (N, H, W[, C]) uint8 and, if there are any, ``labels`` (N,), ``test_images``, ``test_labels``.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "labels", "test_images", "test_labels") if name in file}
    except Exception as error:
        raise DataError(f"{path} cannot be read as an .npz of arrays: {error}") from error
    if "images" not in arrays:
        raise DataError(f"{path} must hold an array named 'images' (N, H, W[, C])")
    for name in ("images", "test_images"):
        if name in arrays and (arrays[name].ndim not in (3, 4) or arrays[name].dtype != np.uint8):
            raise DataError(
                f"'{name}' in {path} must be (N, H, W) or (N, H, W, C) uint8; "
                f"got {arrays[name].shape} {arrays[name].dtype}"
            )
    test = arrays.get("test_images")
    return (
        Samples(arrays["images"], arrays.get("labels")),
        None if test is None else Samples(test, arrays.get("test_labels")),
    )


# The order of an epoch -------------------------------------------------------------------------------------------


def batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Dataset indices of every batch of an epoch: a pure function of its arguments. The last batch may be short."""
    order = generator(seed, "order", epoch).permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]


# Views -----------------------------------------------------------------------------------------------------------


class View(Protocol):
    """Turns a sample into what the encoder takes."""

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """A random view when given a generator, else the one evaluation view."""
        ...


def load(data: Samples, indices: Sequence[int] | np.ndarray, view: View, key: tuple[int, int] | None) -> np.ndarray:
    """A batch of views: random by ``key = (seed, epoch)`` and sample; without a key, the evaluation views."""
    rows = []
    for i in map(int, indices):
        rng = None if key is None else generator(key[0], "view", key[1], i)
        rows.append(view(data[i], rng))
    try:
        return np.stack(rows)
    except ValueError:
        shapes = sorted({row.shape for row in rows})
        raise DataError(f"the samples of a batch must have one shape; got {shapes}: give train a view") from None


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """Views of feature vectors: Gaussian noise, and coordinates set to zero. The evaluation view is the vector."""

    noise: float = 0.0
    """Standard deviation, in units of the features."""
    drop: float = 0.0
    """Share of the coordinates set to zero."""

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

    def __call__(self, sample: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """(H, W[, C]) uint8 -> (C, size, size) float32."""
        from PIL import Image

        if sample.dtype != np.uint8 or sample.ndim not in (2, 3):
            raise DataError(f"an image must be (H, W) or (H, W, C) uint8; got {sample.shape} {sample.dtype}")
        whole = Image.fromarray(sample[:, :, 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample)
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
        from PIL import Image

        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)

    def _random(self, image: Any, rng: np.random.Generator) -> Any:
        from PIL import Image

        image = self._resize(image, self._crop_box(image.width, image.height, rng))
        if self.degrees or self.shift or self.shear or self.scale != (1.0, 1.0):
            image = image.transform(image.size, Image.Transform.AFFINE, self._affine(rng), Image.Resampling.BILINEAR)
        if image.mode == "RGB" and rng.random() < self.grayscale:
            image = image.convert("L").convert("RGB")
        image = self._jittered(image, rng)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
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
        angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees))
        shear = np.tan(np.deg2rad(rng.uniform(-self.shear, self.shear)))
        zoom = np.exp(rng.uniform(np.log(self.scale[0]), np.log(self.scale[1])))
        shift = rng.uniform(-self.shift, self.shift, 2) * self.size
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        # Pillow maps output to input, about the corner; this turns about the centre.
        inverse = np.linalg.inv(zoom * turn @ np.array([[1.0, shear], [0.0, 1.0]]))
        centre = np.full(2, self.size / 2)
        offset = centre - inverse @ (centre + shift)
        return (*inverse[0], offset[0], *inverse[1], offset[1])

    def _jittered(self, image: Any, rng: np.random.Generator) -> Any:
        from PIL import ImageEnhance

        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for which in rng.permutation(4):
            strength = self.jitter[which]
            if not strength or (image.mode != "RGB" and which >= 2):
                continue
            amount = rng.uniform(-strength, strength)
            image = _turn_hue(image, amount) if which == 3 else enhancers[which](image).enhance(1 + amount)
        return image


def _turn_hue(image: Any, amount: float) -> Any:
    """Turn the hue by ``amount`` of a full circle, in [-0.5, 0.5]."""
    from PIL import Image

    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int32) + round(amount * 256)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
