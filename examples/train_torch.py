"""Local Aggregation of images with PyTorch: ``python examples/train_torch.py`` (``--help`` tells the options).

Your own network: add a function below that takes the backend, the settings and the shape of a view, and returns a
``TorchEncoder``.
"""

import math
import sys

import torch

from la_core import job
from la_core.backends.torch import (
    Perceptron,
    SmallCNN,
    TorchBackend,
    TorchEncoder,
    cost,
    initialise,
    make_optimizer,
    network,
)
from la_core.digits import GENTLE_SETTINGS, GENTLE_VIEW
from la_core.presets import WHITEN
from la_core.protocol import Backend
from la_core.settings import Settings

DIM = 64


def cnn(backend: Backend, settings: Settings, shape: tuple[int, ...]) -> TorchEncoder:
    """Four convolutions, of which the first keeps the size of small images: things may be few pixels large."""
    width, unpooled = (12, 1) if shape[-1] <= 32 else (16, 0)
    module = SmallCNN(shape[0], DIM, width=width, unpooled=unpooled, whiten=WHITEN)
    return encoder(module, backend, settings)


def perceptron(backend: Backend, settings: Settings, shape: tuple[int, ...]) -> TorchEncoder:
    """Two hidden layers."""
    return encoder(Perceptron((math.prod(shape), 1024, 512, DIM)), backend, settings)


def encoder(module: torch.nn.Module, backend: Backend, settings: Settings) -> TorchEncoder:
    """A module on the backend's device, its weights drawn by the seed, with the optimizer of the settings."""
    assert isinstance(backend, TorchBackend)
    module = initialise(module, settings.seed).to(backend.device)
    return TorchEncoder(module, make_optimizer(module, settings), device=backend.device)


if __name__ == "__main__":
    encoders = {"cnn": job.Recipe(cnn), "mlp": job.Recipe(perceptron, GENTLE_SETTINGS, GENTLE_VIEW)}
    sys.exit(job.main("torch", encoders, networks=job.Networks(network, encoder, cost)))
