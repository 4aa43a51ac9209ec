"""PyTorch tensors on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from la_core.errors import BackendError


class TorchBackend:
    """PyTorch on one device: ``"cpu"`` (the default), ``"cuda"``, ``"cuda:1"``, ..."""

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        try:
            self.device = torch.device(device or "cpu")
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise BackendError(f"PyTorch cannot use device {device!r}: {reason}") from None

    def asarray(self, host: np.ndarray) -> Tensor:
        """A copy of ``host`` on the device; the bank is written in place, and the caller's array must not be."""
        return torch.tensor(host, device=self.device)

    def to_host(self, x: Tensor) -> np.ndarray:
        """The numbers of ``x``; bfloat16, which NumPy lacks, as float32."""
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()

    def seed(self, seed: int) -> None:
        """Seed what PyTorch draws itself, such as dropout."""
        torch.manual_seed(seed)

    def compile(self, function: Callable[..., Any], consumes: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The function as it is."""
        return function
