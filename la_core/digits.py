"""The data of the demo: real handwritten digits, each somewhere on a larger canvas, at some scale and angle.

The 1797 originals (UCI, 8 x 8, shipped with scikit-learn) are split into train and test *before* they are placed, so
that no original is on both sides. Pixels alone say little here: the same digit may be anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from la_core.data import Samples
from la_core.presets import small
from la_core.randomness import generator
from la_core.views import ImageView

CANVAS = 28
SIDE = (10.0, 18.0)
"""Range of the side of a placed digit, in pixels."""
DEGREES = 30.0
"""Range of its angle, either way."""
TEST_SHARE = 0.2
TEST_COPIES = 3

VIEW = ImageView(
    size=CANVAS,
    crop=(1.0, 1.0),
    degrees=25,
    shift=0.25,
    scale=(0.75, 1.33),
    shear=10,
    flip=0.0,  # a mirrored digit is no digit
    jitter=(0.2, 0.2, 0.0, 0.0),
    mean=(0.15,),
    std=(0.3,),
)
"""Random views that move a digit as the placing does: for an encoder with convolutions."""

GENTLE_VIEW = replace(VIEW, degrees=15, shift=0.12, scale=(0.87, 1.15), shear=5)
"""Random views that move it less: for an encoder that has to learn every place by itself."""

TRAINING = 1438
"""Training samples of :func:`placed_digits`."""

SETTINGS = replace(small(TRAINING), epochs=40, warmup_epochs=20, knn_every=4, knn_k=20)
"""A recipe that learns in a minute or two on two cores, for an encoder that sees a digit's pixels one by one: its first
convolution keeps the size. One that halves it at once wants twice as many epochs."""

GENTLE_SETTINGS = replace(SETTINGS, epochs=80, warmup_epochs=40, learning_rate=1e-3)
"""For an encoder without convolutions."""


def placed_digits(seed: int = 0, copies: int = 1) -> tuple[Samples, Samples]:
    """Train and test samples, (N, 28, 28) uint8 with classes 0 to 9.

    A training original is placed ``copies`` times. A test original is placed ``TEST_COPIES`` times: the measure is
    less noisy.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = generator(seed, "split").permutation(len(images))
    n_test = round(TEST_SHARE * len(images))
    test, train = order[:n_test], order[n_test:]
    return (
        Samples(_place(images[train], copies, seed, 0), np.repeat(digits.target[train], copies)),
        Samples(_place(images[test], TEST_COPIES, seed, 1), np.repeat(digits.target[test], TEST_COPIES)),
    )


def _place(images: np.ndarray, copies: int, seed: int, part: int) -> np.ndarray:
    from PIL import Image

    placed = np.empty((len(images) * copies, CANVAS, CANVAS), np.uint8)
    for i in range(len(placed)):
        rng = generator(seed, "place", part, i)
        zoom = rng.uniform(*SIDE) / images.shape[1]
        angle = np.deg2rad(rng.uniform(-DEGREES, DEGREES))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
        reach = zoom * images.shape[1] * (abs(np.cos(angle)) + abs(np.sin(angle))) / 2
        centre = rng.uniform(min(reach, CANVAS / 2), max(CANVAS - reach, CANVAS / 2), 2)
        offset = np.full(2, images.shape[1] / 2) - turn @ centre
        image = Image.fromarray(images[i // copies])
        moved = image.transform(
            (CANVAS, CANVAS),
            Image.Transform.AFFINE,
            (*turn[0], offset[0], *turn[1], offset[1]),
            Image.Resampling.BICUBIC,
        )
        placed[i] = np.asarray(moved)
    return placed
