"""Every hyper-parameter of a run, in one frozen record that is printed, saved, and loaded again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from la_core.check import COLDEST
from la_core.clusters import TOLERANCE
from la_core.errors import SettingsError
from la_core.lists import list_length
from la_core.neighbours import COMBINATIONS


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run of ``la_core.train``. ``None`` means: chosen from the number of samples, and shown (:meth:`resolved`).

    The defaults are those of the published codes for ImageNet, save for what depends on the number of samples, and for
    ``warmup``, ``bank_start`` and ``tolerance``; the presets named after the paper have these as published, too.
    """

    seed: int = 0
    """The one seed. Every draw of the run follows from it."""
    dtype: str = "float32"
    """Of the bank and of the batches: ``"float32"`` or ``"float64"``."""
    bank_dtype: str = "same"
    """How the bank is stored: the ``"same"`` as ``dtype``, or in half of the memory, as ``"float16"`` or, on PyTorch
    and JAX, ``"bfloat16"``. It is computed with in float32. Rounding moves a row by 2^-11 of its length at most, by
    2^-8 with bfloat16."""

    epochs: int = 200
    """All epochs, the warm-up included."""
    warmup_epochs: int = 10
    """Epochs of Instance Discrimination before the first clustering."""
    batch_size: int = 128
    """Most samples in a batch; the batches of an epoch differ by at most one."""

    optimizer: str = "sgd"
    """``"sgd"`` with ``momentum``, or ``"adam"`` with decoupled weight decay."""
    learning_rate: float = 0.03
    schedule: str = "step"
    """``"step"``: a tenth at each of ``drops``; ``"cosine"``: half a cosine wave down to 0; ``"constant"``."""
    drops: tuple[float, ...] = (160, 190)
    """Epochs at which ``"step"`` lowers the learning rate."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """The paper's lambda as an optimizer takes it, (lambda/2) ||w||^2; never on the bank or on normalisation layers."""

    warmup_batch_size: int | None = None
    """In the warm-up. By default ``batch_size``."""
    views: int = 1
    """Random views of each sample in a step. With 2, an extension of the paper, each reads a bank in which the batch's
    rows are the embeddings of the other views (:func:`la_core.objectives.fresh_rows`); the bank takes both. A step
    then costs the encoder two passes."""

    bank_store: str = "memory"
    """Where the bank is: in ``"memory"`` or, on the numpy backend, in a ``"file"`` of the run folder, mapped into
    memory and never read whole: searches and clusterings go through it in blocks."""

    temperature: float = 0.07
    mixing: float = 0.5
    """Weight of the new embedding in the bank update."""
    bank_start: str = "encoder"
    """``"encoder"``: one pass of the untrained encoder; ``"random"``: random unit rows."""

    warmup: str = "exact"
    """``"exact"``: softmax over the whole bank; ``"nce"``: ``n_noise`` noise samples for each row; ``"batch"``: softmax
    over the other views of the batch alone, which an untrained encoder learns from fastest (needs ``views=2``)."""
    warmup_temperature: float | None = None
    """Of the warm-up. By default ``temperature``."""
    n_noise: int = 4096

    instance_weight: float = 0.0
    """Share of Instance Discrimination within the batch, at ``warmup_temperature``, in the loss after the warm-up: an
    extension of the paper (:func:`la_core.objectives.with_instances`; needs ``views=2``)."""

    n_background: int | None = None
    """k. By default 4096, for fewer than 262 144 samples one in 64, though at least 64."""
    search: str = "exact"
    """``"exact"``, or ``"lists"``: the background is sought in the clusters near an embedding only. Faster where N is
    large; what it misses is in the metrics as ``recall``."""
    probes: int | None = None
    """Lists that are read in each clustering. By default so many that they hold four times ``n_background`` rows."""
    n_clusters: int | tuple[int, ...] | None = None
    """m, or one for each clustering. By default one cluster for each 40 samples."""
    n_clusterings: int = 3
    n_iter: int = 20
    """Most k-means iterations."""
    tolerance: float = TOLERANCE
    """Share of the inertia by which k-means may stop above all of its iterations; 0 to make them all."""
    cluster_start: str = "random"
    """Where a clustering starts: ``"random"`` rows each time, as published, or ``"last"``, each from its own labels of
    the time before, which takes a few iterations only."""
    combine: str = "union"
    """Which samples are close: of the same cluster in one clustering at least, ``"union"``, as published; in all,
    ``"intersection"``; in half of them, ``"majority"``, which leaves those of fewer out of the background too."""
    recluster_every: int = 1
    recluster_unit: str = "epochs"
    """``"epochs"`` or ``"steps"``, counted from the first step of Local Aggregation."""

    knn_every: int = 1
    """Epochs between two runs of the running measure; 0 for never."""
    knn_k: int | None = None
    """By default 200, or a tenth of the samples if that is less."""
    knn_temperature: float = 0.07
    health_every: int = 1
    """Epochs between two looks at the health of the run (:mod:`la_core.health`); 0 for never."""

    on_not_finite: str = "raise"
    """What to do about a step whose embeddings, loss or gradients hold NaN or infinity, and of which nothing reaches
    encoder or bank: ``"raise"`` ends the run, ``"skip"`` goes on with the next step and counts it in the metrics."""
    most_skipped: int = 10
    """Steps in a row that may be skipped; one more ends the run."""

    budget: int = 64 * 2**20
    """Bytes of temporary memory of a search."""

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            many = value if isinstance(value, tuple) and name == "n_clusters" else (value,)
            for one in many:
                if one is None and name in _AUTOMATIC:
                    continue
                if isinstance(one, bool) or not isinstance(one, int) or one < least:
                    raise SettingsError(f"{name} must be an integer of at least {least}; got {value!r}")
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _AUTOMATIC:
                continue
            if not _finite_number(value) or not low <= value <= high:
                limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise SettingsError(f"{name} must be a finite number {limits}; got {value!r}")
        for name, allowed in _WORDS.items():
            if getattr(self, name) not in allowed:
                raise SettingsError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}; got {getattr(self, name)!r}"
                )
        if self.views > 2:
            raise SettingsError(f"views must be 1 or 2; got {self.views}")
        if self.warmup == "batch" and self.views != 2:
            raise SettingsError("warmup='batch' compares the two views of a batch: set views=2, or another warmup")
        if self.instance_weight and self.views != 2:
            raise SettingsError(
                f"instance_weight compares the two views of a batch: set views=2, or instance_weight=0; "
                f"got {self.instance_weight}"
            )
        if not isinstance(self.drops, tuple) or not all(_finite_number(drop) for drop in self.drops):
            raise SettingsError(f"drops must be a tuple of epochs, which are numbers; got {self.drops!r}")
        if self.warmup_epochs > self.epochs:
            raise SettingsError(
                f"warmup_epochs must be at most epochs, which include them; got {self.warmup_epochs} of {self.epochs}"
            )
        if isinstance(self.n_clusters, tuple) and len(self.n_clusters) != self.n_clusterings:
            raise SettingsError(
                f"n_clusters must be one number or {self.n_clusterings}, one for each clustering; "
                f"got {len(self.n_clusters)}"
            )

    def resolved(self, n: int) -> Settings:
        """The same with every automatic value chosen for n samples, and checked against n."""
        chosen = replace(
            self,
            n_background=min(n, 4096, max(64, n // 64)) if self.n_background is None else self.n_background,
            n_clusters=max(1, n // 40) if self.n_clusters is None else self.n_clusters,
            knn_k=max(1, min(200, n // 10)) if self.knn_k is None else self.knn_k,
            warmup_batch_size=self.batch_size if self.warmup_batch_size is None else self.warmup_batch_size,
            warmup_temperature=self.temperature if self.warmup_temperature is None else self.warmup_temperature,
        )
        sizes = chosen.n_clusters if isinstance(chosen.n_clusters, tuple) else (chosen.n_clusters,)
        if chosen.probes is None:
            most = max(m for m in sizes if m is not None)
            wanted = math.ceil(4 * (chosen.n_background or 1) * most / (n * chosen.n_clusterings))
            chosen = replace(chosen, probes=min(wanted, most))
        if chosen.search == "lists":
            _check_probes(chosen, n)
        for name, value in (
            ("n_background", chosen.n_background),
            ("knn_k", chosen.knn_k),
            *(("n_clusters", m) for m in sizes),
        ):
            if value is not None and value > n:
                raise SettingsError(f"{name} must be at most the number of samples, {n}; got {value}")
        return chosen

    @property
    def stored_dtype(self) -> str:
        """Of the bank as it is stored."""
        return self.dtype if self.bank_dtype == "same" else self.bank_dtype

    def batch(self, epoch: int) -> int:
        """Most samples in a batch of that epoch, counted from 0."""
        warm = epoch < self.warmup_epochs and self.warmup_batch_size is not None
        return self.warmup_batch_size or self.batch_size if warm else self.batch_size

    def rate(self, progress: float) -> float:
        """The learning rate after ``progress`` epochs."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress / max(self.epochs, 1)))
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** sum(progress >= drop for drop in self.drops)
        return self.learning_rate

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Settings:
        """Read what :meth:`save` wrote.

        Raises
        ------
        SettingsError
            There is no such file, or it holds something else.
        """
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} cannot be read as settings: {error}") from error
        if not isinstance(values, dict):
            raise SettingsError(f"{path} cannot be read as settings: it holds a {type(values).__name__}")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise SettingsError(f"{path} holds settings that this version does not know: {', '.join(sorted(unknown))}")
        record: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**record)

    def __str__(self) -> str:
        width = max(len(field.name) for field in fields(self))
        return "\n".join(f"  {field.name:<{width}}  {getattr(self, field.name)}" for field in fields(self))


def _finite_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _check_probes(s: Settings, n: int) -> None:
    """Whether full lists hold as many rows as are sought in them."""
    assert s.n_clusters is not None  # resolved, as below
    assert s.n_background is not None
    assert s.probes is not None
    most = max(s.n_clusters) if isinstance(s.n_clusters, tuple) else s.n_clusters
    held = s.n_clusterings * list_length(n, most)
    if min(s.probes, most) * held < s.n_background:
        raise SettingsError(
            f"probes must be at least {math.ceil(s.n_background / held)}, for lists to hold n_background rows, "
            f"{s.n_background}; got {s.probes}"
        )


_AUTOMATIC = ("n_background", "n_clusters", "probes", "knn_k", "warmup_temperature", "warmup_batch_size")
_COUNTS = {
    "seed": 0,
    "epochs": 1,
    "warmup_epochs": 0,
    "batch_size": 1,
    "warmup_batch_size": 1,
    "views": 1,
    "n_noise": 1,
    "n_background": 1,
    "n_clusters": 1,
    "probes": 1,
    "n_clusterings": 1,
    "n_iter": 1,
    "recluster_every": 1,
    "knn_every": 0,
    "health_every": 0,
    "knn_k": 1,
    "most_skipped": 0,
    "budget": 1,
}
_NUMBERS = {
    "learning_rate": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, math.inf),
    "temperature": (COLDEST, math.inf),
    "warmup_temperature": (COLDEST, math.inf),
    "mixing": (0.0, 1.0),
    "instance_weight": (0.0, 1.0),
    "tolerance": (0.0, math.inf),
    "knn_temperature": (COLDEST, math.inf),
}
_WORDS = {
    "dtype": ("float32", "float64"),
    "bank_dtype": ("same", "float16", "bfloat16"),
    "optimizer": ("sgd", "adam"),
    "schedule": ("step", "cosine", "constant"),
    "bank_start": ("encoder", "random"),
    "bank_store": ("memory", "file"),
    "warmup": ("exact", "nce", "batch"),
    "combine": COMBINATIONS,
    "search": ("exact", "lists"),
    "cluster_start": ("random", "last"),
    "recluster_unit": ("epochs", "steps"),
    "on_not_finite": ("raise", "skip"),
}
