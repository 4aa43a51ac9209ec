"""PyTorch: kernels with their derivatives, any ``nn.Module`` as an encoder, and a criterion for your own loop.

encoder = TorchEncoder(module, make_optimizer(module, settings))      for la_core.train
criterion = LocalAggregation(len(dataset), 128)                       loss = criterion(model(x), indices)
"""

from la_core.backends.torch import kernels
from la_core.backends.torch.backend import TorchBackend
from la_core.backends.torch.costs import cost
from la_core.backends.torch.criterion import LocalAggregation
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
