"""What people would pick instead, written from the papers for comparison: SimCLR and VICReg, on PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from la_core.backends.torch import TorchEncoder
from la_core.data import Samples, batches, load
from la_core.randomness import derived_seed
from la_core.settings import Settings
from la_core.views import View

Loss = Callable[[Tensor, Tensor], Tensor]


def simclr(temperature: float) -> Loss:
    """NT-Xent (Chen et al. 2020, equation 1): each view against the other of its sample and all the rest."""

    def loss(a: Tensor, b: Tensor) -> Tensor:
        v = functional.normalize(torch.cat([a, b]))
        scores = (v @ v.T / temperature).fill_diagonal_(-torch.inf)
        other = torch.arange(len(v)).roll(len(a))
        return functional.cross_entropy(scores, other)

    return loss


def vicreg(invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Loss:
    """Variance, invariance and covariance (Bardes et al. 2022, equations 1 to 6)."""

    def spread(x: Tensor) -> Tensor:
        return torch.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()

    def correlation(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        c = x.T @ x / (len(x) - 1)
        return (c.square().sum() - c.diagonal().square().sum()) / c.shape[0]

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (
            invariance * functional.mse_loss(a, b)
            + variance * (spread(a) + spread(b)) / 2
            + covariance * (correlation(a) + correlation(b))
        )

    return loss


def fit(encoder: TorchEncoder, data: Samples, view: View, settings: Settings, loss: Loss) -> None:
    """The loop of Local Aggregation without its bank: the same batches, views, optimizer and schedule."""
    assert encoder.optimizer is not None
    keys = settings.seed, derived_seed(settings.seed, "second view")
    for epoch in range(settings.epochs):
        order = batches(len(data), settings.batch_size, seed=settings.seed, epoch=epoch)
        for number, indices in enumerate(order):
            views = np.concatenate([load(data, indices, view, (key, epoch)) for key in keys])
            z, back = encoder.pullback(torch.from_numpy(views))
            z.requires_grad_()
            loss(z[: len(indices)], z[len(indices) :]).backward()
            assert z.grad is not None
            back(z.grad)
            encoder.step(settings.rate(epoch + number / len(order)))
