"""Arrays: what may be in them, how a file of one is opened, and how a memory-mapped one travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from la_core.errors import DataError

_BLOCK = 16 * 2**20  # bytes


def checked(array: np.ndarray, what: str) -> np.ndarray:
    """The array, if its rows can be samples.

    Raises
    ------
    DataError
        Not float (N, F, ...) or uint8 (N, H, W[, C]), nothing in it, or, unless it is memory-mapped, NaN or infinity:
        names the first such row.
    """
    if array.dtype.newbyteorder("=") not in (np.uint8, np.float16, np.float32, np.float64) or array.ndim < 2:
        raise DataError(
            f"{what} must be features (N, F), float16, float32 or float64, or images (N, H, W[, C]), uint8; "
            f"got {array.shape} {array.dtype}"
        )
    if array.size == 0:
        raise DataError(f"{what} is empty, {array.shape}: there is nothing to embed")
    if array.dtype.kind == "f" and not isinstance(array, np.memmap):
        step = max(1, _BLOCK // max(1, array[0].nbytes))
        for start in range(0, len(array), step):
            block = array[start : start + step].reshape(len(array[start : start + step]), -1)
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if bad.size:
                raise DataError(f"sample {start + bad[0]} of {what} holds NaN or infinity")
    return array


def load_npy(path: str | Path) -> np.ndarray:
    """The array of an ``.npy`` file, memory-mapped and read-only.

    Raises
    ------
    DataError
        No such file, not one array, cut short, or Python objects in it, which are never loaded.
    """
    array = _load(path, "r")
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} cannot be read as an .npy file: it holds several arrays, as an .npz file does")
    return array


def load_npz(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those arrays of an ``.npz`` file that bear one of the names, in memory. Others are not read.

    Raises
    ------
    DataError
        As :func:`load_npy`. None of the names: says which there are.
    """
    file = _load(path, None)
    if isinstance(file, np.ndarray):
        raise DataError(f"{path} cannot be read as an .npz file: it holds one array, as an .npy file does")
    with file:
        try:
            found = {name: file[name] for name in names if name in file}
        except Exception as error:
            raise DataError(f"{path} cannot be read as an .npz of arrays: {_reason(Path(path), error)}") from error
        if not found:
            held = ", ".join(file.files) or "nothing"
            raise DataError(f"{path} holds {held}, and none of {', '.join(map(repr, names))}")
    return found


def _load(path: str | Path, mmap_mode: Any) -> Any:
    if Path(path).exists() and not Path(path).is_file():
        raise DataError(f"{path} cannot be read: it is not a regular file")
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as error:
        reason = _reason(Path(path), error)
        raise DataError(f"{path} cannot be read as an {Path(path).suffix} of arrays: {reason}") from error


def _reason(path: Path, error: Exception) -> str:
    if not any(word in str(error) for word in ("pickle", "Object arrays", "Python objects")):
        return str(error)
    with path.open("rb") as file:
        if not file.read(6).startswith((b"\x93NUMPY", b"PK")):  # what is not NumPy's is taken for a pickle
            return "it does not begin as such a file does; it is damaged, or another kind (a pickle is never loaded)"
    return "it holds Python objects (a pickle), which are never loaded: save plain numbers"


class MappedArray:
    """A memory-mapped array that goes to another process as the place of its file, not as a copy of its content.

    Parameters
    ----------
    array
        A memory-mapped array, or any part of one. Its file must be there, unchanged, when a process opens it.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self._rows: np.ndarray = array
        whole = array
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        # A part keeps the offset of the whole, so it is found by its address.
        offset = whole.offset + array.ctypes.data - whole.ctypes.data
        self._place = (str(whole.filename), array.dtype, array.shape, array.strides, offset)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        row: np.ndarray = self._rows[index]
        return row

    def __getstate__(self) -> tuple[Any, ...]:
        return self._place

    def __setstate__(self, place: tuple[Any, ...]) -> None:
        filename, dtype, shape, strides, offset = self._place = place
        content = np.memmap(filename, np.uint8, "r")
        self._rows = np.ndarray(shape, dtype, content, offset, strides)


def movable(array: np.ndarray) -> np.ndarray | MappedArray:
    """The array as a source that costs little to send to another process, where that can be had."""
    if isinstance(array, np.memmap) and array.filename is not None and array.mode != "c":  # "c": changes are in memory
        return MappedArray(array)
    return array
