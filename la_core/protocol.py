"""What a backend and an encoder are, and how a backend is found.

A backend is one file. Importing it registers its kernels (``la_core.kernels``); its class supplies arrays and the
derivative of an encoder. Backends are found through the entry-point group ``la_core.backends``: anybody's distribution
can add one under the name of its array library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import numpy as np

from la_core.errors import BackendError
from la_core.kernels import Array

GROUP = "la_core.backends"


class Encoder(Protocol):
    """Maps a batch of samples to embeddings, and learns. It owns its weights and its optimizer.

    ``weights`` and ``load`` carry the learnt state as plain NumPy arrays by name, so that it can be saved and moved.
    ``training_state`` and ``load_training_state`` carry what else the next step depends on, between encoders of one
    class only: with both, a run that was stopped goes on to the bit.

    An encoder whose ``pullback`` moves something that is saved, such as running statistics, has a method ``revert()``
    besides, which puts it where it was before the last ``pullback``: a step is held back in whole then.
    """

    def apply(self, batch: Array) -> tuple[Array, Array]:
        """Embeddings (B, D) and the features of the layer before them (B, F), for evaluation: nothing is learnt."""
        ...

    def pullback(self, batch: Array) -> tuple[Array, Callable[[Array], None]]:
        """Embeddings (B, D) in training mode, and ``back(dL/dz)``, which makes the gradients that ``step`` takes."""
        ...

    def step(self, learning_rate: float) -> None:
        """Move the weights by the gradients of the last ``back``.

        Raises
        ------
        NotFiniteError
            A gradient holds NaN or infinity: nothing has moved.
        """
        ...

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of what was learnt, by name."""
        ...

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`weights` gave."""
        ...

    def training_state(self) -> dict[str, np.ndarray]:
        """A copy of what the next step needs beside the weights, by name: moments of the optimizer, generators."""
        ...

    def load_training_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`training_state` of an encoder of this class gave, after :meth:`load`.

        Raises
        ------
        KindError, ShapeError
            Of another optimizer or network: nothing is changed then.
        """
        ...


class Backend(Protocol):
    """An array library at work on one device."""

    name: str

    def asarray(self, host: np.ndarray, *, copy: bool = True) -> Array:
        """A copy of a host array on this device, of the same dtype.

        With ``copy=False`` it may be the host array's own memory: the caller gives that away.
        """
        ...

    def to_host(self, x: Array) -> np.ndarray:
        """The numbers of ``x`` as a NumPy array."""
        ...

    def seed(self, seed: int) -> None:
        """Seed whatever the library itself draws inside an encoder (dropout). The algorithm draws nothing there."""
        ...

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """A faster form of a pure function of arrays and tuples of them; a library without a compiler gives it back.

        ``consumes`` are the places of arguments whose memory the result may take.
        """
        ...


def backend(name: str, device: str | None = None, **options: Any) -> Backend:
    """The backend of that name, on a device in the library's own words (``"cpu"``, ``"cuda:0"``).

    ``options`` are what one backend alone takes, such as ``devices=2`` of JAX.

    Raises
    ------
    BackendError
        No backend of that name, or its library cannot be imported: says what to install.
    """
    found = _entry_points()
    if name not in found:
        hint = get_close_matches(name, found, n=1)
        raise BackendError(
            f"there is no backend {name!r}; there are {', '.join(sorted(found))}"
            + (f". Did you mean {hint[0]!r}?" if hint else "")
        )
    try:
        make = found[name].load()
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {name!r} needs the package {error.name!r}, which is not installed: pip install 'la-core[{name}]'"
        ) from None
    made: Backend = make(device=device, **options)
    return made


@cache
def ready(library: str) -> None:
    """Have the kernels of the backend named after an array's library registered, if there is such a backend."""
    entry = _entry_points().get({"jaxlib": "jax"}.get(library, library))
    if entry is not None:
        entry.load()


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
