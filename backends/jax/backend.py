"""JAX arrays on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from la_core.errors import BackendError, KindError


class JaxBackend:
    """JAX on one device: ``"cpu"`` (the default), ``"gpu"``, ``"cuda:1"``, ``"tpu"``, ...

    float64 needs ``jax.config.update("jax_enable_x64", True)`` before the first array is made.
    """

    name = "jax"

    def __init__(self, device: str | None = None) -> None:
        platform, _, number = (device or "cpu").partition(":")
        try:
            devices = jax.devices(platform)
            self.device = devices[int(number or 0)]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise BackendError(f"JAX cannot use device {device!r}: {reason}") from None

    def asarray(self, host: np.ndarray) -> Array:
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

    def to_host(self, x: Array) -> np.ndarray:
        """A copy of the numbers of ``x``, whose memory may be given away; bfloat16 as float32, since NumPy lacks it."""
        return np.array(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)

    def seed(self, seed: int) -> None:
        """JAX draws from keys that an encoder brings with it."""

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """Under ``jax.jit``, once for each set of shapes."""
        compiled: Callable[..., Any] = jax.jit(function, donate_argnums=consumes)
        return compiled
