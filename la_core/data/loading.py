"""The order of an epoch, and a batch of views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from la_core import check
from la_core.data.sources import Samples
from la_core.errors import DataError
from la_core.kernels import CACHE
from la_core.randomness import generator
from la_core.views import Begun, ImageView, View


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
Group = list[tuple[int, np.ndarray]]
"""Samples with their numbers."""


def load(data: Samples, indices: Sequence[int] | np.ndarray, view: View, *keys: Key | None) -> np.ndarray:
    """A batch of views (B, ...): random by its key and the sample, or for None, or without a key, the evaluation views.

    With V keys, (V B, ...): all samples by the first key, then all by the next. Each sample is read once.

    Raises
    ------
    DataError
        A sample cannot be read, or its view cannot be made: names it. The views of a batch differ in shape.
    """
    begin: Callable[[Group, Key | None], list[Any]] = partial(_one_by_one, view)
    finish: Callable[[list[Any]], np.ndarray] = np.stack
    if isinstance(view, ImageView) and type(view).__call__ is ImageView.__call__:  # a class of yours may do otherwise
        begin, finish = partial(_together, view), view.finish
    views: list[list[Any]] = [[] for _ in keys or (None,)]
    for group in _groups(data, indices):
        for key, rows in zip(keys or (None,), views, strict=True):
            rows += begin(group, key)
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


def _together(view: ImageView, group: Group, key: Key | None) -> list[Begun]:
    """Views of a group, begun; where one fails, each by itself, so that the error can name the sample."""

    def alone(sample: np.ndarray, rng: np.random.Generator | None) -> Begun:
        return view.begin([sample], None if rng is None else [rng])[0]

    try:
        return view.begin([sample for _, sample in group], None if key is None else _generators(group, key))
    except Exception:
        return _one_by_one(alone, group, key)


def _one_by_one(view: Callable[..., Any], group: Group, key: Key | None) -> list[Any]:
    rngs = [None] * len(group) if key is None else _generators(group, key)
    rows = []
    for (i, sample), rng in zip(group, rngs, strict=True):
        try:
            rows.append(view(sample, rng))
        except Exception as error:
            raise DataError(f"the view of sample {i} {sample.shape} {sample.dtype} failed: {error}") from error
    return rows


def _generators(group: Group, key: Key) -> list[np.random.Generator]:
    return [generator(key[0], "view", key[1], i) for i, _ in group]


AT_ONCE = 16
"""Most samples of a group."""


def _groups(data: Samples, indices: Sequence[int] | np.ndarray) -> Iterator[Group]:
    """Samples with their numbers, some at a time: a step of loading is done for all of a group before the next begins.

    Of small images it then takes half the time, for its instructions are still in the processor's cache. Of large ones
    a group has only as many as fill that.
    """
    group: Group = []
    size = 0
    for i in map(int, indices):
        sample = data[i]
        group.append((i, sample))
        size += sample.nbytes
        if len(group) == AT_ONCE or size > CACHE:
            yield group
            group, size = [], 0
    if group:
        yield group
