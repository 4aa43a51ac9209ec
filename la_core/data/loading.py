"""The order of an epoch, and a batch of views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from la_core import check
from la_core.data.sources import Samples
from la_core.errors import DataError
from la_core.kernels import CACHE
from la_core.randomness import generator
from la_core.views import ImageView, View


def batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Dataset indices of every batch of an epoch: a pure function of its arguments.

    As few batches as ``batch_size`` allows, of sizes that differ by at most one: no last batch is so small that its
    gradient, or its batch norm, is worth nothing.

    Raises
    ------
    RangeError, KindError
        A batch size below 1.
    """
    check.count("batch_size", batch_size)
    return np.array_split(generator(seed, "order", epoch).permutation(n), -(-n // batch_size))


Key = tuple[int, int]
"""(seed, epoch): with the sample, all that a random view depends on."""
Begin = Callable[[Sequence[np.ndarray], Sequence[np.random.Generator] | None], list[Any]]
"""Of some samples the views that their generators draw, or the evaluation views, up to what is done for a batch."""
Finish = Callable[[list[Any]], np.ndarray]


def load(data: Samples, indices: Sequence[int] | np.ndarray, view: View, *keys: Key | None) -> np.ndarray:
    """A batch of views (B, ...): random by its key and the sample, or for None, or without a key, the evaluation views.

    With V keys, (V B, ...): all samples by the first key, then all by the next. Each sample is read once.

    Raises
    ------
    DataError
        A sample cannot be read, or its view cannot be made: names it. The views of a batch differ in shape.
    """
    most, begin, finish = _steps(view)
    views: list[list[Any]] = [[] for _ in keys or (None,)]
    for group in _groups(data, indices, most):
        for key, rows in zip(keys or (None,), views, strict=True):
            rows += _begun(begin, group, key)
    rows = [row for of_a_key in views for row in of_a_key]
    try:
        return finish(rows)
    except ValueError as error:
        shapes = sorted({finish([row])[0].shape for row in rows})
        if len(shapes) == 1:
            raise DataError(f"the views of a batch {shapes[0]} failed: {error}") from error
        raise DataError(
            f"the samples of a batch must have one shape; got {shapes}: give a view that makes them equal, or, of gray "
            "and colour images, make all of one mode"
        ) from None


def _steps(view: View) -> tuple[int, Begin, Finish]:
    """Most samples of a group, how its views are begun, and how those of a batch are finished."""
    if isinstance(view, ImageView) and type(view).__call__ is ImageView.__call__:  # a class of yours may do otherwise
        return AT_ONCE, view.begin, view.finish
    return 1, lambda samples, rngs: [view(samples[0], None if rngs is None else rngs[0])], np.stack


def _begun(begin: Begin, group: list[tuple[int, np.ndarray]], key: Key | None) -> list[Any]:
    """Views of a group; where one fails, each by itself, so that the error can name the sample."""
    rngs = None if key is None else [generator(key[0], "view", key[1], i) for i, _ in group]
    try:
        return begin([sample for _, sample in group], rngs)
    except Exception as error:
        if len(group) > 1:
            return [view for one in group for view in _begun(begin, [one], key)]
        i, sample = group[0]
        raise DataError(f"the view of sample {i} {sample.shape} {sample.dtype} failed: {error}") from error


AT_ONCE = 16
"""Most samples of a group."""


def _groups(data: Samples, indices: Sequence[int] | np.ndarray, most: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Samples with their numbers, some at a time: a step of loading is done for all of a group before the next begins.

    Of small images it then takes half the time, for its instructions are still in the processor's cache. Of large ones
    a group has only as many as fill that.
    """
    group: list[tuple[int, np.ndarray]] = []
    size = 0
    for i in map(int, indices):
        sample = data[i]
        group.append((i, sample))
        size += sample.nbytes
        if len(group) == most or size > CACHE:
            yield group
            group, size = [], 0
    if group:
        yield group
