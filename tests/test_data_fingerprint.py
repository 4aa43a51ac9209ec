"""A fingerprint tells two data sets apart wherever a resumed run would take one row of the bank for another."""

import numpy as np
import pytest
from PIL import Image

import la_core
from la_core.data import fingerprint, samples

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((50, 6)).astype(np.float32)
CLASSES = np.arange(50) % 3


class Unlike:
    """A source that gives a sample differently each time, as one with an augmentation inside does."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return RNG.standard_normal(6)


def test_it_repeats_and_does_not_depend_on_layout():
    one = fingerprint(samples(ROWS, CLASSES))
    assert one == fingerprint(samples(np.asfortranarray(ROWS), CLASSES.astype(np.int32)))
    assert one == fingerprint(samples(ROWS.astype(">f4"), CLASSES))
    assert one["samples"] == 50


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x[:-1], y[:-1]),
        lambda x, y: (x[::-1], y),
        lambda x, y: (np.concatenate([x[1:2], x[:1], x[2:]]), y),
        lambda x, y: (x + np.float32(1e-6), y),
        lambda x, y: (x.astype(np.float64), y),
        lambda x, y: (x, y[::-1].copy()),
        lambda x, y: (x, None),
    ],
)
def test_whatever_changes_is_seen(change):
    assert fingerprint(samples(ROWS, CLASSES)) != fingerprint(samples(*change(ROWS, CLASSES)))


def test_a_part_is_known_by_what_is_in_it():
    data = samples(ROWS, CLASSES)
    one, other = np.arange(20), np.arange(1, 21)
    assert fingerprint(data.part(one)) == fingerprint(data.part(one))
    assert fingerprint(data.part(one)) != fingerprint(data.part(other))


def test_a_folder_is_known_by_its_names(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(tmp_path / name)
    before = fingerprint(la_core.samples(tmp_path))
    assert before == fingerprint(la_core.samples(tmp_path))
    (tmp_path / "a/2.png").rename(tmp_path / "a/4.png")
    assert fingerprint(la_core.samples(tmp_path)) != before


def test_a_source_that_is_never_the_same_is_known_by_its_size():
    assert fingerprint(samples(Unlike(9))) == fingerprint(samples(Unlike(9)))
    assert fingerprint(samples(Unlike(9))) != fingerprint(samples(Unlike(8)))


def test_a_long_array_is_known_by_some_of_its_samples(monkeypatch):
    long = np.tile(ROWS, (40, 1))
    monkeypatch.setitem(fingerprint.__globals__, "WHOLE", 100)
    assert fingerprint(samples(long)) != fingerprint(samples(long[::-1]))
