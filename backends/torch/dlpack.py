"""A torch encoder at work for another library's arrays: lent through DLPack, never copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from array_api_compat import array_namespace, device, to_device
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from la_core.backends.torch.encoder import TorchEncoder
from la_core.errors import BackendError
from la_core.kernels import Array
from la_core.protocol import Backend


class DLPackEncoder:
    """A torch encoder for ``la_core.train`` with the bank in another library, both on one device.

    With CuPy on one GPU, where it has not yet been run by us; on the CPU with NumPy. Batches go to torch, embeddings
    come back, and the cotangent goes the same way, all without a copy: neither side writes into what it was lent.

    On a GPU torch works on the other library's current stream while it is in here. With two streams each library's
    allocator would reuse a block that the other's kernels may still read, since DLPack orders no release.

    Parameters
    ----------
    encoder
        On the device of the backend.
    backend
        The one that ``la_core.train`` gets. It does not seed torch: for dropout call ``torch.manual_seed``.

    Raises
    ------
    BackendError
        The two are on different devices, or torch cannot take the backend's arrays.
    """

    def __init__(self, encoder: TorchEncoder, backend: Backend) -> None:
        probe = backend.asarray(np.zeros(1, dtype=np.float32))
        try:
            lent = from_dlpack(probe)
        except (RuntimeError, BufferError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise BackendError(f"PyTorch cannot take arrays of the {backend.name} backend: {error}") from None
        here = torch.empty(0, device=encoder.device).device
        if lent.device != here:
            raise BackendError(
                f"the encoder and the bank must be on one device, since nothing is copied; the encoder is on {here} "
                f"and the arrays of the {backend.name} backend are on {lent.device}"
            )
        self.encoder = encoder
        self._namespace, self._device = array_namespace(probe), device(probe)

    def apply(self, batch: Array) -> tuple[Array, Array]:
        """Embeddings and features, as the encoder gives them."""
        with self._in_line():
            z, features = self.encoder.apply(from_dlpack(batch))
            return self._returned(z), self._returned(features)

    def pullback(self, batch: Array) -> tuple[Array, Callable[[Array], None]]:
        """Embeddings, and the encoder's backward pass for a cotangent of the other library."""
        with self._in_line():
            z, back = self.encoder.pullback(from_dlpack(batch))
            embeddings = self._returned(z)

        def back_from(cotangent: Array) -> None:
            with self._in_line():
                back(from_dlpack(cotangent))

        return embeddings, back_from

    def step(self, learning_rate: float) -> None:
        """One step of torch's optimizer."""
        with self._in_line():
            self.encoder.step(learning_rate)

    def revert(self) -> None:
        """The encoder's."""
        with self._in_line():
            self.encoder.revert()

    def weights(self) -> dict[str, np.ndarray]:
        """The encoder's."""
        return self.encoder.weights()

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """The encoder's."""
        self.encoder.load(weights)

    def training_state(self) -> dict[str, np.ndarray]:
        """The encoder's."""
        return self.encoder.training_state()

    def load_training_state(self, state: Mapping[str, np.ndarray]) -> None:
        """The encoder's."""
        self.encoder.load_training_state(state)

    def _returned(self, x: Tensor) -> Array:
        y = self._namespace.from_dlpack(x.detach())
        return y if device(y) == self._device else to_device(y, self._device)  # a device that is only simulated

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        where = self.encoder.device
        if where.type != "cuda":
            yield
            return
        pointer = self._namespace.cuda.get_current_stream().ptr
        theirs = torch.cuda.ExternalStream(pointer, device=where) if pointer else torch.cuda.default_stream(where)
        ours = torch.cuda.current_stream(where)
        theirs.wait_stream(ours)
        try:
            with torch.cuda.stream(theirs):
                yield
        finally:
            ours.wait_stream(theirs)
