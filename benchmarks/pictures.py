"""Three sets of real images that ship with installed packages, split so that no original is on both sides.

digits     handwritten digits of scikit-learn, each somewhere on a canvas, at some scale and angle; class: the digit
scenes     patches of colour photographs; class: the photograph; test patches come from parts that training never saw
surfaces   gray patches of textures, tissue, sky and terrain, at any angle, with brightness and contrast made equal;
           class: the surface; the same split
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from la_core.data import Samples
from la_core.digits import VIEW, placed_digits
from la_core.randomness import generator
from la_core.views import ImageView

SIDE = 24
"""Of every image, in pixels."""
FLAT = 12.0
"""Standard deviation of the values below which a patch is not taken, of 255."""


@dataclass(frozen=True)
class Set:
    """Images with what may change about them without a change of meaning."""

    train: Samples
    test: Samples
    view: ImageView
    channels: int


def digits() -> Set:
    """2 874 training images of 1 437 originals, 1 080 test images of 360."""
    train, test = placed_digits(copies=2)
    view = ImageView(**{**VIEW.__dict__, "size": SIDE})
    return Set(train, test, view, 1)


def scenes() -> Set:
    """Patches of 48 pixels, reduced to 24."""
    view = ImageView(
        size=SIDE,
        crop=(0.3, 1.0),
        jitter=(0.4, 0.4, 0.2, 0.03),
        grayscale=0.0,  # colour is much of what a photograph is known by
        mean=(0.45, 0.42, 0.4),
        std=(0.25, 0.25, 0.25),
    )
    return Set(*_patches(_photographs(), 48, 200, turned=False), view, 3)


def surfaces() -> Set:
    """Patches of 40 pixels at any angle, reduced to 24."""
    view = ImageView(size=SIDE, crop=(0.3, 1.0), jitter=(0.4, 0.4, 0.0, 0.0), grayscale=0.0, mean=(0.5,), std=(0.2,))
    return Set(*_patches(_surfaces(), 40, 200, turned=True), view, 1)


SETS: dict[str, Callable[[], Set]] = {"digits": digits, "scenes": scenes, "surfaces": surfaces}


def _photographs() -> dict[str, np.ndarray]:
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder = Path(skimage.data.__file__).parent
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png",
             "hubble_deep_field.jpg", "retina.jpg")  # fmt: skip
    found = {name: np.asarray(Image.open(folder / name).convert("RGB")) for name in names}
    samples = load_sample_images()
    for name, image in zip(samples.filenames, samples.images, strict=True):
        found[Path(name).name] = image
    return found


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


def _patches(pictures: dict[str, np.ndarray], side: int, each: int, *, turned: bool) -> tuple[Samples, Samples]:
    """``each`` training patches of every picture and half as many test patches, from tiles of a chessboard."""
    parts: dict[str, tuple[list[np.ndarray], list[int]]] = {"train": ([], []), "test": ([], [])}
    for label, (name, picture) in enumerate(sorted(pictures.items())):
        for part, (images, classes) in parts.items():
            rng = generator(0, f"patches {part} {name}")
            for _ in range(each if part == "train" else each // 2):
                images.append(_patch(picture, side, part == "test", rng, turned))
                classes.append(label)
    train, test = (Samples(np.stack(images), np.array(classes)) for images, classes in parts.values())
    return train, test


def _patch(picture: np.ndarray, side: int, test: bool, rng: np.random.Generator, turned: bool) -> np.ndarray:
    """One patch from inside a tile; of every four by four tiles the four on the diagonal are the test's."""
    from PIL import Image

    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    tiles = [(i, j) for i in range(4) for j in range(4) if (i == j) == test]
    reach = min(side * (1.42 if turned else 1.0), rows, columns)
    for _ in range(20):  # flat patches show nothing, of whatever picture
        i, j = tiles[rng.integers(len(tiles))]
        top, left = i * rows + rng.uniform(0, rows - reach), j * columns + rng.uniform(0, columns - reach)
        if picture[int(top) : int(top + reach), int(left) : int(left + reach)].std(axis=(0, 1)).mean() > FLAT:
            break
    box = (left, top, left + reach, top + reach)
    if not turned:
        patch = Image.fromarray(picture).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BILINEAR, box=box)
        return np.asarray(patch)
    whole = Image.fromarray(picture).resize((57, 57), Image.Resampling.BILINEAR, box=box)
    whole = whole.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    pixels = np.asarray(whole, np.float64)[8:48, 8:48]
    pixels = 128 + 45 * (pixels - pixels.mean()) / max(pixels.std(), 4.0)
    return np.clip(pixels, 0, 255).astype(np.uint8)
