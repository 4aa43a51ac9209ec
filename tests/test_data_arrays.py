"""Arrays in memory and in files: what may be in them, and how a memory-mapped one travels."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from la_core import data, views
from la_core.data import arrays
from la_core.errors import DataError


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 8, 8), np.uint16), "uint16"),
        (np.zeros((4, 8), int), "int64"),
        (np.zeros(4), r"got \(4,\)"),
        (np.array([["a"]]), "features"),
        (np.array([[{}]]), "object"),
        (np.zeros((4, 0)), "empty"),
        (np.zeros((0, 4)), "empty"),
    ],
)
def test_an_array_that_no_encoder_could_take_is_refused(array, words):
    with pytest.raises(DataError, match=words):
        data.samples(array)


def law_of_finite_rows(n, row, column, bad):
    for dtype in (np.float16, np.float32, np.float64):
        x = np.zeros((n, 4), dtype)
        x[row, column] = x[n - 1, 3] = bad
        with pytest.raises(DataError, match=f"sample {row} of the array holds NaN"):
            data.samples(x)


@given(row=st.integers(0, 99), column=st.integers(0, 3), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_feature_that_is_not_finite_is_refused_by_its_row(row, column, bad):
    law_of_finite_rows(100, row, column, bad)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_the_row_is_right_in_every_block(rows, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", rows * 4 * 8)
    for row in (0, 1, 50, 98):
        law_of_finite_rows(100, row, 2, np.nan)


def test_a_planted_bug_in_the_search_for_the_row_is_caught(monkeypatch):
    monkeypatch.setattr(np, "isfinite", lambda x: ~np.isnan(x))
    with pytest.raises(pytest.fail.Exception):
        law_of_finite_rows(100, 5, 2, np.inf)


def test_npz(tmp_path):
    images = np.zeros((5, 6, 6), np.uint8)
    np.savez(tmp_path / "all.npz", images=images, labels=np.arange(5), test_images=images[:2], test_labels=np.arange(2))
    train, test = data.load_npz(tmp_path / "all.npz")
    assert (len(train), len(test)) == (5, 2)
    np.savez(tmp_path / "only.npz", images=images)
    train, test = data.load_npz(tmp_path / "only.npz")
    assert train.classes is None
    assert test is None
    np.savez(tmp_path / "float.npz", images=images.astype(float))
    with pytest.raises(DataError, match="uint8"):
        data.load_npz(tmp_path / "float.npz")
    np.savez(tmp_path / "none.npz", x=images)
    with pytest.raises(DataError, match="'images'"):
        data.load_npz(tmp_path / "none.npz")

    with pytest.raises(DataError, match="cannot be read"):
        data.load_npz(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "both.npz", images=images, features=np.zeros((5, 2)))
    with pytest.raises(DataError, match="one of 'images'"):
        data.load_npz(tmp_path / "both.npz")
    np.savez(tmp_path / "features.npz", features=np.eye(5, dtype=np.float16), labels=np.arange(5), names=[{}])
    assert data.samples(tmp_path / "features.npz").classes.tolist() == [0, 1, 2, 3, 4]  # "names", a pickle, is not read
    np.savez(tmp_path / "pickle.npz", features=np.array([{}]))
    with pytest.raises(DataError, match="pickle"):
        data.load_npz(tmp_path / "pickle.npz")
    np.savez(tmp_path / "empty.npz", features=np.eye(5), test_features=np.zeros((0, 5)))
    with pytest.raises(DataError, match=r"test_features.*empty"):
        data.load_npz(tmp_path / "empty.npz")


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_npy_is_mapped(tmp_path):
    path = tmp_path / "x.NPY"
    path.write_bytes(saved(np.arange(12, dtype=">f8").reshape(4, 3)))
    some = data.samples(str(path), [0, 1, 1, 0])
    assert isinstance(some.source, data.MappedArray)
    batch = data.load(some, [3], views.FeatureView(), None)
    np.testing.assert_array_equal(batch, [[9, 10, 11]])
    assert batch.dtype == np.float32
    path.write_bytes(saved(np.array([[1.0], [np.nan]])))
    with pytest.raises(DataError, match="sample 1 holds NaN"):  # when it is read: the file may be larger than memory
        data.samples(path)[1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("an object array", saved(np.array([[{}]])), "pickle"),
        ("a pickle", pickle.dumps([1]), "pickle"),
        ("text", b"text", "does not begin as such a file does"),
        ("nothing", b"", "cannot be read"),
        ("half an array", saved(np.zeros((100, 10)))[:500], "cannot be read"),
        ("no rows", saved(np.zeros((0, 3))), "nothing to embed"),
        ("16-bit images", saved(np.zeros((2, 8, 8), np.uint16)), "uint16"),
    ],
)
def test_an_npy_file_that_holds_anything_else_is_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / f"{name}.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        data.samples(path)
    assert name in str(error.value)


def test_npy_and_npz_are_not_taken_for_one_another(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.eye(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(DataError, match="several arrays"):
        data.samples(tmp_path / "x.npy")
    (tmp_path / "y.npz").write_bytes(saved(np.eye(3)))
    with pytest.raises(DataError, match="one array"):
        data.samples(tmp_path / "y.npz")


def law_of_travel(path, part, dtype):
    np.save(path, np.arange(120).astype(dtype).reshape(6, 5, 4))
    mapped = np.load(path, mmap_mode="r")
    for some in (mapped[part], mapped.transpose(2, 0, 1)[::-1]):
        packed = pickle.dumps(data.MappedArray(some))
        assert len(packed) < 1000
        np.testing.assert_array_equal(pickle.loads(packed)[:], some)


@given(
    part=st.tuples(*[st.slices(n) for n in (6, 5, 4)]),
    dtype=st.sampled_from([np.uint8, np.float16, ">f4", np.float64]),
)
def test_any_part_of_a_mapped_array_travels_as_the_place_of_its_file(tmp_path_factory, part, dtype):
    law_of_travel(tmp_path_factory.mktemp("mapped") / "x.npy", part, dtype)


def test_a_part_that_travels_by_the_offset_of_the_whole_is_caught(tmp_path, monkeypatch):
    class Wrong(data.MappedArray):
        def __getstate__(self):
            *place, _ = super().__getstate__()
            return (*place, self._rows.offset)

    monkeypatch.setattr(data, "MappedArray", Wrong)
    monkeypatch.setitem(globals(), "Wrong", Wrong)
    Wrong.__qualname__ = "Wrong"
    with pytest.raises(AssertionError):
        law_of_travel(tmp_path / "x.npy", np.s_[1:], np.uint8)


def test_a_mapped_array_that_was_changed_in_memory_stays_what_it_is(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    changed = np.load(tmp_path / "x.npy", mmap_mode="c")
    changed[1] = 7
    source = data.samples(changed).source
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[:], changed)
