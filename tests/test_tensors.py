"""The bytes of a safetensors file: what the safetensors package reads, and writes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from la_core.errors import DataError, KindError
from la_core.tensors import decode, encode

DTYPES = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", ">f4", ">i8"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
ARRAYS = st.dictionaries(
    NAMES,
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=5,
)


def joined(arrays, **options):
    return bytearray(b"".join(encode(arrays, **options)))


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == x.dtype.newbyteorder("<")
        assert found[name].shape == x.shape
        assert found[name].tobytes() == x.astype(x.dtype.newbyteorder("<")).tobytes()


@given(ARRAYS)
def test_what_is_written_is_read(arrays):
    assert_equal(decode(joined(arrays)), arrays)
    turned = {name: x.T[::-1] if x.ndim else x for name, x in arrays.items()}
    assert_equal(decode(joined(turned, metadata={"a": "b"})), turned)


@given(ARRAYS)
def test_the_package_reads_what_is_written_and_the_other_way_round(arrays):
    theirs = pytest.importorskip("safetensors.numpy")
    assert_equal(theirs.load(bytes(joined(arrays, metadata={"by": "us"}))), arrays)
    plain = {name: np.asarray(x, x.dtype.newbyteorder("<"), order="C") for name, x in arrays.items()}
    assert_equal(decode(bytearray(theirs.save(plain, {"by": "them"}))), arrays)


def test_arrays_are_aligned_in_the_file():
    content = joined({"a": np.zeros(3, np.uint8), "b": np.zeros(2, np.float64), "c": np.ones(1, np.float32)})
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert all(x.flags.aligned for x in decode(content).values())
    assert list(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])) == ["b", "c", "a"]


def test_half_of_another_kind_becomes_single_exactly():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([1.5, -3e38, 1e-40], ml_dtypes.bfloat16)
    found = decode(joined({"x": x}))["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.astype(ml_dtypes.bfloat16), x)


@pytest.mark.parametrize("x", [np.array(["a"]), np.array([object()]), np.array([1j]), np.zeros(1, "M8[s]")])
def test_what_the_format_lacks_is_refused(x):
    with pytest.raises(KindError, match="mine must be numbers"):
        encode({"mine": x})
    with pytest.raises(KindError, match="__metadata__"):
        encode({"__metadata__": np.zeros(1)})


@given(ARRAYS.filter(bool), st.data())
def test_damage_is_an_error_or_seen_in_the_values_alone(arrays, data):
    """There is no checksum here: a change among the numbers is not seen; any other is an error, or changes a name."""
    content = joined(arrays)
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(content)
    except DataError:
        return
    assert sum(x.nbytes for x in found.values()) == sum(x.nbytes for x in arrays.values())
