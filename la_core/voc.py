"""Detection on PASCAL VOC 2007: a folder of its layout, average precision by its rules, weights for its backbone.

    JPEGImages/000005.jpg   Annotations/000005.xml   ImageSets/Main/trainval.txt

Everything here works on NumPy arrays; ``examples/finetune_voc.py`` trains a detector with it. Boxes are
``(x1, y1, x2, y2)`` in pixels, measured from the left upper corner of the image to edges of pixels: what VOC's files
write as first and last pixel, counted from 1, is [first - 1, last]. The overlap of two boxes is then VOC's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from la_core import check
from la_core.data import images
from la_core.errors import DataError, KindError, NotFiniteError, RangeError, ShapeError
from la_core.export import HEADS

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The twenty of PASCAL VOC. A label is a place in here."""


class Objects(NamedTuple):
    """What is to be found in an image."""

    boxes: np.ndarray
    """(M, 4) float64."""
    labels: np.ndarray
    """(M,) int64."""
    difficult: np.ndarray
    """(M,) bool: neither asked for nor counted against a detector."""


class Detections(NamedTuple):
    """What a detector claims of an image."""

    boxes: np.ndarray
    """(D, 4) float."""
    labels: np.ndarray
    """(D,) integers."""
    scores: np.ndarray
    """(D,) float, higher is surer."""


class VOC:
    """A split of a folder of VOC's layout. Annotations are read here, all of them; images when they are asked for.

    Parameters
    ----------
    root
        The folder that holds ``JPEGImages``, ``Annotations`` and ``ImageSets``, such as ``VOCdevkit/VOC2007``.
    split
        A list under ``ImageSets/Main``, without ``.txt``: ``"trainval"``, ``"test"``. The first word of a line counts.
    classes
        Names of the objects; a label is a place in it.

    Attributes
    ----------
    ids
        Names of the images, in the order of the list.
    objects
        The :class:`Objects` of each.

    Raises
    ------
    DataError
        A file that is missing, an annotation that is no such XML, an object of another class, a box that is empty or
        not inside of its image: names the file.
    """

    def __init__(self, root: str | Path, split: str, classes: Sequence[str] = CLASSES) -> None:
        self.root, self.split, self.classes = Path(root), split, tuple(classes)
        file = self.root / "ImageSets" / "Main" / f"{split}.txt"
        self.ids = [words[0] for line in _text(file).splitlines() if (words := line.split())]
        if not self.ids:
            raise DataError(f"{file} names no images")
        if strange := [name for name in self.ids if Path(name).name != name or "\\" in name]:
            raise DataError(f"{file} names an image outside of JPEGImages: {strange[0]!r}")
        missing = [path for name in self.ids for path in self._files(name) if not path.is_file()]
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{file} names images whose files are missing: {missing[0]}{more}")
        read = [_annotation(self._files(name)[1], self.classes) for name in self.ids]
        self.objects, self._sizes = [objects for objects, _ in read], [size for _, size in read]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Objects]:
        """The image (H, W, 3) uint8, as it is stored, and what is in it.

        Raises
        ------
        DataError
            The image cannot be read, or has not the size that its annotation says.
        """
        file, annotation = self._files(self.ids[index])
        try:
            with images.open_regular(file) as stream:
                image = images.read(stream)
        except DataError as error:
            raise DataError(f"the image {file} cannot be read: {error}") from error
        width, height = self._sizes[index]
        if image.shape[:2] != (height, width):
            raise DataError(f"{file} is {image.shape[1]} x {image.shape[0]}, but {annotation} says {width} x {height}")
        return image, self.objects[index]

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.root / "JPEGImages" / f"{name}.jpg", self.root / "Annotations" / f"{name}.xml"


@dataclass(frozen=True)
class AveragePrecision:
    """Of each class, by name; NaN for a class without any object that is asked for."""

    by_class: dict[str, float]
    overlap: float

    @property
    def mean(self) -> float:
        """Over the classes that have objects: mAP."""
        known = [ap for ap in self.by_class.values() if not np.isnan(ap)]
        return float(np.mean(known)) if known else float("nan")

    def __str__(self) -> str:
        lines = [f"{name:<20}{'no objects' if np.isnan(ap) else f'{ap:8.1%}'}" for name, ap in self.by_class.items()]
        return "\n".join([*lines, f"{'mean':<20}{self.mean:>8.1%}   AP at overlap {self.overlap:g}, 11 points"])


