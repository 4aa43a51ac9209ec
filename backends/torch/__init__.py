"""PyTorch: kernels with their derivatives, any ``nn.Module`` as an encoder, and a criterion for your own loop.

encoder = TorchEncoder(module, make_optimizer(module, settings))      for la_core.train
criterion = LocalAggregation(len(dataset), 128)                       loss = criterion(model(x), indices)

The criterion is imported when it is asked for, with PyTorch's compiler, which takes a second.
"""

from typing import TYPE_CHECKING, Any

from la_core.backends.torch import kernels
from la_core.backends.torch.backend import TorchBackend
from la_core.backends.torch.costs import cost
from la_core.backends.torch.dlpack import DLPackEncoder
from la_core.backends.torch.encoder import TorchEncoder, make_optimizer, parameter_groups
from la_core.backends.torch.networks import (
    VGG16,
    AlexNet,
    Perceptron,
    ResNet18,
    ResNet50,
    SmallCNN,
    TorchvisionAlexNet,
    TorchvisionVGG16,
    Whiten,
    initialise,
    network,
)

if TYPE_CHECKING:
    from la_core.backends.torch.criterion import LocalAggregation

__all__ = [
    "VGG16",
    "AlexNet",
    "DLPackEncoder",
    "LocalAggregation",
    "Perceptron",
    "ResNet18",
    "ResNet50",
    "SmallCNN",
    "TorchBackend",
    "TorchEncoder",
    "TorchvisionAlexNet",
    "TorchvisionVGG16",
    "Whiten",
    "cost",
    "initialise",
    "kernels",
    "make_optimizer",
    "network",
    "parameter_groups",
]


def __getattr__(name: str) -> Any:
    if name != "LocalAggregation":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from la_core.backends.torch.criterion import LocalAggregation

    return LocalAggregation
