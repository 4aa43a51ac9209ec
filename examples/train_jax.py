"""Local Aggregation of images with JAX: ``python examples/train_jax.py`` (``--help`` tells the options).

Your own network: add a function below that takes the backend, the settings and the shape of a view, and returns a
``JaxEncoder``.
"""

import math
import sys

from flax import nnx

from la_core import job
from la_core.backends.jax import (
    JaxBackend,
    JaxEncoder,
    Perceptron,
    SmallCNN,
    cost,
    decayed,
    initialise,
    make_optimizer,
    network,
    nnx_encoder,
)
from la_core.digits import GENTLE_SETTINGS, GENTLE_VIEW
from la_core.presets import WHITEN
from la_core.protocol import Backend
from la_core.settings import Settings

DIM = 64


def cnn(backend: Backend, settings: Settings, shape: tuple[int, ...]) -> JaxEncoder:
    """Four convolutions, of which the first keeps the size of small images: things may be few pixels large."""
    width, unpooled = (12, 1) if shape[-1] <= 32 else (16, 0)
    module = SmallCNN(shape[0], DIM, width=width, unpooled=unpooled, whiten=WHITEN, rngs=nnx.Rngs(0))
    return encoder(module, backend, settings)


def perceptron(backend: Backend, settings: Settings, shape: tuple[int, ...]) -> JaxEncoder:
    """Two hidden layers."""
    return encoder(Perceptron((math.prod(shape), 1024, 512, DIM), rngs=nnx.Rngs(0)), backend, settings)


def encoder(module: nnx.Module, backend: Backend, settings: Settings) -> JaxEncoder:
    """A module on the backend's device, its weights drawn by the seed, with the optimizer of the settings."""
    assert isinstance(backend, JaxBackend)
    initialise(module, settings.seed)
    return nnx_encoder(module, make_optimizer(settings, decayed(module)), device=backend.device)


if __name__ == "__main__":
    encoders = {"cnn": job.Recipe(cnn), "mlp": job.Recipe(perceptron, GENTLE_SETTINGS, GENTLE_VIEW)}
    sys.exit(job.main("jax", encoders, networks=job.Networks(network, encoder, cost), devices=True))
