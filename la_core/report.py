"""Pictures of a run, drawn by matplotlib into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from la_core.folder import read_metrics

BLUE, GREEN, RED, GRAY = "#2b6cb0", "#2a9d5c", "#d1495b", "#777777"


def curves(folder: str | Path, baselines: Mapping[str, float] | None = None) -> Path:
    """Draw loss, running kNN and close neighbours over the epochs of a run folder, as ``curves.png`` in it.

    ``baselines`` are accuracies to draw as level lines, by name.

    Raises
    ------
    RunFolderError
        The folder holds no metrics.
    """
    records = list(read_metrics(folder))
    figure, ((*axes,),) = _figure(1, 3, (12, 3.4))
    epochs = [r["epoch"] for r in records]
    phases = [r["phase"] for r in records]
    for axis in axes:
        switch = next((e - 0.5 for e, p in zip(epochs, phases, strict=True) if p != phases[0]), None)
        if switch is not None:
            axis.axvline(switch, color=GRAY, linewidth=0.8, linestyle=":")
        axis.set_xlabel("epoch")
    for phase in dict.fromkeys(phases):
        chosen = [r for r in records if r["phase"] == phase]
        axes[0].plot([r["epoch"] for r in chosen], [r["loss"] for r in chosen], label=phase)
    axes[0].set_title("loss")
    axes[0].legend(frameon=False)

    measured = [r for r in records if "knn" in r]
    axes[1].plot([r["epoch"] for r in measured], [r["knn"] for r in measured], color=GREEN, label="embedding, on bank")
    for i, (name, value) in enumerate((baselines or {}).items()):
        axes[1].axhline(value, color=GRAY, linewidth=1, linestyle=("--", ":", "-.")[i % 3], label=name)
    axes[1].set_title("weighted kNN accuracy")
    if measured:
        axes[1].legend(frameon=False)

    aggregated = [r for r in records if "mean_close" in r]
    axes[2].plot([r["epoch"] for r in aggregated], [r["mean_close"] for r in aggregated], color=BLUE)
    axes[2].set_title("close neighbours within the background")
    axes[2].set_ylabel("mean number", color=BLUE)
    axes[2].set_ylim(bottom=0)
    share = axes[2].twinx()
    share.plot([r["epoch"] for r in aggregated], [100 * r["without_close"] for r in aggregated], color=RED)
    share.set_ylabel("% of rows without any", color=RED)
    share.set_ylim(bottom=0)
    return _save(figure, Path(folder) / "curves.png")


def neighbours(
    path: str | Path, images: np.ndarray, queries: np.ndarray, found: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Path:
    """Draw a gallery: each query, and its nearest training images by each representation.

    Parameters
    ----------
    path
        Of the picture.
    images
        (N, H, W, C) training images with values in [0, 1].
    queries
        (Q, H, W, C).
    found
        By the name of the representation: indices (Q, k) into ``images``, nearest first, and (Q, k) bool, whether the
        class is the query's.
    """
    k = next(iter(found.values()))[0].shape[1]
    rows, columns = len(queries), 1 + len(found) * (k + 1)
    figure, axes = _figure(rows, columns, (0.62 * columns, 0.62 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for row, query in enumerate(queries):
        _draw(axes[row, 0], query, GRAY)
        for part, (indices, right) in enumerate(found.values()):
            for j in range(k):
                axis = axes[row, 2 + part * (k + 1) + j]
                _draw(axis, images[indices[row, j]], GREEN if right[row, j] else RED)
    axes[0, 0].set_title("query", fontsize=9)
    for part, (name, (_, right)) in enumerate(found.items()):
        axis = axes[0, 2 + part * (k + 1) + k // 2]
        axis.set_title(f"nearest by {name}: {right.mean():.0%} of the same class", fontsize=9)
    return _save(figure, Path(path))


def _draw(axis: Any, image: np.ndarray, colour: str) -> None:
    axis.imshow(image if image.shape[2] == 3 else image[:, :, 0], cmap="gray")
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # and not pyplot, which keeps state and looks for a screen

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