def average_precision(
    detections: Sequence[Detections],
    objects: Sequence[Objects],
    classes: Sequence[str] = CLASSES,
    *,
    overlap: float = 0.5,
) -> AveragePrecision:
    """Average precision of each class by the rules of VOC 2007 (Everingham et al., IJCV 2010).

    A detection stands for the object of its class and image that it overlaps most, if that is by ``overlap`` or more.
    The surest detection of an object is right, every other one wrong; one of a difficult object is not counted. AP is
    the mean, over recalls of at least 0, 0.1, ..., 1, of the highest precision reached.

    Precision and recall are read wherever the score falls, so that detections of equal score have no order.

    Parameters
    ----------
    detections, objects
        One of each for every image, in the same order.
    classes
        Names by label.
    overlap
        Intersection over union, in (0, 1].

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
        Names the image by its place.
    """
    check.number("overlap", overlap, 0.0, 1.0, open_low=True)
    if len(detections) != len(objects):
        raise ShapeError(
            f"there must be detections and objects for each image; got {len(detections)} and {len(objects)}"
        )
    for i, (found, there) in enumerate(zip(detections, objects, strict=True)):
        _claims(f"the detections of image {i}", found, len(classes))
        _claims(f"the objects of image {i}", there, len(classes))
    by_class = {name: _of_class(label, detections, objects, overlap) for label, name in enumerate(classes)}
    return AveragePrecision(by_class, float(overlap))


def _of_class(label: int, detections: Sequence[Detections], objects: Sequence[Objects], overlap: float) -> float:
    wanted = 0
    scores: list[np.ndarray] = []
    stands_for: list[np.ndarray] = []
    """Number of the object within the data set, -1 for none, -2 for a difficult one."""
    for found, there in zip(detections, objects, strict=True):
        mine, theirs = np.asarray(found.labels) == label, np.asarray(there.labels) == label
        boxes, difficult = np.asarray(there.boxes)[theirs], np.asarray(there.difficult, dtype=bool)[theirs]
        number = np.where(difficult, -2, wanted + np.cumsum(~difficult) - 1)
        wanted += int(np.sum(~difficult))
        scores.append(np.asarray(found.scores, dtype=np.float64)[mine])
        shares = overlaps(np.asarray(found.boxes)[mine], boxes)
        if boxes.size:
            best = shares.argmax(axis=1)
            stands_for.append(np.where(shares.max(axis=1) >= overlap, number[best], -1))
        else:
            stands_for.append(np.full(len(shares), -1))
    if not wanted:
        return float("nan")
    every, objects_of = np.concatenate(scores), np.concatenate(stands_for)
    counted = objects_of != -2
    order = np.argsort(-every[counted], kind="stable")
    every, objects_of = every[counted][order], objects_of[counted][order]
    if not every.size:
        return 0.0
    right = np.zeros(len(every), dtype=bool)
    first = np.unique(objects_of, return_index=True)[1]  # the surest detection of each object
    right[first] = objects_of[first] >= 0
    falls = np.append(every[1:] < every[:-1], True)
    hits, claims = np.cumsum(right)[falls], (np.arange(len(every)) + 1)[falls]
    precision = hits / claims
    # Recall hits / wanted >= point / 10, in integers: 0.3 is no binary fraction.
    return float(np.mean([precision[10 * hits >= point * wanted].max(initial=0.0) for point in range(11)]))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of each of the boxes (A, 4) with each of (B, 4): (A, B). An empty union is 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=2)
    area_a, area_b = (np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b))
    union = area_a[:, None] + area_b - common
    share: np.ndarray = np.divide(common, union, where=union > 0, out=np.zeros_like(common))
    return share


class Backbone(NamedTuple):
    """Weights of an encoder as those of a detector's backbone."""

    weights: dict[str, np.ndarray]
    """By the detector's names: every weight of its backbone."""
    dropped: list[str]
    """Weights of the encoder that a backbone has no use for: what makes the embedding."""


