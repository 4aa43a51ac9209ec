"""array-api-strict as a backend of la-core. Importing this module registers its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
from array_api_strict import Device

from la_core import kernels
from la_core.errors import BackendError
from la_core.kernels import Array


class StrictBackend:
    """array-api-strict on one of its devices: ``"CPU_DEVICE"`` (the default), ``"device1"``, ``"device2"``."""

    name = "array_api_strict"

    def __init__(self, device: str | None = None) -> None:
        try:
            self.device = Device(device or "CPU_DEVICE")
        except ValueError as error:
            raise BackendError(f"array-api-strict cannot use device {device!r}: {error}") from None

    def asarray(self, host: np.ndarray, *, copy: bool = True) -> Array:
        """A copy of ``host`` on the device, of its dtype."""
        return array_api_strict.asarray(np.array(host), device=self.device)

    def to_host(self, x: Array) -> np.ndarray:
        """The numbers of ``x``."""
        return np.array(x.to_device(Device("CPU_DEVICE")))

    def seed(self, seed: int) -> None:
        """The library draws nothing."""

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function as it is."""
        return function


@kernels.put_rows.override("array_api_strict")
def put_rows(x: Array, indices: Array, rows: Array) -> Array:
    """In place, row by row, where the reference makes a whole new bank."""
    for i in range(indices.shape[0]):
        x[int(indices[i]), :] = rows[i, :]
    return x
