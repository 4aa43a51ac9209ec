"""What a module costs, found on torch's meta device: no weight is made, no number computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from la_core.dryrun import Cost


def cost(module: nn.Module | Callable[[], nn.Module], shape: Sequence[int]) -> Cost:
    """What the dry run needs to know of an encoder for samples of one shape.

    Parameters
    ----------
    module
        Left as it is; or a function that makes it, such as ``lambda: network("VGG16")``, which then is made without
        memory.
    shape
        Of one view, such as (3, 224, 224).
    """
    if not isinstance(module, nn.Module):
        with torch.device("meta"):
            module = module()
    state = {
        name: torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)
        for name, x in (*module.named_parameters(), *module.named_buffers())
    }
    training = module.training
    module.train()
    try:
        flops, two, dim = _forward(module, state, 2, shape)
        _, four, _ = _forward(module, state, 4, shape)
    finally:
        module.train(training)
    return Cost(
        macs=flops // 4,  # of two samples, two operations each
        parameters=sum(p.numel() for p in module.parameters()),
        activations=(four - two) // 2,  # the difference: what is kept of the weights is in both
        dim=dim,
    )


def _forward(module: nn.Module, state: dict[str, Tensor], batch: int, shape: Sequence[int]) -> tuple[int, int, int]:
    """Operations of one forward pass, bytes that it keeps for the backward pass, and the embedding's dimension."""
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x
        return x

    x = torch.empty((batch, *shape), device="meta")
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        z = functional_call(module, state, (x,))
    return counter.get_total_flops(), sum(x.untyped_storage().nbytes() for x in kept.values()), z.shape[1]
