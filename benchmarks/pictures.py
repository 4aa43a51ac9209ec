"""Sets of real images that ship with installed packages, split so that no original is on both sides.

digits       handwritten digits of scikit-learn, each somewhere on a canvas, at some scale and angle; class: the digit
surfaces     gray patches of photographs: textures, tissue, sky, terrain, at any angle, with brightness and contrast
             made equal; class: the picture; test patches come from parts of it that training never saw: as one
             part is a harder test than another, each quarter of the pictures is the test of one fold of four
pictograms   signs of matplotlib's fonts, each somewhere on a noisy canvas, at some scale, angle, slant and darkness;
             class: the sign; test signs are of typefaces that training never saw
photographs  the same as the surfaces of ten pictures of things and pages, on which no setting was ever chosen

Settings are chosen on another split, made of the training originals alone in the same way: ``validation=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from la_core.data import Samples
from la_core.digits import VIEW, placed_digits
from la_core.randomness import generator
from la_core.views import ImageView

SIDE = 24
"""Of every image, in pixels."""
SIGNS = "☀☁☂☃★☎☕☘☠☢☯♞♜♣♥♫♻⚓⚔✂✈✉❄⚛"
TYPEFACES = ("Sans", "Sans-Bold", "SansMono", "Sans-BoldOblique", "Sans-Oblique", "SansMono-Bold")
"""Of the family DejaVu, the last two for the test."""
FLAT = 12.0
"""Standard deviation of the values below which a patch is not taken, of 255."""


@dataclass(frozen=True)
class Set:
    """Images with what may change about them without a change of meaning."""

    train: Samples
    test: Samples
    view: ImageView
    channels: int


def digits(validation: bool = False) -> Set:
    """2 874 training images of 1 437 originals, 1 080 test images of 360."""
    train, test = placed_digits(copies=2)
    if validation:
        cut = len(train) * 4 // 5  # an even number: copies stay together
        train, test = (Samples(train.source[part], train.classes[part]) for part in (slice(cut), slice(cut, None)))
    view = ImageView(**{**VIEW.__dict__, "size": SIDE})
    return Set(train, test, view, 1)


def surfaces(validation: bool = False, fold: int = 0) -> Set:
    """2 000 training patches of ten surfaces, 1 000 test patches of another quarter of each."""
    return _patch_set(_surfaces(), validation, fold)


def photographs(validation: bool = False, fold: int = 0) -> Set:
    """2 000 training patches of ten photographs, 1 000 test patches of another quarter of each."""
    return _patch_set(_photographs(), validation, fold)


def _patch_set(pictures: dict[str, np.ndarray], validation: bool, fold: int) -> Set:
    view = ImageView(size=SIDE, crop=(0.3, 1.0), jitter=(0.4, 0.4, 0.0, 0.0), grayscale=0.0, mean=(0.5,), std=(0.2,))
    train, test = (_patches(pictures, _tiles(part, fold), part, each) for part, each in _PARTS[validation].items())
    return Set(train, test, view, 1)


def pictograms(validation: bool = False) -> Set:
    """2 400 training images of 24 signs in four typefaces, 960 test images in two others."""
    train, test = (TYPEFACES[:3], TYPEFACES[3:4]) if validation else (TYPEFACES[:4], TYPEFACES[4:])
    return Set(_signs("train", train, 25), _signs("test", test, 20), digits().view, 1)


SETS: dict[str, tuple[Callable[[bool], Set], ...]] = {
    "digits": (digits,),
    "surfaces": tuple(partial(surfaces, fold=fold) for fold in range(4)),
    "pictograms": (pictograms,),
    "photographs": tuple(partial(photographs, fold=fold) for fold in range(4)),
}
"""Of each set its folds: what is the test in one is in the training of the others."""


def _surfaces() -> dict[str, np.ndarray]:
    import matplotlib
    import skimage.data
    from PIL import Image

    folder = Path(skimage.data.__file__).parent
    names = ("brick.png", "grass.png", "gravel.png", "ihc.png", "hubble_deep_field.jpg", "cell.png", "moon.png",
             "retina.jpg", "coins.png")  # fmt: skip
    found = {name: np.asarray(Image.open(folder / name).convert("L")) for name in names}
    terrain = np.load(Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz")["elevation"]
    slope = np.gradient(terrain.astype(np.float64))[0]
    found["terrain"] = np.clip(128 + 400 * slope / np.abs(slope).max(), 0, 255).astype(np.uint8)
    return found


def _photographs() -> dict[str, np.ndarray]:
    import skimage.data
    import sklearn.datasets
    from PIL import Image

    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "page.png",
             "rocket.jpg", "text.png")  # fmt: skip
    folder = Path(skimage.data.__file__).parent
    files = [folder / name for name in names]
    files += [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
    return {file.name: np.asarray(Image.open(file).convert("L")) for file in files}


_PARTS = {False: {"train": 200, "test": 100}, True: {"fit": 200, "validation": 100}}
"""Patches of each picture, with and without a validation split."""


def _tiles(part: str, fold: int) -> list[tuple[int, int]]:
    """Of four by four: those on one diagonal are the test's, those beside it on one side may be the validation's."""
    diagonals = {"test": (0,), "validation": (1,), "fit": (2, 3), "train": (1, 2, 3)}[part]
    return [(i, j) for i in range(4) for j in range(4) if (j - i - fold) % 4 in diagonals]


def _patches(pictures: dict[str, np.ndarray], tiles: list[tuple[int, int]], part: str, each: int) -> Samples:
    """``each`` patches of every picture, from these tiles."""
    images, classes = [], []
    for label, (name, picture) in enumerate(sorted(pictures.items())):
        rng = generator(0, f"patches {part} {name}")
        images += [_patch(picture, tiles, rng) for _ in range(each)]
        classes += [label] * each
    return Samples(np.stack(images), np.array(classes))


def _patch(picture: np.ndarray, tiles: list[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
    """One patch of 40 pixels from inside one of these tiles."""
    from PIL import Image

    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    reach = min(57, rows, columns)
    for _ in range(20):  # flat patches show nothing, of whatever picture
        i, j = tiles[rng.integers(len(tiles))]
        top, left = i * rows + rng.uniform(0, rows - reach), j * columns + rng.uniform(0, columns - reach)
        if picture[int(top) : int(top + reach), int(left) : int(left + reach)].std(axis=(0, 1)).mean() > FLAT:
            break
    whole = Image.fromarray(picture).resize((57, 57), Image.Resampling.BILINEAR, (left, top, left + reach, top + reach))
    pixels = np.asarray(whole.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR), np.float64)[8:48, 8:48]
    return np.clip(128 + 45 * (pixels - pixels.mean()) / max(pixels.std(), 4.0), 0, 255).astype(np.uint8)


def _signs(part: str, typefaces: tuple[str, ...], copies: int) -> Samples:
    """Every sign in every typeface, ``copies`` times, on canvases of 28 pixels."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, classes = [], []
    for label, sign in enumerate(SIGNS):
        for typeface in typefaces:
            large = Image.new("L", (96, 96))
            font = ImageFont.truetype(str(folder / f"DejaVu{typeface}.ttf"), 64)
            ImageDraw.Draw(large).text((48, 48), sign, fill=255, font=font, anchor="mm")
            for copy in range(copies):
                rng = generator(0, f"sign {part} {sign} {typeface}", copy)
                zoom = rng.uniform(0.16, 0.30)
                angle, slant = np.deg2rad(rng.uniform(-35, 35)), rng.uniform(-0.3, 0.3)
                turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                inverse = np.linalg.inv(zoom * turn @ np.array([[1.0, slant], [0.0, 1.0]]))
                offset = 48 - inverse @ (14 + rng.uniform(-6, 6, 2))
                how = (*inverse[0], offset[0], *inverse[1], offset[1])
                placed = large.transform((28, 28), Image.Transform.AFFINE, how, Image.Resampling.BICUBIC)
                ink = rng.uniform(0.5, 1.0) * np.asarray(placed, np.float64)
                images.append(np.clip(ink + 12 * rng.standard_normal(ink.shape), 0, 255).astype(np.uint8))
                classes.append(label)
    return Samples(np.stack(images), np.array(classes))
