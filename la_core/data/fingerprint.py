"""Which samples, and in which order: what a resumed run must find again, since a row of the bank is a place in them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from la_core.data.image_folder import ImageFolder
from la_core.data.sources import Part, Samples
from la_core.randomness import generator

READ = 8
"""Samples that are read and hashed."""
WHOLE = 64 * 2**20
"""Bytes of an array in memory that is hashed as a whole; of a larger one and of other sources some samples are."""


def fingerprint(data: Samples) -> dict[str, Any]:
    """Number of samples and a SHA-256 of what names them, in their order.

    Of a folder the paths of the images, of an array in memory of at most ``WHOLE`` bytes every number, of any source
    the classes and ``READ`` samples somewhere in it. A source that gives a sample differently each time it is asked is
    known by its number of samples and its classes only.

    Raises
    ------
    DataError
        A sample cannot be read.
    """
    digest = hashlib.sha256()
    _source(digest, data.source)
    if data.classes is not None:
        _array(digest, data.classes.astype(np.int64))
    some = np.sort(generator(0, "fingerprint").integers(len(data), size=READ))
    read, again = ([data[int(i)] for i in some] for _ in range(2))
    if all(np.array_equal(one, two) for one, two in zip(read, again, strict=True)):
        for sample in read:
            _array(digest, sample)
    return {"samples": len(data), "sha256": digest.hexdigest()}


def _source(digest: Any, source: Any) -> None:
    if isinstance(source, Part):
        _array(digest, source.indices)
        _source(digest, source.source)
    elif isinstance(source, ImageFolder):
        digest.update("\0".join(source.names).encode(errors="surrogateescape"))
    elif isinstance(source, np.ndarray) and source.nbytes <= WHOLE:
        _array(digest, source)


def _array(digest: Any, x: np.ndarray) -> None:
    x = np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C")
    digest.update(f"{x.dtype.str}{x.shape}".encode())
    digest.update(x.tobytes())
