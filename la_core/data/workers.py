"""Batches loaded ahead, in a thread or in other processes, the same to the bit.

Each process is sent the data sets once; after that indices travel out and arrays back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from la_core.data.ahead import one_ahead
from la_core.data.arrays import MappedArray
from la_core.data.image_folder import ImageFolder
from la_core.data.loading import Key, load
from la_core.data.pool import Pool
from la_core.data.sources import Part, Samples
from la_core.views import FeatureView, ImageView, View

Batch: TypeAlias = tuple[np.ndarray, tuple[Key | None, ...]]
"""Indices of samples, and what their views are drawn by."""
Loaded: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Indices and views of a batch."""


class Workers:
    """Loads batches of some data sets, ahead of who uses them.

    Random views are a function of (seed, epoch, sample), so batches are the same whatever ``count`` is, and a run
    resumes by giving the rest of its order. An array in memory is copied into each process; a memory-mapped one
    (``.npy``) and a folder are not.

    Parameters
    ----------
    count
        Processes; 0 loads in this one: one batch ahead in a thread where samples and view are la-core's own, else
        when it is asked for, for what is yours may want to be called from one thread.
    data
        The data sets that the processes know. Others are loaded in this process.
    ahead
        Most batches that are loaded or being loaded and not yet used. By default 2 for each process.

    Raises
    ------
    SettingsError, DataError
        See :class:`Pool`.
    """

    def __init__(self, count: int = 0, *data: Samples, ahead: int | None = None) -> None:
        self._pool = Pool(count, data, ahead=ahead)

    def load(
        self, data: Samples, order: Iterable[np.ndarray], view: View, *keys: Key | None
    ) -> Generator[Loaded, None, None]:
        """Indices and views of each batch of ``order``, in order: see :func:`la_core.data.load`.

        Raises
        ------
        DataError
            As :func:`la_core.data.load` raises it; a view that cannot be sent to another process; a process that died.
        """
        return self.stream(data, ((indices, keys) for indices in order), view)

    def stream(self, data: Samples, batches: Iterable[Batch], view: View) -> Generator[Loaded, None, None]:
        """:meth:`load` of batches that have keys of their own, such as those of several epochs."""
        place = next((i for i, known in enumerate(self._pool.held) if known is data), None)
        if place is not None and self._pool.count:
            return self._pool.map(_load, ((place, batch, view) for batch in batches))
        if _ours(data) and type(view) in (ImageView, FeatureView):
            return one_ahead(lambda batch: _loaded(data, batch, view), batches)
        return (_loaded(data, batch, view) for batch in batches)

    def close(self) -> None:
        """End the processes. Batches are loaded in this one from then on."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _ours(data: object) -> bool:
    """Whether these samples may be read from any thread, and from two."""
    if type(data) in (Samples, Part):
        return _ours(data.source)  # type: ignore[attr-defined]
    return type(data) in (np.ndarray, np.memmap, MappedArray, ImageFolder)


def _loaded(data: Samples, batch: Batch, view: View) -> Loaded:
    indices, keys = batch
    return indices, load(data, indices, view, *keys)


def _load(known: tuple[Samples, ...], task: tuple[int, Batch, View]) -> Loaded:
    place, batch, view = task
    return _loaded(known[place], batch, view)
