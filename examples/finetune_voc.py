"""Fine-tune torchvision's Faster R-CNN (ResNet-50, FPN) on PASCAL VOC 2007 from weights of la_core, and test it.

    python examples/finetune_voc.py resnet50.safetensors --data VOCdevkit/VOC2007 --out detector

The weights are those that ``la_core.export.save`` wrote of a ResNet50 of the first form (``preactivation=False``) that
learnt from RGB images with the mean and deviation of ``ImageView``. Trains on ``trainval``, tests on ``test``, and
prints the 11-point AP of each class at overlap 0.5. ``docs/transfer.md`` tells what of this has been run.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from la_core import LaCoreError, check, voc
from la_core.data import batches
from la_core.errors import BackendError, DataError, NotFiniteError, RunFolderError
from la_core.randomness import generator
from la_core.voc import VOC, Detections, Objects


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, print a table. Returns the exit status."""
    options = parser().parse_args(argv)
    try:
        result = run(options)
    except LaCoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{result}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("weights", metavar="WEIGHTS", help="a .safetensors file of a ResNet50")
    add("--data", metavar="FOLDER", required=True, help="holds JPEGImages, Annotations and ImageSets")
    add("--train", default="trainval", metavar="LIST", help="of ImageSets/Main (trainval)")
    add("--test", default="test", metavar="LIST", help="of ImageSets/Main (test)")
    add("--epochs", type=int, default=17, help="(17; the learning rate falls to a tenth after 3/4 of them)")
    add("--batch-size", type=int, default=2, help="images at once (2)")
    add("--learning-rate", type=float, default=0.0025, help="(0.0025 for 2 images: 0.02 for 16)")
    add(
        "--size",
        type=int,
        default=800,
        metavar="PIXELS",
        help="of the shorter side (800; the longer has at most 5/3 of it)",
    )
    add("--trainable", type=int, default=3, help="stages of the backbone that learn, from the last (3)")
    add("--device", default="cpu", help="in PyTorch's words (cpu)")
    add("--seed", type=int, default=0, help="of what the detector draws, the order, and the mirror images")
    add("--out", metavar="FOLDER", required=True, help="a new folder for detector.pt and result.json")
    return found


def run(options: argparse.Namespace) -> voc.AveragePrecision:
    """What the options ask for."""
    train, test = VOC(options.data, options.train), VOC(options.data, options.test)
    out = Path(options.out)
    if out.exists():
        raise RunFolderError(f"{out} is there already; name another one")
    check.count("--batch-size", options.batch_size)
    torch.manual_seed(options.seed)
    model = detector(len(train.classes), options.trainable, options.size)
    dropped = fill(model, Path(options.weights))
    print(f"backbone from {options.weights}" + f"; without {', '.join(dropped)}" * bool(dropped), file=sys.stderr)
    model.to(options.device)
    out.mkdir(parents=True)
    fine_tune(
        model,
        train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=options.device,
        tell=lambda words: print(words, file=sys.stderr, flush=True),
    )
    torch.save(model.state_dict(), out / "detector.pt")
    result = voc.average_precision(detect(model, test, device=options.device), test.objects, test.classes)
    by_class = {name: None if math.isnan(ap) else ap for name, ap in result.by_class.items()}  # JSON has no NaN
    mean = None if math.isnan(result.mean) else result.mean
    facts = {"mean": mean, "by_class": by_class, "overlap": result.overlap, **vars(options)}
    (out / "result.json").write_text(json.dumps(facts, indent=2) + "\n")
    return result


def detector(n_classes: int, trainable: int, size: int = 800) -> nn.Module:
    """torchvision's Faster R-CNN on a ResNet-50 with a feature pyramid, weights drawn anew, nothing downloaded.

    Batch norm of the backbone is frozen: its statistics are those that la_core learnt.
    """
    try:
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    except ImportError as error:
        raise BackendError(f"fine-tuning a detector needs torchvision ({error}): pip install torchvision") from None
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=trainable)
    # Class 0 is the background; 1333 of 800 pixels are torchvision's bounds.
    made: nn.Module = FasterRCNN(backbone, num_classes=n_classes + 1, min_size=size, max_size=size * 1333 // 800)
    return made


def fill(model: nn.Module, path: Path) -> list[str]:
    """The file's weights into the backbone of a detector. Returns the names of those that it has no use for."""
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise BackendError("weights in a file need the package 'safetensors': pip install 'la-core[export]'") from None
    try:
        weights = load_file(path)
    except Exception as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    state = model.state_dict()
    found = voc.backbone(weights, {name: tuple(x.shape) for name, x in state.items()})
    model.load_state_dict(state | {name: torch.from_numpy(x) for name, x in found.weights.items()})
    return found.dropped


def fine_tune(
    model: nn.Module,
    data: VOC,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    device: str = "cpu",
    tell: Callable[[str], None] | None = None,
) -> None:
    """Train a detector with torchvision's interface: images and targets in, a dictionary of losses out.

    SGD with momentum 0.9 and weight decay 1e-4; the rate rises over the first 500 steps, and falls to a tenth after
    three quarters of the epochs. Difficult objects are not shown. Half of the images are mirrored.

    Raises
    ------
    NotFiniteError
        A loss that is not finite: names the step.
    """
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=learning_rate, momentum=0.9, weight_decay=1e-4)
    model.train()
    step = 0
    for epoch in range(epochs):
        rate = learning_rate * (0.1 if epoch >= 0.75 * epochs else 1.0)
        total, order = 0.0, batches(len(data), batch_size, seed=seed, epoch=epoch)
        for rows in order:
            images, targets = [], []
            for i in map(int, rows):
                image, objects = data[i]
                mirrored = generator(seed, "mirror", epoch, i).random() < 0.5
                x, target = example(*(mirror(image, objects) if mirrored else (image, objects)))
                images.append(x.to(device))
                targets.append({name: y.to(device) for name, y in target.items()})
            losses: dict[str, Tensor] = model(images, targets)
            loss = torch.stack([*losses.values()]).sum()
            step += 1
            if not torch.isfinite(loss):
                raise NotFiniteError(f"the loss is not finite at step {step}: lower --learning-rate")
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / 500)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        if tell is not None:
            tell(f"epoch {epoch + 1}/{epochs}: loss {total / len(order):.3f}")


def detect(model: nn.Module, data: VOC, *, device: str = "cpu") -> list[Detections]:
    """What a detector with torchvision's interface finds in each image."""
    model.eval()
    found = []
    with torch.no_grad():
        for i in range(len(data)):
            image, _ = data[i]
            (claims,) = model([pixels(image).to(device)])
            boxes, labels, scores = (claims[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
            found.append(Detections(boxes, labels.astype(np.int64) - 1, scores))
    return found


def mirror(image: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
    """Left becomes right."""
    boxes = objects.boxes.copy()
    boxes[:, [0, 2]] = image.shape[1] - objects.boxes[:, [2, 0]]
    return image[:, ::-1], objects._replace(boxes=boxes)


def example(image: np.ndarray, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its target as torchvision's detectors take them; labels from 1, since 0 is the background."""
    asked = ~objects.difficult
    target = {
        "boxes": torch.from_numpy(objects.boxes[asked].astype(np.float32)),
        "labels": torch.from_numpy(objects.labels[asked] + 1),
    }
    return pixels(image), target


def pixels(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]; the detector subtracts the mean itself."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


if __name__ == "__main__":
    sys.exit(main())
