"""A multilayer perceptron differentiated by hand: the encoder of array libraries that do not differentiate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np

from la_core import check
from la_core.errors import KindError, ShapeError
from la_core.kernels import Array
from la_core.protocol import Backend
from la_core.randomness import generator
from la_core.settings import Settings
from la_core.spaces import array_namespace


class MLP:
    """``x -> relu(x W + b) -> ... -> x W + b``, with the optimizer of the settings.

    Parameters
    ----------
    backend
        Where the weights live.
    sizes
        Widths from the input F to the embedding D, for example ``(1024, 512, 128)``. A batch is flattened to (B, F).
    settings
        Seed, dtype, optimizer, momentum and weight decay, which is on everything: there are no normalisation layers.
    """

    def __init__(self, backend: Backend, sizes: Sequence[int], settings: Settings) -> None:
        self._backend, self._settings = backend, settings
        rng = generator(settings.seed, "mlp")
        self._parameters: dict[str, Array] = {}
        for i, (rows, columns) in enumerate(pairwise(sizes)):
            gain = 1.0 if i == len(sizes) - 2 else 2.0  # a ReLU halves what passes
            weight = np.sqrt(gain / rows) * rng.standard_normal((rows, columns))
            self._parameters[f"{i}.weight"] = backend.asarray(weight.astype(settings.dtype))
            self._parameters[f"{i}.bias"] = backend.asarray(np.zeros(columns, settings.dtype))
        self._depth = len(sizes) - 1
        self._gradients: dict[str, Array] = {}
        self._moments = {name: (0.0 * p, 0.0 * p) for name, p in self._parameters.items()}
        self._steps = 0

    def _forward(self, batch: Array) -> list[Array]:
        """What goes into each layer and, last, what comes out."""
        xp = array_namespace(batch)
        passed = [xp.reshape(batch, (batch.shape[0], -1))]
        wide, width = passed[0].shape[1], self._parameters["0.weight"].shape[0]
        if wide != width:
            raise ShapeError(f"this MLP takes {width} numbers of a sample; got {wide}")
        for i in range(self._depth):
            x = passed[-1] @ self._parameters[f"{i}.weight"] + self._parameters[f"{i}.bias"]
            passed.append(x if i == self._depth - 1 else xp.clip(x, min=0.0))
        return passed

    def apply(self, batch: Array) -> tuple[Array, Array]:
        """Embeddings (B, D), and the layer before them."""
        passed = self._forward(batch)
        return passed[-1], passed[-2]

    def pullback(self, batch: Array) -> tuple[Array, Callable[[Array], None]]:
        """Embeddings, and the chain rule back through every layer."""
        passed = self._forward(batch)

        def back(cotangent: Array) -> None:
            xp = array_namespace(cotangent)
            for i in reversed(range(self._depth)):
                x = passed[i]
                self._gradients[f"{i}.weight"] = xp.matrix_transpose(x) @ cotangent
                self._gradients[f"{i}.bias"] = xp.sum(cotangent, axis=0)
                if i:  # through the product, then through the ReLU that made x: open where x is above zero
                    cotangent = cotangent @ xp.matrix_transpose(self._parameters[f"{i}.weight"])
                    cotangent = cotangent * xp.astype(x > 0, x.dtype)

        return passed[-1], back

    def sum_gradients(self, all_sum: Callable[[Array], Array]) -> None:
        """The gradients of the last ``back``, added up over all processes, in one vector."""
        given = self._gradients
        xp = array_namespace(*given.values())
        total = all_sum(xp.concat([xp.reshape(gradient, (-1,)) for gradient in given.values()]))
        ends = accumulate(prod(gradient.shape) for gradient in given.values())
        self._gradients = {
            name: xp.reshape(total[end - prod(gradient.shape) : end], gradient.shape)
            for (name, gradient), end in zip(given.items(), ends, strict=True)
        }

    def step(self, learning_rate: float) -> None:
        """SGD with momentum, or Adam with decoupled weight decay (Loshchilov and Hutter 2019).

        Raises
        ------
        NotFiniteError
            A gradient holds NaN or infinity: names the first. Nothing has moved.
        """
        for name, gradient in self._gradients.items():
            check.finite(f"the gradient of {name}", gradient)
        decay, momentum = self._settings.weight_decay, self._settings.momentum
        self._steps += 1
        for name, gradient in self._gradients.items():
            xp = array_namespace(gradient)
            weights, (first, second) = self._parameters[name], self._moments[name]
            if self._settings.optimizer == "sgd":
                first = momentum * first + gradient + decay * weights
                move = first
            else:
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient * gradient
                spread = xp.sqrt(second / (1 - 0.999**self._steps)) + 1e-8
                move = first / (1 - 0.9**self._steps) / spread + decay * weights
            self._parameters[name] = weights - learning_rate * move
            self._moments[name] = (first, second)

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights, named ``0.weight``, ``0.bias``, ``1.weight``, ..."""
        return {name: np.array(self._backend.to_host(p)) for name, p in self._parameters.items()}

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over weights by name.

        Raises
        ------
        KindError
            Those of another perceptron: nothing is changed then.
        """
        mine = {name: p.shape for name, p in self._parameters.items()}
        given = {name: np.shape(x) for name, x in weights.items()}
        if mine != given:
            raise KindError(f"weights of another perceptron: they must be {mine}; got {given}")
        dtype = self._settings.dtype
        self._parameters = {n: self._backend.asarray(np.asarray(weights[n]).astype(dtype)) for n in self._parameters}

    def training_state(self) -> dict[str, np.ndarray]:
        """Both moments of each weight, named ``0.weight.first``, ``0.weight.second``, ..., and the ``steps`` made."""
        state = {"steps": np.array(self._steps)}
        for name, moments in self._moments.items():
            for order, x in zip(_ORDERS, moments, strict=True):
                state[f"{name}.{order}"] = np.array(self._backend.to_host(x))
        return state

    def load_training_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over moments and steps, from a perceptron of the same sizes on any backend."""
        mine = {name: x.shape for name, x in self.training_state().items()}
        given = {name: np.shape(x) for name, x in state.items()}
        if mine != given:
            raise KindError(f"moments of another perceptron: they must be {mine}; got {given}")
        asarray = self._backend.asarray
        self._moments = {n: (asarray(state[f"{n}.first"]), asarray(state[f"{n}.second"])) for n in self._parameters}
        self._steps = int(state["steps"])


_ORDERS = ("first", "second")
