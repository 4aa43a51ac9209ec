"""Arrays by name as the bytes of a safetensors file, and back: few lines, so that no run needs a package to be saved.

    8 bytes      length of the header, little-endian
    header       JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, spaces up to 8 n bytes
    data         each array in C order, little-endian, one after the other and nothing between

The format is that of https://github.com/huggingface/safetensors; its package reads what is written here, and the other
way round (``tests/test_tensors.py``). It has no checksum: who reads a file that may be damaged compares a digest first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from la_core.errors import DataError, KindError

MOST_HEADER = 16 * 2**20
"""Bytes of a header."""
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 32
METADATA = "__metadata__"

_CODES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_DTYPES = {name: np.dtype(code) for name, code in _CODES.items()}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """The file, in pieces: the header, then each array, the widest dtypes first, so that each is aligned.

    Arrays of any layout and byte order; what is not in C order and little-endian is copied. bfloat16 becomes float32,
    which holds it exactly.

    Raises
    ------
    KindError
        A dtype that the format lacks: names the array.
    """
    plain = {name: _plain(name, x) for name, x in arrays.items()}
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    pieces, end = [], 0
    for name, x in sorted(plain.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        begin, end = end, end + x.nbytes
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [begin, end]}
        pieces.append(x.reshape(-1).view(np.uint8).data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *pieces]


def decode(data: bytearray) -> dict[str, np.ndarray]:
    """The arrays of a whole file: views of ``data``, which nobody else should write into.

    Raises
    ------
    DataError
        Not what :func:`encode` or the safetensors package could have written. Every size is checked against the bytes
        that are there before an array is made.
    """
    if len(data) < 8:
        raise DataError(f"it has {len(data)} bytes, too few for a header")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MOST_HEADER):
        raise DataError(f"its header would have {length} bytes, of {len(data)} in the file")
    header = strict_json(bytes(data[8 : 8 + length]))
    if not isinstance(header, dict) or data[8:9] != b"{":
        raise DataError("its header is not a table of arrays")
    header.pop(METADATA, None)
    if len(header) > MOST_TENSORS:
        raise DataError(f"it holds {len(header)} arrays, more than {MOST_TENSORS}")
    entries = sorted(((name, *_entry(name, entry)) for name, entry in header.items()), key=lambda e: (e[3], e[4]))
    arrays, at = {}, 0
    for name, dtype, shape, begin, end in entries:
        if begin != at or end - begin != math.prod(shape) * dtype.itemsize:
            raise DataError(f"{name} {shape} {dtype} does not fill the bytes {begin} to {end} that follow {at}")
        at = end
        if 8 + length + end > len(data):
            raise DataError(f"{name} ends at byte {8 + length + end}, of {len(data)}")
        x = np.frombuffer(data, np.uint8, end - begin, 8 + length + begin)
        if dtype == np.bool_ and x.size and x.max() > 1:
            raise DataError(f"{name} holds booleans that are neither 0 nor 1")
        arrays[name] = x.view(dtype).reshape(shape)
    if 8 + length + at != len(data):
        raise DataError(f"{len(data) - 8 - length - at} bytes of it belong to no array")
    return arrays


def strict_json(text: bytes) -> Any:
    """JSON without what parsers disagree about: no name twice, no NaN or infinity, no number that is too long.

    Raises
    ------
    DataError
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_never, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it cannot be read as JSON: {str(error)[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table


def _never(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def _finite(word: str) -> float:
    x = float(word)
    if not math.isfinite(x):
        raise ValueError(f"{word[:40]} is too large")
    return x


def _plain(name: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.name == "bfloat16":
        x = x.astype(np.float32)
    if x.dtype.newbyteorder("<") not in _NAMES:
        raise KindError(f"{name} must be numbers or booleans that a safetensors file can hold; got dtype {x.dtype}")
    if name == METADATA:
        raise KindError(f"an array cannot be named {METADATA}: the format keeps that name for itself")
    return np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")


def _entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"{name[:80]!r} must have dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise DataError(f"{name[:80]!r} has a dtype that is not known here")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS or not _sizes(offsets) or len(offsets) != 2:
        raise DataError(f"{name[:80]!r} has a shape or a place that cannot be")
    return _DTYPES[kind], tuple(shape), offsets[0], offsets[1]


def _sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
