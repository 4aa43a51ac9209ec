"""Samples of whatever the user has: any sized indexable source, with the classes where they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from la_core.data import arrays, images
from la_core.data.image_folder import ImageFolder
from la_core.errors import DataError


class Source(Protocol):
    """Anything sized and indexable: an array, a memory-mapped array, a list, a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class Samples:
    """A source with, if they are known, the classes of its samples. Classes serve evaluation only."""

    source: Source
    classes: np.ndarray | None = None
    """(N,) integers of at least 0, kept as int64. Where every one is -1, as data sets mark what is not known: None."""
    class_names: tuple[str, ...] = ()
    """By class, if they have names."""

    def __post_init__(self) -> None:
        if len(self.source) == 0:
            raise DataError("the source is empty: there is nothing to embed")
        if self.classes is None:
            return
        if self.classes.shape != (len(self.source),):
            raise DataError(
                f"classes must have shape ({len(self.source)},), one for each sample; got {self.classes.shape}"
            )
        if self.classes.dtype.kind not in "iu":
            raise DataError(
                f"classes must be integers; got {self.classes.dtype}: names, classes = numpy.unique(..., "
                "return_inverse=True) numbers what are words"
            )
        classes = self.classes.astype(np.int64, copy=False)  # other libraries lack some of NumPy's integers
        if classes.min() < 0 and (classes != -1).any():
            raise DataError(f"classes must be at least 0, or all of them -1; the least is {classes.min()}")
        object.__setattr__(self, "classes", None if classes.min() < 0 else classes)

    def __len__(self) -> int:
        return len(self.source)

    def part(self, indices: np.ndarray) -> Samples:
        """Some of the samples, by their numbers or by a mask (N,), numbered anew from 0.

        Raises
        ------
        DataError
            Neither of the two.
        """
        indices = np.asarray(indices)
        if indices.dtype == bool and indices.shape == (len(self),):
            indices = np.flatnonzero(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise DataError(
                f"part takes numbers of samples, or a mask ({len(self)},); got {indices.shape} {indices.dtype}"
            )
        if indices.size and not -len(self) <= indices.min() <= indices.max() < len(self):
            raise DataError(f"part takes numbers of the {len(self)} samples; got {indices.min()} to {indices.max()}")
        classes = None if self.classes is None else self.classes[indices]
        return Samples(Part(self.source, indices), classes, self.class_names)

    def __getitem__(self, index: int) -> np.ndarray:
        """The sample as it is: an image (H, W[, C]) uint8, or any float array."""
        try:
            item = self.source[index]
            if isinstance(item, tuple | list):  # (sample, label, ...), as map-style data sets give it
                item = item[0]
            sample = images.pixels(item) if images.is_image(item) else np.asarray(item)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"sample {index} cannot be read: {error}") from error
        if sample.dtype == object:
            got = type(item).__name__
            if isinstance(item, Mapping):
                got += f" with {', '.join(map(str, item))}: la_core.data.from_hub takes one column"
            raise DataError(f"sample {index} must be an array or an image; got {got}")
        if not sample.ndim:
            raise DataError(f"sample {index} must be an array or an image; got a single number: rows must be arrays")
        if sample.dtype.kind == "f" and not np.isfinite(sample).all():
            raise DataError(f"sample {index} holds NaN or infinity")
        return sample


class Part:
    """Some samples of a source, in an order of their own."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.indices[index])]


def samples(data: object, classes: Any = None) -> Samples:
    """Samples of whatever the user has.

    Parameters
    ----------
    data
        One of

        - :class:`Samples`, as it is;
        - an array, in memory or memory-mapped: features (N, F), float16, float32 or float64, or images
          (N, H, W[, C]), uint8;
        - the path of an ``.npy`` file of one, which is memory-mapped, or of an ``.npz`` file (:func:`load_npz`, its
          training samples);
        - the path of a folder of images, or an :class:`ImageFolder`, which has options;
        - any sized indexable source of such rows, of Pillow images, or of tuples that begin with one. Gray Pillow
          images stay gray, others become RGB.
    classes
        (N,) integers of at least 0, if they are known. By default the source's ``classes``, ``targets`` or ``labels``,
        if it has any such of the right length.

    Raises
    ------
    DataError
        An empty source, one that is not sized and indexable, or an array of anything else.
    """
    if isinstance(data, str | Path):
        data = _opened(Path(data))
    if isinstance(data, Samples):
        return data if classes is None else Samples(data.source, np.asarray(classes), data.class_names)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, Mapping):
        raise DataError(f"data must be sized and indexable (len(data), data[i]); got {type(data).__name__}")
    if isinstance(data, np.ndarray):
        data = arrays.movable(arrays.checked(data, "the array"))
    if classes is None:
        classes = next(
            (
                found
                for found in (getattr(data, name, None) for name in ("classes", "targets", "labels"))
                if found is not None
                and np.ndim(found) == 1
                and len(found) == len(data)
                and np.asarray(found).dtype.kind in "iu"
            ),
            None,
        )
    names = getattr(data, "class_names", ())
    return Samples(data, None if classes is None else np.asarray(classes), tuple(names))


def _opened(path: Path) -> Samples | ImageFolder | arrays.MappedArray | np.ndarray:
    if path.suffix.lower() == ".npz":
        return load_npz(path)[0]
    if path.suffix.lower() == ".npy":
        return arrays.movable(arrays.checked(arrays.load_npy(path), str(path)))
    if path.is_file():
        raise DataError(f"{path} is neither a folder of images nor an .npy or .npz file")
    return ImageFolder(path)


def load_npz(path: str | Path) -> tuple[Samples, Samples | None]:
    """Train and, if there are any, test samples of an ``.npz`` file, read into memory.

    It holds ``images`` (N, H, W[, C]) uint8 or ``features`` (N, F) float and, if there are any, ``labels`` (N,),
    ``test_images`` or ``test_features``, and ``test_labels``.

    Raises
    ------
    DataError
        No such file, no such arrays, or not of that shape and dtype.
    """
    names = ("images", "features", "labels", "test_images", "test_features", "test_labels")
    found = arrays.load_npz(path, names)
    kinds = [name for name in names[:2] if name in found]
    if len(kinds) != 1:
        raise DataError(f"{path} must hold one of 'images' (N, H, W[, C]) and 'features' (N, F); it holds {len(kinds)}")
    (kind,) = kinds
    for name in (kind, f"test_{kind}"):
        array = found.get(name)
        if array is None:
            continue
        if kind == "images" and (array.ndim not in (3, 4) or array.dtype != np.uint8):
            raise DataError(
                f"'{name}' in {path} must be (N, H, W) or (N, H, W, C) uint8; got {array.shape} {array.dtype}"
            )
        arrays.checked(array, f"'{name}' in {path}")
    test = found.get(f"test_{kind}")
    return (
        Samples(found[kind], found.get("labels")),
        None if test is None else Samples(test, found.get("test_labels")),
    )
