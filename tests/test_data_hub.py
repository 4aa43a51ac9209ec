"""Data sets of the hub, by a stand-in that has the same shape; by the real library where it is installed."""

import io

import numpy as np
import pytest
from PIL import Image

from la_core import data
from la_core.errors import DataError, SettingsError


class StandInForHub:
    """What ``from_hub`` uses of ``datasets.Dataset``: rows by number, columns by name, both through the format."""

    def __init__(self, columns, transform=None):
        self._columns, self._transform = columns, transform
        self.column_names = list(columns)

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            rows = {key: self._columns[key]}
            return (self._transform(rows) if self._transform else rows)[key]
        rows = {name: [column[key]] for name, column in self._columns.items()}
        return {name: column[0] for name, column in (self._transform(rows) if self._transform else rows).items()}

    def with_format(self, kind):
        assert kind is None
        return StandInForHub(self._columns)


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [Image.new("L", (8, 8), 7), Image.new("RGBA", (8, 8)), Image.new("RGB", (8, 8), "red")]


def test_images_decoded_or_not_have_one_mode(tmp_path):
    (tmp_path / "2.png").write_bytes(encoded(PICTURES[2]))
    raw = [{"bytes": encoded(p), "path": None} for p in PICTURES[:2]]
    raw.append({"bytes": None, "path": str(tmp_path / "2.png")})
    for column in (PICTURES, raw):
        dataset = StandInForHub({"image": column, "label": [2, 0, 1]})
        some = data.from_hub(dataset)
        assert some.classes.tolist() == [2, 0, 1]
        assert [some[i][0, 0].tolist() for i in range(3)] == [[7] * 3, [255] * 3, [255, 0, 0]]
        assert data.from_hub(dataset, mode="L")[2].shape == (8, 8)
        assert data.from_hub(dataset, mode=None)[0].shape == (8, 8)
        assert data.from_hub(dataset, mode=None)[2].shape == (8, 8, 3)


def test_classes_are_numbers_or_strings_or_not_known():
    features = [np.zeros(3)] * 3
    named = data.from_hub(StandInForHub({"x": features, "kind": ["b", "a", "b"]}), "x", "kind")
    assert named.classes.tolist() == [1, 0, 1]
    assert named[0].shape == (3,)
    for label, expected in (([True, False, True], [1, 0, 1]), ([-1] * 3, None)):
        classes = data.from_hub(StandInForHub({"x": features, "label": label}), "x").classes
        assert (classes if classes is None else classes.tolist()) == expected
    assert data.from_hub(StandInForHub({"x": features, "label": [0] * 3}), "x", None).classes is None
    assert data.from_hub(StandInForHub({"x": features}), "x").classes is None


def test_a_transform_applies_to_images_and_is_not_asked_for_classes():
    def brighter(rows):
        return {"image": [image.point(lambda v: v + 1) for image in rows["image"]], "label": rows["label"]}

    some = data.from_hub(StandInForHub({"image": PICTURES, "label": [2, 0, 1]}, brighter))
    assert some.classes.tolist() == [2, 0, 1]
    assert some[0][0, 0].tolist() == [8] * 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: data.from_hub({"train": 1, "test": 2}), r"dataset\['train'\].*train, test"),
        (lambda: data.from_hub(iter([1])), "streaming=False"),
        (lambda: data.from_hub(StandInForHub({"img": [1]})), "no column 'image'; the columns are img"),
        (lambda: data.from_hub(StandInForHub({"image": [1]}), label="kind"), "no label 'kind'"),
        (lambda: data.from_hub(StandInForHub({"image": [1, 2], "label": [0, None]})), "row 1 has no class"),
        (lambda: data.from_hub(StandInForHub({"image": [1, 2], "label": [0.5, 1]})), "integers"),
        (lambda: data.from_hub(StandInForHub({"image": [None]}))[0], "row 0 has nothing"),
        (lambda: data.from_hub(StandInForHub({"image": [{"bytes": b"x", "path": "a.png"}]}))[0], r"row 0 \(a\.png\)"),
    ],
)
def test_what_cannot_be_used_says_why(make, words):
    with pytest.raises(DataError, match=words):
        make()
    with pytest.raises(SettingsError, match="mode"):
        data.from_hub(StandInForHub({"image": PICTURES}), mode="CMYK")


def test_the_real_library():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": PICTURES[::2], "label": [1, 0]}, features=features)
    for dataset in (rows, rows.cast_column("image", datasets.Image(decode=False))):
        some = data.from_hub(dataset)
        assert some.classes.tolist() == [1, 0]
        assert [some[i][0, 0].tolist() for i in range(2)] == [[7] * 3, [255, 0, 0]]
    with pytest.raises(DataError, match="choose a split"):
        data.from_hub(datasets.DatasetDict({"train": rows}))
