"""How well a line separates the classes of a labelled folder, layer by layer of a frozen network.

    python examples/probe.py resnet18.safetensors --data imagenet/train --test imagenet/val --sgd --augment
    python examples/probe.py runs/cnn-torch-1 --data photographs --size 64 --resize 72 --layers body.3 body.7 body.15

The first is as published: random views, stochastic gradient, ten crops with their softmax averaged. The second keeps
the features in memory and fits them to convergence; its test images are those that a run of the same seed held out.
``docs/transfer.md`` has the protocols.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import la_core
from la_core import ImageView, LaCoreError, check, export
from la_core.backends.torch import TorchBackend, TorchEncoder, network
from la_core.data import ImageFolder, Samples, Workers
from la_core.errors import BackendError, DataError, KindError, SettingsError
from la_core.randomness import generator
from la_core.transfer import PROBES, CropView, LayerProbes, ProbeSGD, TenCrop, probe_layers

TEST_SHARE = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table. Returns the exit status."""
    options = parser().parse_args(argv)
    try:
        if options.out and not Path(options.out).parent.is_dir():
            raise DataError(f"--out {options.out} cannot be written: there is no folder {Path(options.out).parent}")
        if options.out and Path(options.out).is_dir():
            raise DataError(f"--out {options.out} is a folder: give the name of a file")
        check.count("--seed", options.seed, least=0)
        if (options.augment or options.epochs is not None) and not options.sgd:
            raise SettingsError("--epochs and --augment are of --sgd: give it, too")
        probes = run(options)
    except LaCoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{probes}")
    if options.out:
        rows = {
            row.layer: {"accuracy": row.accuracy, "interval": row.interval, "features": row.n_features}
            for row in probes.layers
        }
        Path(options.out).write_text(json.dumps({"protocol": probes.protocol, "layers": rows}, indent=2) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("weights", metavar="RUN_OR_WEIGHTS", help="a run folder, or a .safetensors file by la_core.export")
    add("--data", metavar="FOLDER", required=True, help="training images; first-level subfolders are the classes")
    add("--test", metavar="FOLDER", help="test images in folders of the same names; by default a fifth of --data")
    add("--layers", nargs="+", metavar="NAME", help="submodules; by default the published ones of the network")
    add("--size", type=int, default=224, help="side of a crop in pixels (224)")
    add("--resize", type=int, default=256, help="shorter side of an image before it is cropped (256)")
    add("--crops", choices=("ten", "one"), default="ten", help="views of a test image (ten)")
    add("--sgd", action="store_true", help="train by stochastic gradient on random views; keeps no features in memory")
    add("--epochs", type=int, help="epochs of --sgd; drops of the learning rate move along")
    add("--augment", action="store_true", help="random views of --sgd by the published augmentation, not by crops only")
    add(
        "--max-features", type=int, help="maps of more values are averaged over windows (200000 with --sgd, else 10000)"
    )
    add("--batch-size", type=int, default=128, help="images at once (128)")
    add("--skip-broken", action="store_true", help="leave out files that cannot be read, and name them")
    add("--workers", type=int, default=0, metavar="N", help="processes that load images ahead")
    add("--device", default="cpu", help="in PyTorch's words (cpu)")
    add("--seed", type=int, default=0, help="of the split, the order, random views and intervals")
    add("--out", metavar="FILE", help="write the table as JSON, too")
    return found


def run(options: argparse.Namespace) -> LayerProbes:
    """What the options ask for."""
    backend = TorchBackend(options.device)
    name, encoder = load_encoder(Path(options.weights), options.size, options.device)
    layers = options.layers or (PROBES[name].layers if name in PROBES else None)
    if layers is None:
        parts = ", ".join(part for part, _ in encoder.module.named_modules() if part)
        raise KindError(f"--layers must name some of the layers of this {name}: {parts}")
    gray = next(encoder.module.parameters()).shape[1] == 1  # of a network that learnt from gray images
    train, test = data(options, "L" if gray else "RGB")
    crop = CropView(size=options.size, resize=options.resize)
    sgd = None
    if options.sgd:
        sgd = replace(PROBES[name].sgd if name in PROBES else ProbeSGD(), batch_size=options.batch_size)
        if options.epochs is not None:
            check.count("--epochs", options.epochs)
            stretch = options.epochs / sgd.epochs
            sgd = replace(sgd, epochs=options.epochs, drops=tuple(stretch * drop for drop in sgd.drops))
    with Workers(options.workers, train, test) as workers:
        return probe_layers(
            encoder,
            backend,
            train,
            test,
            ImageView(size=options.size) if options.augment else crop,
            layers,
            crops=TenCrop(size=options.size, resize=options.resize) if options.crops == "ten" else None,
            sgd=sgd,
            max_features=options.max_features,
            batch_size=options.batch_size,
            seed=options.seed,
            on_progress=lambda words: print(words, file=sys.stderr, flush=True),
            workers=workers,
        )


def data(options: argparse.Namespace, mode: str = "RGB") -> tuple[Samples, Samples]:
    """Training and test samples."""
    on_error = "skip" if options.skip_broken else "raise"

    def folder(path: str) -> Samples:
        found = la_core.samples(ImageFolder(path, mode=mode, on_error=on_error, workers=options.workers))
        if found.classes is None:
            raise DataError(f"{path} must hold at least two subfolders, one for each class, and no image beside them")
        return found

    train = folder(options.data)
    if options.test:
        return train, folder(options.test)
    order = generator(options.seed, "split").permutation(len(train))
    n_test = max(1, round(TEST_SHARE * len(train)))
    return train.part(np.sort(order[n_test:])), train.part(np.sort(order[:n_test]))


def load_encoder(path: Path, size: int, device: str) -> tuple[str, TorchEncoder]:
    """The network that the weights belong to, by name, and an encoder with them."""
    weights = read_weights(path)
    name, found = describe(weights)
    if name in ("AlexNet", "VGG16"):
        found["size"] = size
    encoder = TorchEncoder(network(name, **found), device=device)
    if path.is_dir():
        mine = encoder.weights()
        if set(mine) != set(weights) or any(mine[key].shape != weights[key].shape for key in mine):
            raise KindError(f"the weights in {path} are not those of a {name} of la_core")
        encoder.load(weights)
    else:
        export.load(encoder, path)
    return name, encoder


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Weights by PyTorch's names, of a run folder or a safetensors file."""
    if path.is_dir():
        file = path / "encoder.npz"
        if not file.is_file():
            raise DataError(f"{path} is no run folder: it has no encoder.npz")
        with np.load(file, allow_pickle=False) as arrays:
            weights = {key: arrays[key] for key in arrays.files}
        if any(key.startswith("parameters.") for key in weights):
            raise KindError(f"{path} is a run on JAX: give a file that la_core.export.save made of its encoder")
        return weights
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise BackendError("weights in a file need the package 'safetensors': pip install 'la-core[export]'") from None
    try:
        return dict(load_file(path))
    except Exception as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def describe(weights: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """Name and options of the network of la_core that has weights of these names and shapes."""
    kernels = {key: x for key, x in weights.items() if x.ndim == 4}
    names = {
        "layer1.0.conv3.weight": "ResNet50",
        "layer1.0.conv1.weight": "ResNet18",
        "conv1_1.0.weight": "VGG16",
        "conv5.0.weight": "AlexNet",
        "features.40.weight": "TorchvisionVGG16",
        "features.10.weight": "TorchvisionAlexNet",
        "body.0.weight": "SmallCNN",
    }
    name = next((name for key, name in names.items() if key in kernels), None)
    if name is None:
        raise KindError(
            f"the weights are of none of {', '.join(names.values())}; their names begin {sorted(weights)[:3]}"
        )
    first = next(
        kernels[key]
        for key in ("conv1.weight", "conv1.0.weight", "conv1_1.0.weight", "features.0.weight", "body.0.weight")
        if key in kernels
    )
    found: dict[str, Any] = {"channels": first.shape[1], "width": first.shape[0]}
    head = [x for key, x in weights.items() if key.startswith(export.HEADS) and x.ndim == 2]
    if head:
        found["dim"] = head[-1].shape[0]
        found["projection"] = head[0].shape[0] if len(head) > 1 else None
        found["whiten"] = whitened(weights)
    if name.startswith("ResNet"):
        found |= {"stem": "small" if first.shape[2] == 3 else "imagenet", "preactivation": "bn5.weight" in weights}
    if name == "SmallCNN":
        at = sorted(int(key.split(".")[1]) for key in kernels)  # each with its norm, a pooling or none, and ReLU
        found |= {"blocks": len(at), "unpooled": sum(after - one == 3 for one, after in pairwise(at))}
    return name, found


def whitened(weights: Mapping[str, np.ndarray]) -> int:
    """Coordinates that the head whitens together: it has running statistics, and no scale and shift beside them."""
    for key, x in weights.items():
        owner, _, last = key.rpartition(".")
        if key.startswith(export.HEADS) and f"{owner}.weight" not in weights:
            if last == "running_covariance":
                return int(x.shape[-1])
            if last == "running_var":
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
