"""PyTorch tensors on one device."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from la_core.backends.torch import comm
from la_core.backends.torch.small import by_numpy
from la_core.comm import Comm
from la_core.errors import BackendError


class TorchBackend:
    """PyTorch on one device: ``"cpu"`` (the default), ``"cuda"``, ``"cuda:1"``, ...

    Started by torchrun, or where the program has set up ``torch.distributed``, all processes make one run together;
    ``"cuda"`` is then the GPU of the process's local rank.
    """

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        try:
            self.device = torch.device(device or "cpu")
            if device == "cuda" and "LOCAL_RANK" in os.environ:
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise BackendError(f"PyTorch cannot use device {device!r}: {reason}") from None

    @cached_property
    def comm(self) -> Comm:
        """The processes of the run."""
        return comm.comm(self.device)

    def asarray(self, host: np.ndarray, *, copy: bool = True) -> Tensor:
        """A copy of ``host`` on the device; the bank is written in place, and the caller's array must not be.

        A CPU takes over what it is given: all threads would share a copy, and wait for one that loads the next batch.
        """
        if copy or not host.flags.writeable:  # a tensor cannot be read-only
            return torch.tensor(host, device=self.device)
        return torch.as_tensor(host, device=self.device)

    def to_host(self, x: Tensor) -> np.ndarray:
        """The numbers of ``x``; bfloat16, which NumPy lacks, as float32."""
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()

    def seed(self, seed: int) -> None:
        """Seed what PyTorch draws itself, such as dropout."""
        torch.manual_seed(seed % 2**64)  # it takes no more

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """On a CPU the same by NumPy, where all is small."""
        return by_numpy(function) if self.device.type == "cpu" and self.comm.size == 1 else function
