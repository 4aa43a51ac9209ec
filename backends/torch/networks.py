"""Small PyTorch encoders: an image batch (B, C, H, W) or a feature batch (B, F) to embeddings (B, D)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """3 x 3 convolutions with batch norm, each at half the size and twice the width; global mean; one linear head.

    For images of about 24 to 96 pixels. A larger one wants a ResNet.
    """

    def __init__(self, channels: int, dim: int = 128, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for block in range(blocks):
            out = width * 2**block
            body += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            body.append(nn.MaxPool2d(2) if block < blocks - 1 else nn.AdaptiveAvgPool2d(1))
            channels = out
        self.body = nn.Sequential(*body, nn.Flatten())
        self.head = nn.Linear(channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        z: Tensor = self.head(self.body(x))
        return z


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; a batch is flattened first."""
    layers: list[nn.Module] = [nn.Flatten()]
    for rows, columns in pairwise(sizes[:-1]):
        layers += [nn.Linear(rows, columns, bias=False), nn.BatchNorm1d(columns), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
