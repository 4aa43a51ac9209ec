"""Weights of an encoder in a safetensors file, under PyTorch's names, for any library and any other program.

    export.save(encoder, "resnet18.safetensors")
    torchvision_resnet18.load_state_dict(safetensors.torch.load_file("resnet18.safetensors"), strict=False)

torchvision's names and shapes are those of ResNet18 and ResNet50 without pre-activation, TorchvisionAlexNet and
TorchvisionVGG16 (``vgg16_bn``).

An encoder that can be exported has ``torch_weights()`` and ``load_torch_weights(weights)``: parameters and running
statistics in PyTorch's layouts, such as ``layer1.0.conv1.weight`` (out, in, height, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from la_core.errors import BackendError, DataError, KindError, ShapeError
from la_core.folder import whole

HEADS = ("fc.", "head.", "classifier.6.")
"""Names of what makes the embedding begin with one of these: ``classifier.6`` in torchvision's AlexNet and VGG16."""


def save(encoder: Any, path: str | Path, *, head: bool = False) -> None:
    """Write the weights of an encoder, with ``head`` those of its embedding too.

    The file's metadata tell ``network`` (the class), ``dim`` (of the embedding, where there is a head) and the version
    of la-core.

    Raises
    ------
    KindError
        An encoder that has no weights by PyTorch's names.
    DataError
        A file that cannot be written.
    BackendError
        safetensors is not installed: says what to install.
    """
    from la_core import __version__

    save_file, _ = _safetensors()
    weights = _weights(encoder)
    metadata = {"la-core": __version__, "format": "pt", "network": str(getattr(encoder, "network", ""))}
    last = [x for name, x in weights.items() if name.startswith(HEADS) and x.ndim == 2]
    if last:
        metadata["dim"] = str(last[-1].shape[0])
    chosen = {
        name: np.asarray(x, x.dtype.newbyteorder("<"), order="C")
        for name, x in sorted(weights.items())
        if head or not name.startswith(HEADS)
    }
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder: give the name of a file")
    try:
        whole(Path(path), lambda file: save_file(chosen, file, metadata=metadata))
    except Exception as error:  # also safetensors' own
        raise DataError(f"{path} cannot be written: {error}") from error


def load(encoder: Any, path: str | Path) -> dict[str, str]:
    """Take over the weights of a file into an encoder on any library. A head that the file lacks stays as it is.

    Returns
    -------
    dict
        The metadata of the file.

    Raises
    ------
    KindError, ShapeError
        Weights of another network: names the first that do not fit. Nothing is changed then.
    DataError
        A file that is missing or cannot be read.
    BackendError
        safetensors is not installed: says what to install.
    """
    _, safe_open = _safetensors()
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys())
            given = {name: file.get_tensor(name) for name in names}
    except Exception as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    mine = _weights(encoder)
    fit(mine, given, f"{path}, weights of {metadata.get('network') or 'an unnamed network'},")
    encoder.load_torch_weights(mine | given)
    return metadata


def fit(mine: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], file: str) -> None:
    """Refuse weights that are not those of an encoder: all of them, though a head may be left out as a whole.

    The counters of PyTorch's batch norm may be among them.

    Raises
    ------
    KindError, ShapeError
        Names the first that do not fit.
    """
    given = {name: x for name, x in given.items() if not name.endswith("num_batches_tracked")}
    headed = any(name.startswith(HEADS) for name in given)
    missing = sorted(name for name in set(mine) - set(given) if headed or not name.startswith(HEADS))
    unknown = sorted(set(given) - set(mine))
    if missing or unknown:
        raise KindError(f"{file} does not fit this encoder: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, x in given.items():
        if x.shape != mine[name].shape:
            raise ShapeError(f"{file} does not fit: {name} must have shape {mine[name].shape}; got {x.shape}")


def _weights(encoder: Any) -> dict[str, np.ndarray]:
    if not hasattr(encoder, "torch_weights"):
        raise KindError(
            f"a {type(encoder).__name__} has no weights by PyTorch's names: export a TorchEncoder or an NnxEncoder"
        )
    weights: dict[str, np.ndarray] = encoder.torch_weights()
    return weights


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors import safe_open
        from safetensors.numpy import save_file
    except ModuleNotFoundError:
        raise BackendError("export needs the package 'safetensors': pip install 'la-core[export]'") from None
    return save_file, safe_open
