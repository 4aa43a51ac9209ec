"""The processes of ``torch.distributed``: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from la_core.comm import ALONE, Comm, compare, fingerprint
from la_core.errors import DistributedError

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, where the program has not set up ``torch.distributed`` itself."""


class TorchComm:
    """The default group of ``torch.distributed``. Before anything is given all tell each other its kind and shape.

    Attributes
    ----------
    calls, payload
        Collectives made, those of fingerprints included, and bytes that this process gave to them.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.calls, self.payload = 0, 0

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, as gloo and NCCL make it: once for each part, and the same bits for all."""
        total = x.detach().clone(memory_format=torch.contiguous_format)
        self._compare("a sum", total)
        with self._counted(total):
            dist.all_reduce(total)
        return total

    def all_gather(self, x: Tensor) -> Tensor:
        """What each process gives, by rank."""
        given = x.detach().contiguous()
        self._compare("a part", given)
        return self._gathered(given)

    def _compare(self, what: str, x: Tensor) -> None:
        mine = torch.frombuffer(bytearray(fingerprint(what, x)), dtype=torch.uint8)
        compare(self._gathered(mine.to(x.device)).cpu().numpy())

    def _gathered(self, given: Tensor) -> Tensor:
        every = given.new_empty((self.size, *given.shape))
        with self._counted(given):
            dist.all_gather(list(every.unbind(0)), given)
        return every

    @contextmanager
    def _counted(self, x: Tensor) -> Iterator[None]:
        self.calls += 1
        self.payload += x.numel() * x.element_size()
        try:
            yield
        except RuntimeError as error:  # that of the group, for all that can go wrong between processes
            reason = str(error).splitlines()[0][:300]
            raise DistributedError(
                f"process {self.rank} of {self.size} cannot go on: another one has ended, or has not answered in time "
                f"(see what it says itself; torch.distributed: {reason})"
            ) from None


def comm(device: torch.device) -> Comm:
    """With whom this process works: the group that the program has set up, or torchrun's, or nobody."""
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise DistributedError(f"torch.distributed cannot begin: {str(error).splitlines()[0]}") from None
        # gloo's thread lets go of the last tensor a little later, and aborts the program if Python has ended by then.
        atexit.register(time.sleep, 0.2)
    return TorchComm() if dist.is_initialized() and dist.get_world_size() > 1 else ALONE
