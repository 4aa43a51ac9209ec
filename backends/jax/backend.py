"""JAX arrays on one device, or on several of one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from la_core.backends.jax.devices import Devices, MeshBank
from la_core.bank import stored
from la_core.errors import BackendError, KindError

config: Any = jax.config  # its names are not typed
_COUNT = "xla_force_host_platform_device_count"


class JaxBackend:
    """JAX on one device: ``"cpu"`` (the default), ``"gpu"``, ``"cuda:1"``, ``"tpu"``, ...

    float64 needs ``jax.config.update("jax_enable_x64", True)`` before the first array is made.

    Parameters
    ----------
    device
        The one, or the first of several.
    devices
        How many make a run together. A CPU counts as so many as ``jax_num_cpu_devices`` says; where nobody has set it
        and JAX has not begun, it is set here.

    Raises
    ------
    BackendError
        There are not so many.
    """

    name = "jax"

    def __init__(self, device: str | None = None, devices: int = 1) -> None:
        if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
            raise BackendError(f"devices must be an integer of at least 1; got {devices!r}")
        platform, _, number = (device or "cpu").partition(":")
        first = int(number) if number.isdecimal() else 0
        if devices > 1 and platform == "cpu" and _COUNT not in os.environ.get("XLA_FLAGS", ""):
            with suppress(RuntimeError):  # JAX has begun: there are as many as there are
                if config.jax_num_cpu_devices < 1:
                    config.update("jax_num_cpu_devices", first + devices)
        try:
            found = jax.devices(platform)
            self.device: Any = found[int(number or 0)]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise BackendError(f"JAX cannot use device {device!r}: {reason}") from None
        found = found[first:][:devices]
        if len(found) < devices:
            hint = f": set XLA_FLAGS=--{_COUNT}={devices} before JAX makes its first array" if platform == "cpu" else ""
            raise BackendError(f"JAX has {len(found)} devices from {device or 'cpu'!r} on, and not {devices}{hint}")
        self.devices: Devices | None = None
        """The several, or None."""
        if devices > 1:
            self.devices = Devices(found)
            self.device = self.devices.all

    def asarray(self, host: np.ndarray, *, copy: bool = True) -> Array:
        """A copy of ``host`` on the device, of its dtype; without x64, 64-bit integers become 32-bit ones."""
        host = np.asarray(host)
        if jax.dtypes.canonicalize_dtype(np.int64) == np.int32:  # x64 is off
            if host.dtype in (np.float64, np.complex128):
                raise KindError(
                    f"JAX would round {host.dtype} to half its width: call jax.config.update('jax_enable_x64', True) "
                    "before the first array is made, or give float32"
                )
            if host.dtype.itemsize == 8 and host.dtype.kind in "iu" and host.size:
                limits = np.iinfo(np.int32 if host.dtype.kind == "i" else np.uint32)
                if host.min() < limits.min or host.max() > limits.max:
                    raise KindError(
                        f"JAX would cut {host.dtype} to 32 bits, which {host.min()} to {host.max()} does not fit: "
                        "call jax.config.update('jax_enable_x64', True) first"
                    )
        return jnp.array(host, device=self.device)

    def dealt(self, rows: np.ndarray, dtype: str) -> MeshBank:
        """Rows of the host (N, D) as a bank that is dealt out to the devices, :func:`la_core.bank.stored` so."""
        assert self.devices is not None
        there = copy(self)
        there.device = self.devices.by_rows
        return self.devices.bank(rows, lambda filled: stored(filled, there, dtype))

    def to_host(self, x: Array) -> np.ndarray:
        """A copy of the numbers of ``x``, whose memory may be given away; bfloat16 as float32, since NumPy lacks it."""
        return np.array(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)

    def seed(self, seed: int) -> None:
        """JAX draws from keys that an encoder brings with it."""

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """Under ``jax.jit``, once for each set of shapes."""
        compiled: Callable[..., Any] = jax.jit(function, donate_argnums=consumes)
        return compiled
