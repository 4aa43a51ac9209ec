"""Data sets of the hub, by a stand-in that has the same shape; by the real library where it is installed."""

import io

import numpy as np
import pytest
from PIL import Image

import la_core
from la_core import data, views
from la_core.errors import DataError, SettingsError
from la_core.mlp import MLP


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


def test_lists_of_numbers_are_whole_features():
    """Not a sample and its label, as tuples of other data sets are."""
    some = data.from_hub(StandInForHub({"x": [[1.0, 2.0], [3.0, 4.0], [5.0]]}), "x")
    np.testing.assert_array_equal([some[0], some[1]], [[1, 2], [3, 4]])
    ragged = data.from_hub(StandInForHub({"x": [[[1.0, 2.0], [3.0]]]}), "x")
    with pytest.raises(DataError, match="row 0 has no array of numbers in column 'x'"):
        ragged[0]


# The real library -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="the real library: datasets is not installed")


@pytest.fixture
def rows(datasets):
    """Images of every mode, with class names, strings and features."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (12 + i % 3, 14, 3), dtype=np.uint8)) for i in range(24)]
    for i, mode in enumerate(("L", "RGBA", "CMYK", "P", "1")):
        pictures[3 * i] = pictures[3 * i].convert(mode)
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["ant", "bee", "cow"]),
        kind=datasets.Value("string"),
        x=datasets.List(datasets.Value("float32"), length=4),
        grid=datasets.Array2D((2, 3), "uint8"),
    )
    columns = {
        "image": pictures,
        "label": [i % 3 for i in range(24)],
        "kind": ["ba"[i % 2] for i in range(24)],
        "x": rng.standard_normal((24, 4)).astype(np.float32).tolist(),
        "grid": rng.integers(0, 256, (24, 2, 3)).tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def brighter(given):
    return {"image": [image.convert("RGB").point(lambda v: v // 2 + 100) for image in given["image"]]}


def test_the_real_library_gives_images_of_one_mode_and_named_classes(datasets, rows):
    some = data.from_hub(rows)
    assert some.classes.tolist() == rows["label"][:]
    assert some.class_names == ("ant", "bee", "cow")
    assert {some[i].shape for i in range(24)} == {(12, 14, 3), (13, 14, 3), (14, 14, 3)}
    raw = rows.cast_column("image", datasets.Image(decode=False))
    for other in (raw, *(rows.with_format(name) for name in ("numpy", "arrow"))):
        for i in range(24):
            np.testing.assert_array_equal(data.from_hub(other)[i], some[i])
    picked = data.from_hub(rows.select([5, 2]))
    np.testing.assert_array_equal(picked[0], some[5])
    assert picked.classes.tolist() == [2, 2]
    named = data.from_hub(rows, "x", "kind")
    assert (named.classes[:2].tolist(), named.class_names) == ([1, 0], ("a", "b"))
    assert (named[0].shape, named[0].dtype) == ((4,), np.float32)
    grid = data.from_hub(rows, "grid")[0]
    assert (grid.shape, grid.dtype) == ((2, 3), np.uint8)
    assert data.from_hub(rows.with_transform(brighter))[1].min() >= 100


def test_the_real_library_in_worker_processes(datasets, rows):
    view, order = views.ImageView(size=8, degrees=10), [np.arange(16), np.arange(16, 24)]
    for dataset in (rows, rows.cast_column("image", datasets.Image(decode=False)), rows.shuffle(seed=0)):
        some = data.from_hub(dataset)
        here = [x for _, x in data.Workers().load(some, order, view, (0, 0))]
        with data.Workers(2, some) as workers:
            there = [x for _, x in workers.load(some, order, view, (0, 0))]
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_real_library_trains(rows):
    settings = la_core.Settings(epochs=2, warmup_epochs=1, batch_size=8, n_clusters=3, n_clusterings=1)
    some, backend = data.from_hub(rows), la_core.backend("numpy")
    run = la_core.train(
        some, MLP(backend, (192, 8), settings), backend=backend, settings=settings, view=views.ImageView(size=8),
        workers=2, progress=False,
    )  # fmt: skip
    assert run.embed().embeddings.shape == (24, 8)


def test_what_the_real_library_cannot_give_is_named(datasets, rows):
    with pytest.raises(DataError, match="choose a split"):
        data.from_hub(datasets.DatasetDict({"train": rows}))
    with pytest.raises(DataError, match="streaming=False"):
        data.from_hub(rows.to_iterable_dataset())
    with pytest.raises(DataError, match="from_hub takes one column"):
        data.samples(rows)[0]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    broken = {"image": [{"bytes": b"x", "path": "a.png"}, None], "label": [-1, -1]}
    held_back = datasets.Dataset.from_dict(broken, features=features)
    for dataset in (held_back, held_back.cast_column("image", datasets.Image(decode=False))):
        some = data.from_hub(dataset)
        assert some.classes is None
        with pytest.raises(DataError, match=r"0.*cannot be read"):
            some[0]
        with pytest.raises(DataError, match="row 1 has nothing"):
            some[1]
