"""Recipes by name: settings, a network with its options, and a view that belong together.

recipe = preset("paper-resnet18", n=len(data))
encoder = TorchEncoder(initialise(network(recipe.network, **recipe.options), recipe.settings.seed), ...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar

from la_core.errors import RangeError
from la_core.settings import Settings
from la_core.views import ImageView

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a run is made of, the data aside."""

    description: str
    settings: Settings
    network: str
    """Its name in the backend: ``la_core.backends.torch.network(preset.network, **preset.options)``."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    view: ImageView = field(default_factory=ImageView)


def preset(name: str, n: int) -> Preset:
    """The preset of that name for ``n`` training samples.

    Raises
    ------
    RangeError
        There is no preset of that name: says which there are.
    SettingsError
        More clusters or neighbours than there are samples.
    """
    made = chosen("preset", name, presets)(n)
    made.settings.resolved(n)
    return made


def chosen(what: str, name: str, among: Mapping[str, T]) -> T:
    """``among[name]``, or an error that says which names there are, and which is nearest."""
    if name not in among:
        hint = get_close_matches(name, among, n=1)
        raise RangeError(
            f"there is no {what} {name!r}; there are {', '.join(among)}"
            + (f". Did you mean {hint[0]!r}?" if hint else "")
        )
    return among[name]


WHITEN = 16
"""Coordinates of an embedding that are whitened together in networks for :func:`small`."""


def small(n: int) -> Settings:
    """Settings for small and middle data, of ``n`` samples: two views, and clusters and a background that grow with it.

    The warm-up compares views within a batch: at a few thousand samples the rows of a bank are too old, as measured in
    steps, for an encoder that changes fast. Half of the loss stays so afterwards, and a majority of the clusterings
    decides, since clusters of an encoder that has seen little data are often wrong. Meant for a network whose embedding
    is whitened, ``whiten=WHITEN``. Found by ``benchmarks/learning.py``.
    """
    return Settings(
        epochs=80,
        warmup_epochs=40,
        batch_size=64,
        views=2,
        optimizer="adam",
        learning_rate=6e-3,
        schedule="cosine",
        warmup="batch",
        temperature=0.1,
        instance_weight=0.5,
        combine="majority",
        n_background=max(1, min(n // 5, 4096)),
        n_clusters=max(1, n // 25),
        n_clusterings=8,
    )


def _paper(
    n_clusterings: int, n_clusters: int, epochs: int, drops: tuple[float, ...], batch_size: int = 128
) -> Settings:
    """The settings of the published code for ImageNet; what is not an argument is common to all of its networks."""
    return Settings(
        epochs=epochs,
        warmup_epochs=10,
        batch_size=batch_size,
        warmup_batch_size=128,
        optimizer="sgd",
        learning_rate=0.03,
        schedule="step",
        drops=drops,
        momentum=0.9,
        weight_decay=1e-4,
        temperature=0.07,
        mixing=0.5,
        bank_start="random",
        warmup="nce",
        n_noise=4096,
        n_background=4096,
        n_clusters=n_clusters,
        n_clusterings=n_clusterings,
        tolerance=0.0,
        knn_k=200,
    )


_PUBLISHED_NORM = {"momentum": 0.003}
_PAPER = "of the Local Aggregation paper for ImageNet, by its published code"

presets: dict[str, Callable[[int], Preset]] = {
    "paper-alexnet": lambda n: Preset(
        description=f"AlexNet with batch norm, {_PAPER}.",
        settings=_paper(3, 30_000, 160, (118.9, 142.2)),
        network="AlexNet",
        options=_PUBLISHED_NORM,
    ),
    "paper-vgg16": lambda n: Preset(
        description=f"VGG16 with batch norm, {_PAPER}.",
        settings=_paper(6, 10_000, 168, (126, 148), batch_size=256),
        network="VGG16",
        options=_PUBLISHED_NORM,
    ),
    "paper-resnet18": lambda n: Preset(
        description=f"ResNet-18 with pre-activation, {_PAPER}.",
        settings=_paper(10, 30_000, 200, (159.9, 187.2)),
        network="ResNet18",
        options={"preactivation": True, **_PUBLISHED_NORM},
    ),
    "paper-resnet50": lambda n: Preset(
        description=f"ResNet-50 with pre-activation, {_PAPER}.",
        settings=_paper(10, 30_000, 200, (152.1, 189.4)),
        network="ResNet50",
        options={"preactivation": True, **_PUBLISHED_NORM},
    ),
    "small": lambda n: Preset(
        description="A small CNN for up to some tens of thousands of images of about 64 pixels, two views of each.",
        settings=small(n),
        network="SmallCNN",
        options={"channels": 3, "whiten": WHITEN},
        view=ImageView(size=64),
    ),
}
"""By name, from the number of training samples. Add your own."""
