"""A data set of the Hugging Face hub: rows that are dictionaries, with the type of each column beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from la_core.data import images
from la_core.data.sources import Samples
from la_core.errors import DataError, SettingsError


def from_hub(dataset: Any, column: str = "image", label: str | None = "label", *, mode: str | None = "RGB") -> Samples:
    """Samples of one column of a data set of the ``datasets`` library.

    Parameters
    ----------
    dataset
        One split, as ``datasets.load_dataset(name, split="train")`` gives it. A transform that it has is applied; a
        format (``with_format("torch")``) is not, for it would take images out of their mode and layout.
    column
        Images, decoded or not, or features, of the dtype that the data set declares.
    label
        The column of the classes: integers, with their names where the data set has them, or strings, which are
        numbered in their order. Without such a column, or where every class is -1, as in a test split that keeps them
        back, they are not known.
    mode
        ``"RGB"``: every image has three channels, as mixed data sets need; ``"L"``: every image is gray; None: each as
        it is.

    Raises
    ------
    DataError
        Several splits, a stream, no such column, or a row without an image: says which.
    """
    if mode not in (None, *images.MODES):
        raise SettingsError(f"mode must be one of {', '.join(map(repr, images.MODES))}, or None; got {mode!r}")
    if isinstance(dataset, Mapping):
        raise DataError(f"choose a split, as in dataset[{next(iter(dataset), 'train')!r}]; got {', '.join(dataset)}")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError("a stream has no rows to come back to: load the data set with streaming=False")
    names = list(dataset.column_names)
    for name, asked in (("column", column), ("label", label)):
        if asked not in names and asked is not None and (name, asked) != ("label", "label"):
            raise DataError(f"there is no {name} {asked!r}; the columns are {', '.join(names)}")
    plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    transformed = (getattr(dataset, "format", None) or {"type": "custom"})["type"] == "custom"
    features = getattr(dataset, "features", None) or {}
    classes: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    if label is not None and label in names:
        classes, class_names = _classes(plain, label, features.get(label))
    rows = _Column(dataset if transformed else plain, column, mode, _dtype(features.get(column)))
    return Samples(rows, classes, class_names)


class _Column:
    def __init__(self, dataset: Any, column: str, mode: str | None, dtype: np.dtype | None) -> None:
        self._dataset, self._column, self._mode, self._dtype = dataset, column, mode, dtype

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        item = self._dataset[index][self._column]
        if item is None:
            raise DataError(f"row {index} has nothing in column {self._column!r}")
        if isinstance(item, Mapping) and {"bytes", "path"} <= set(item):  # an image that is not decoded
            try:
                content = item["bytes"]
                return images.read(Path(item["path"]) if content is None else io.BytesIO(content), self._mode)
            except DataError as error:
                raise DataError(f"the image of row {index} ({item['path']}) cannot be read: {error}") from error
        if isinstance(item, list):  # a list of numbers, or of lists; not of a sample and its label
            try:
                return np.asarray(item, self._dtype)
            except (TypeError, ValueError) as error:
                raise DataError(f"row {index} has no array of numbers in column {self._column!r}: {error}") from error
        return images.pixels(item, self._mode) if images.is_image(item) else item


def _dtype(feature: Any) -> np.dtype | None:
    """Of the numbers in a column: its type is ``List(Value("float32"))``, ``Array2D(shape, "uint8")`` or such."""
    while feature is not None and not isinstance(getattr(feature, "dtype", None), str):
        feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    try:
        return None if feature is None else np.dtype(feature.dtype)
    except TypeError:  # not a name of NumPy's, such as "string"
        return None


def _classes(dataset: Any, label: str, feature: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Numbers of the classes, where they are known, and names, where they have any."""
    column = dataset[label][:]  # of a lazy column each row by itself would take a thousand times as long
    if None in column:
        raise DataError(f"row {column.index(None)} has no class in column {label!r}; label=None does without classes")
    found = np.asarray(column)
    if found.dtype.kind == "U":
        names, numbers = np.unique(found, return_inverse=True)
        return numbers, tuple(map(str, names))
    if found.dtype.kind == "b":
        return found.astype(np.int64), ()
    known = found.dtype.kind != "i" or (found != -1).any()
    return (found if known else None), tuple(getattr(feature, "names", None) or ())
