"""What an encoder makes of every sample: embeddings, features, and layers by name, on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple, TypeAlias

import numpy as np

from la_core import check, kernels
from la_core.data import Samples, Workers
from la_core.errors import KindError, NotFiniteError, RangeError, ShapeError
from la_core.kernels import Array
from la_core.protocol import Backend, Encoder
from la_core.spaces import array_namespace
from la_core.views import View

Batch: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Indices and views."""


class Embedded(NamedTuple):
    """Samples as an encoder sees them, on the host, in order of their index."""

    embeddings: np.ndarray
    """(N, D), not normalised."""
    features: np.ndarray
    """(N, F), the layer before."""


def embed(
    encoder: Encoder,
    backend: Backend,
    data: Samples,
    view: View,
    batch_size: int = 256,
    dtype: str = "float32",
    *,
    progress: bool = False,
    workers: Workers | None = None,
    indices: np.ndarray | None = None,
) -> Embedded:
    """Embeddings and features of the evaluation view of every sample, or of those at ``indices``.

    With ``progress`` a bar is drawn in a terminal, where tqdm is installed. ``workers`` load the batches; by default
    this process.

    Raises
    ------
    NotFiniteError
        The encoder gives NaN or infinity: names the first such sample.
    """

    def look(batch: Array) -> dict[str, Array]:
        return dict(zip(Embedded._fields, encoder.apply(batch), strict=True))

    if indices is not None and not len(indices):
        raise ShapeError("indices must name at least one sample")
    embedded = Embedded(**_collect(look, backend, data, view, batch_size, dtype, progress, workers, indices))
    _finite("the encoder gives", embedded.embeddings, indices)
    return embedded


def layer_features(
    encoder: Encoder,
    backend: Backend,
    data: Samples,
    view: View,
    names: Sequence[str],
    batch_size: int = 256,
    dtype: str = "float32",
    *,
    max_features: int = 10_000,
    progress: bool = False,
    workers: Workers | None = None,
) -> dict[str, np.ndarray]:
    """Layers of the evaluation view of every sample, by name: what a linear probe of each layer is fitted to.

    Parameters
    ----------
    encoder
        With a method ``layers(batch, names) -> {name: Array}`` besides the protocol's, for evaluation as ``apply`` is.
        It gives each layer as features (B, F) or as a map (B, C, H, W).
    backend, data, view, batch_size, dtype, progress, workers
        As for :func:`embed`.
    names
        Layers, as the encoder calls them.
    max_features
        A map is averaged over windows of p x p pixels, for the smallest p that leaves at most so many values of a
        sample, and flattened; a window over the edge averages what lies inside. Features (B, F) stay as they are.

    Returns
    -------
    dict
        (N, F) for each name, F its own; 4 N F bytes in float32.

    Raises
    ------
    KindError
        The encoder has no ``layers``, or it does not give the layers asked for.
    ShapeError
        A layer is neither features nor a map.
    RangeError
        A map has more channels than ``max_features``.
    NotFiniteError
        A layer holds NaN or infinity: names the layer and the first such sample.
    """
    check.count("max_features", max_features)
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise KindError(f"names must be a list of at least one layer name; got {names!r}")
    layers: Callable[[Array, Sequence[str]], Mapping[str, Array]] | None = getattr(encoder, "layers", None)
    if layers is None:
        raise KindError(
            f"the encoder ({type(encoder).__name__}) has no method layers(batch, names), so its layers cannot be "
            "looked at by name; embed gives the embedding and the layer before it"
        )

    def look(batch: Array) -> dict[str, Array]:
        given = layers(batch, names)
        if missing := [name for name in names if name not in given]:
            raise KindError(f"the encoder did not give the layers {', '.join(map(repr, missing))}")
        return {name: flattened(name, given[name], backend, max_features) for name in names}

    found = _collect(look, backend, data, view, batch_size, dtype, progress, workers)
    for name, features in found.items():
        _finite(f"layer {name!r} holds", features)
    return found


def _collect(
    look: Callable[[Array], Mapping[str, Array]],
    backend: Backend,
    data: Samples,
    view: View,
    batch_size: int,
    dtype: str,
    progress: bool,
    workers: Workers | None,
    indices: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What ``look`` sees in the evaluation views, batch by batch, each kind in one host array (N, ...)."""
    found: dict[str, np.ndarray] = {}
    chosen = np.arange(len(data)) if indices is None else indices
    places = list(kernels.blocks(len(chosen), batch_size))
    with closing((workers or Workers()).load(data, [chosen[rows] for rows in places], view)) as loaded:
        for rows, (_, batch) in zip(places, _shown(loaded, len(places), progress), strict=True):
            for name, x in look(backend.asarray(batch.astype(dtype, copy=False), copy=False)).items():
                host = backend.to_host(x)
                if name not in found:
                    found[name] = np.empty((len(chosen), *host.shape[1:]), host.dtype)
                found[name][rows] = host
    return found


def _shown(batches: Iterable[Batch], total: int, progress: bool) -> Iterable[Batch]:
    """The batches, with a bar by tqdm where one is wanted and can be drawn."""
    if progress and sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            return batches
        bar: Iterable[Batch] = tqdm(batches, total=total, desc="embedding", unit=" batches", dynamic_ncols=True)
        return bar
    return batches


def flattened(name: str, x: Array, backend: Backend, most: int) -> Array:
    """Features as they are; a map averaged over windows, then flattened: (B, F) or (B, C, H, W) -> (B, F)."""
    xp = array_namespace(x)
    if x.ndim == 2:
        return x
    if x.ndim != 4:
        raise ShapeError(f"layer {name!r} must give features (B, F) or a map (B, C, H, W); got {tuple(x.shape)}")
    _, channels, height, width = x.shape
    if channels > most:
        raise RangeError(f"max_features must be at least the {channels} channels of layer {name!r}; got {most}")
    side = next(p for p in range(1, max(height, width) + 1) if channels * -(-height // p) * -(-width // p) <= most)
    if side > 1:
        down, across = (xp.astype(backend.asarray(_windows(n, side)), x.dtype) for n in (height, width))
        x = down @ x @ xp.matrix_transpose(across)
    return xp.reshape(x, (x.shape[0], -1))


def _windows(n: int, side: int) -> np.ndarray:
    """The matrix that averages each run of ``side`` of n values, the last run as long as it is: (ceil(n / side), n)."""
    window = np.arange(n) // side
    member = window == np.arange(window[-1] + 1)[:, None]
    mean: np.ndarray = member / member.sum(axis=1, keepdims=True)
    return mean.astype(np.float32)


def _finite(what: str, x: np.ndarray, indices: np.ndarray | None = None) -> None:
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        first = bad[0] if indices is None else indices[bad[0]]
        raise NotFiniteError(f"{what} NaN or infinity for {bad.size} of {len(x)} samples, first for sample {first}")
