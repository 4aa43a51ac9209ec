"""The arithmetic of the published objective, rebuilt from its description: what a step of it costs, as it was run.

Every score of the batch against the bank is stored (B, N); the background is taken from it by ``topk``; probabilities
are exponentials over a constant normaliser, which cancels; close neighbours are a boolean mask made by comparing
labels, clustering by clustering; a small constant is added to the ratio before the logarithm; autograd goes back
through the dense scores. Then the bank rows of the batch are mixed and made unit length again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NORMALISER = 2876934.2 / 1281167
"""Of the probabilities, for each row of the bank."""
EPSILON = 1e-7
"""Added to the ratio of the two probabilities."""


@dataclass
class Published:
    """The bank (N, D) with unit rows, written in place, and labels (H, N)."""

    bank: Tensor
    labels: Tensor
    n_background: int
    temperature: float
    mixing: float = 0.5

    def loss(self, z: Tensor, indices: Tensor) -> Tensor:
        """Loss of each row (B,), of the encoder's output (B, D)."""
        v = z / z.norm(dim=1, keepdim=True)
        scores = v @ self.bank.T
        nearest = torch.topk(scores, self.n_background, dim=1, sorted=False)
        probability = torch.exp(nearest.values / self.temperature) / (NORMALISER * len(self.bank))
        in_close = torch.where(self.close(indices, nearest.indices), probability, 0.0)
        return -torch.log(in_close.sum(dim=1) / probability.sum(dim=1) + EPSILON)

    def close(self, indices: Tensor, neighbours: Tensor) -> Tensor:
        """Which neighbours (B, k) share a cluster with the sample, in any clustering."""
        mask = torch.zeros_like(neighbours, dtype=torch.bool)
        for labels in self.labels:
            mask = mask | (labels[indices][:, None] == labels[neighbours])
        return mask

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """Mix new embeddings into their bank rows."""
        v = z / z.norm(dim=1, keepdim=True)
        mixed = (1 - self.mixing) * self.bank[indices] + self.mixing * v
        self.bank[indices] = mixed / mixed.norm(dim=1, keepdim=True)

    def step(self, z: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Forward, backward and update: loss of each row (B,), and the derivative of their mean (B, D)."""
        z = z.detach().requires_grad_()
        loss = self.loss(z, indices)
        (gradient,) = torch.autograd.grad(loss.mean(), z)
        self.update(z, indices)
        return loss.detach(), gradient