def backbone(
    weights: Mapping[str, np.ndarray], detector: Mapping[str, Sequence[int]], prefix: str = "backbone.body."
) -> Backbone:
    """Weights that :mod:`la_core.export` writes, under the names of a torchvision detector.

    Parameters
    ----------
    weights
        Of a ResNet, by PyTorch's names.
    detector
        Shape by name of everything in the detector's ``state_dict``.
    prefix
        What the names of the backbone begin with: ``"backbone.body."`` of ``resnet_fpn_backbone``. Only weights of that
        prefix are filled; feature pyramid, proposals and boxes stay as the detector drew them.

    Raises
    ------
    KindError, ShapeError
        The backbone lacks a weight, has no place for one, or one of another shape: names the first. There is no
        partial loading.
    """
    wanted = {
        name: tuple(shape)
        for name, shape in detector.items()
        if name.startswith(prefix) and not name.endswith("num_batches_tracked")
    }
    if not wanted:
        raise KindError(f"the detector has no weights whose names begin with {prefix!r}")
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    dropped = sorted(name for name in weights if name.startswith(HEADS))
    given = {prefix + name: x for name, x in weights.items() if name not in {*dropped, *counters}}
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        hint = ""
        if "bn5.weight" in weights:
            hint = ": a ResNet with pre-activation has no place in torchvision's detectors, which have the first form"
        raise KindError(f"the weights do not fit the backbone: missing {missing[:3]}, unknown {unknown[:3]}{hint}")
    for name, x in given.items():
        if tuple(x.shape) != wanted[name]:
            raise ShapeError(f"{name} of the backbone must have shape {wanted[name]}; got {tuple(x.shape)}")
    return Backbone(given, dropped)


class _Plain(ElementTree.TreeBuilder):
    """Refuses a document type before anything in it takes effect: entities that expand, or that name other files."""

    def doctype(self, *_: Any) -> None:
        raise DataError("it declares a document type, which annotations have no use for")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _annotation(file: Path, classes: Sequence[str]) -> tuple[Objects, tuple[int, int]]:
    """What is in an image, and its width and height."""
    try:
        root = ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_Plain()))
    except ElementTree.ParseError as error:
        raise DataError(f"the annotation {file} is not well-formed XML: {error}") from None
    except (OSError, ValueError, LookupError, DataError) as error:  # LookupError: an encoding that nobody knows
        raise DataError(f"the annotation {file} cannot be read: {error}") from None
    try:
        width, height = int(_number(root, "size/width")), int(_number(root, "size/height"))
        found = [_object(item, i, (width, height), classes) for i, item in enumerate(root.findall("object"), 1)]
    except DataError as error:
        raise DataError(f"the annotation {file} cannot be used: {error}") from None
    return (
        Objects(
            np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
            np.array([label for _, label, _ in found], dtype=np.int64),
            np.array([difficult for _, _, difficult in found], dtype=bool),
        ),
        (width, height),
    )


def _object(
    item: ElementTree.Element, number: int, size: tuple[int, int], classes: Sequence[str]
) -> tuple[tuple[float, ...], int, bool]:
    name = (item.findtext("name") or "").strip()
    if name not in classes:
        raise DataError(f"object {number} is of class {name!r}, which is none of {', '.join(classes)}")
    corners = ("xmin", "ymin", "xmax", "ymax")
    left, top, right, bottom = (_number(item, f"bndbox/{corner}", f"object {number} ({name}): ") for corner in corners)
    if not (1 <= left <= right <= size[0] and 1 <= top <= bottom <= size[1]):
        raise DataError(
            f"object {number} ({name}) must lie in its image, pixels 1 to {size[0]} by 1 to {size[1]}; its box is "
            f"({left:g}, {top:g}) to ({right:g}, {bottom:g})"
        )
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return (left - 1, top - 1, right, bottom), classes.index(name), difficult


def _number(item: ElementTree.Element, path: str, of: str = "") -> float:
    text = item.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{of}{path} must be a number; got {text!r}")
    return value


def _claims(what: str, given: Detections | Objects, n_classes: int) -> None:
    """Boxes, labels and scores (or difficult) of one length that can be used."""
    boxes, labels, last = (np.asarray(x) for x in given)
    if labels.ndim != 1 or last.shape != labels.shape or boxes.shape != (*labels.shape, 4):
        raise ShapeError(
            f"{what} must be (M, 4), (M,) and (M,) arrays; got {boxes.shape}, {labels.shape} and {last.shape}"
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise KindError(f"{what} must have integer labels; got dtype {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < n_classes:
        raise RangeError(f"{what} must have labels from 0 to {n_classes - 1}; got {labels.min()} to {labels.max()}")
    if not (np.isfinite(boxes).all() and np.isfinite(last).all()):
        raise NotFiniteError(f"{what} hold NaN or infinity")
    if (boxes[:, :2] > boxes[:, 2:]).any():
        raise RangeError(f"{what} hold a box (x1, y1, x2, y2) with x1 > x2 or y1 > y2")
