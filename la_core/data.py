"""Samples with their dataset indices: any sized indexable source, the order of an epoch, a batch.

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
from la_core.views import View


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


# Batches -------------------------------------------------------------------------------------------------------------


def batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Dataset indices of every batch of an epoch: a pure function of its arguments.

    As few batches as ``batch_size`` allows, of sizes that differ by at most one: no last batch is so small that its
    gradient, or its batch norm, is worth nothing.
    """
    return np.array_split(generator(seed, "order", epoch).permutation(n), -(-n // batch_size))


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
