"""JAX: kernels with their derivatives, any pytree or flax NNX module as an encoder, and losses for your own loop.

encoder = nnx_encoder(module, make_optimizer(settings, decayed(module)))              for la_core.train
loss = local_aggregation_loss(model(x), bank, labels, indices, n_background=..., temperature=...)

Who has arrays and no encoder needs JAX alone: flax and optax are imported when an encoder or a network is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from la_core.backends.jax import kernels
from la_core.backends.jax.backend import JaxBackend
from la_core.backends.jax.objective import instance_discrimination_loss, local_aggregation_loss

if TYPE_CHECKING:
    from la_core.backends.jax.costs import cost
    from la_core.backends.jax.encoder import JaxEncoder, NnxEncoder, decayed, make_optimizer, nnx_encoder
    from la_core.backends.jax.exchange import initialise, load_torch_weights, torch_weights
    from la_core.backends.jax.networks import (
        VGG16,
        AlexNet,
        Perceptron,
        ResNet18,
        ResNet50,
        SmallCNN,
        TorchvisionAlexNet,
        TorchvisionVGG16,
        Whiten,
        network,
    )

__all__ = [
    "VGG16",
    "AlexNet",
    "JaxBackend",
    "JaxEncoder",
    "NnxEncoder",
    "Perceptron",
    "ResNet18",
    "ResNet50",
    "SmallCNN",
    "TorchvisionAlexNet",
    "TorchvisionVGG16",
    "Whiten",
    "cost",
    "decayed",
    "initialise",
    "instance_discrimination_loss",
    "kernels",
    "load_torch_weights",
    "local_aggregation_loss",
    "make_optimizer",
    "network",
    "nnx_encoder",
    "torch_weights",
]

_LATER = dict.fromkeys(("JaxEncoder", "NnxEncoder", "decayed", "make_optimizer", "nnx_encoder"), "encoder")
_LATER |= dict.fromkeys(("initialise", "load_torch_weights", "torch_weights"), "exchange")
_LATER |= dict.fromkeys(("AlexNet", "Perceptron", "ResNet18", "ResNet50", "SmallCNN", "VGG16", "network"), "networks")
_LATER |= dict.fromkeys(("TorchvisionAlexNet", "TorchvisionVGG16", "Whiten"), "networks")
_LATER["cost"] = "costs"


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
