"""Initial weights, drawn on the host by name: a network starts from the same numbers on every library.

Names and layouts are PyTorch's: a dense weight is (out, in), a convolution's (out, in, height, width).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from la_core.randomness import generator


def draws(shapes: Mapping[str, tuple[int, ...]], seed: int, rule: str = "uniform") -> dict[str, np.ndarray]:
    """New values, float32, for the dense and convolution weights among ``shapes`` and for their biases.

    Whatever else is there (normalisation, counters) is left out: those start at constants.

    Parameters
    ----------
    shapes
        By parameter name, such as ``"head.weight"``.
    seed
        With the name, all that the numbers of a parameter depend on.
    rule
        ``"uniform"``: within 1 / sqrt(fan in), PyTorch's own start of dense layers and convolutions;
        ``"he"``: normal, of variance 2 / fan out (He et al. 2015), and biases at 0.
    """
    drawn = {}
    for name, shape in shapes.items():
        owner = name.rpartition(".")[0]
        weight = shapes.get(f"{owner}.weight", ())
        if len(weight) < 2:
            continue
        rng = generator(seed, "initial", zlib.crc32(name.encode()))
        patch = int(np.prod(weight[2:]))
        if rule == "uniform":
            bound = (weight[1] * patch) ** -0.5
            x = rng.uniform(-bound, bound, shape)
        elif name.endswith(".weight"):
            x = rng.standard_normal(shape) * np.sqrt(2 / (weight[0] * patch))
        else:
            x = np.zeros(shape)
        drawn[name] = x.astype(np.float32)
    return drawn
