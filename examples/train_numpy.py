"""Local Aggregation of images with NumPy alone: ``python examples/train_numpy.py`` (``--help`` tells the options).

No framework: the encoder is a multilayer perceptron differentiated by hand, and learns less than a convolution does.
"""

import math
import sys

from la_core import job
from la_core.digits import GENTLE_SETTINGS, GENTLE_VIEW
from la_core.mlp import MLP
from la_core.protocol import Backend
from la_core.settings import Settings

DIM = 64


def perceptron(backend: Backend, settings: Settings, shape: tuple[int, ...]) -> MLP:
    """Two hidden layers."""
    return MLP(backend, (math.prod(shape), 1024, 512, DIM), settings)


if __name__ == "__main__":
    sys.exit(job.main("numpy", {"mlp": job.Recipe(perceptron, GENTLE_SETTINGS, GENTLE_VIEW)}))
