"""From a run to a checkpoint and back: everything that the next step, and the next line of metrics, depends on.

Chance needs no more than the place: every draw is keyed by (seed, purpose, place) and by nothing that was drawn before
(:mod:`la_core.randomness`), and the order of an epoch is a function of (seed, epoch). So the sampler goes on in the
middle of an epoch, and a clustering that a crash took is made again as it was.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import numpy as np

from la_core import shards, tensors
from la_core.checkpoint import Checkpoint, Place
from la_core.comm import Team
from la_core.data import Samples, fingerprint
from la_core.errors import CheckpointError, KindError, ShapeError
from la_core.health import Health
from la_core.lists import Lists
from la_core.protocol import Encoder
from la_core.run import Run
from la_core.settings import Settings
from la_core.views import View

MODES = ("never", "auto", "must")
UNITS = ("epochs", "steps")

FIXED = frozenset({
    "seed", "dtype", "bank_dtype", "warmup_epochs", "batch_size", "warmup_batch_size", "optimizer", "views",
    "bank_start", "n_clusterings", "search",
})  # fmt: skip
"""Settings that a run is made of: with another value there is nothing to go on with."""
FREE = frozenset({
    "epochs", "learning_rate", "schedule", "drops", "momentum", "weight_decay", "temperature", "mixing", "warmup",
    "warmup_temperature", "instance_weight", "n_noise", "n_background", "probes", "n_clusters", "n_iter", "tolerance",
    "cluster_start", "combine", "recluster_every", "recluster_unit", "knn_every", "knn_k", "knn_temperature",
    "health_every", "bank_store", "on_not_finite", "most_skipped", "budget",
})  # fmt: skip
"""Settings with which a run may go on otherwise than it began; it is then said, for it is another run from there."""


@dataclass
class Memory:
    """What the loop remembers beside the run itself."""

    number: int = 0
    """Steps of this epoch that were made."""
    losses: list[np.ndarray] = field(default_factory=list)
    close: list[np.ndarray] = field(default_factory=list)
    """Of each row of each batch of this epoch: the loss, and how many close neighbours it had."""
    skipped: int = 0
    in_a_row: int = 0
    """Steps of this epoch that were held back, and how many of all steps, up to the last one."""
    inertia: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    """When this epoch did, by ``time.perf_counter``."""
    lists: Lists | None = None
    health: Health = field(default_factory=Health)

    def next_epoch(self) -> None:
        """Forget what was of the epoch alone."""
        self.number, self.losses, self.close, self.inertia, self.recall, self.seconds = 0, [], [], [], [], {}
        self.skipped = 0
        self.began = time.perf_counter()


@dataclass(frozen=True)
class Saving:
    """As what a run is saved, and when."""

    identity: Mapping[str, Any]
    """What the run is of: see :func:`identity`."""
    every: int = 1
    """So many of the units apart; 0 for never."""
    unit: str = "epochs"
    folder: bool = True
    """Whether there is a folder to save in."""

    def due(self, run: Run, memory: Memory) -> bool:
        """Whether a checkpoint belongs here: also at the beginning and at the end, of all but never."""
        if not (self.every and self.folder) or len(run.history) == run.settings.epochs:
            return bool(self.every) and self.folder
        if self.unit == "steps":
            return run.step % self.every == 0
        return memory.number == 0 and len(run.history) % self.every == 0


def identity(data: Samples, view: View, labels: np.ndarray | None) -> dict[str, Any]:
    """What the run is of, as plain JSON: samples, close neighbours that were brought, views.

    Raises
    ------
    DataError
        A sample cannot be read.
    """
    brought = None if labels is None else hashlib.sha256(np.ascontiguousarray(labels, "<i8").tobytes()).hexdigest()
    seen = repr(view) if is_dataclass(view) else type(view).__name__
    return {"data": fingerprint(data), "labels": brought, "view": seen}


def snapshot(run: Run, memory: Memory, of: Mapping[str, Any]) -> Checkpoint:
    """The run as it stands between two steps, copied to the host.

    Every process must ask for it. Of a bank that is sharded only the first gets the rows, in their order.
    """
    from la_core import __version__

    host = run.backend.to_host
    state = {"bank": shards.whole(run.state.bank, host)}
    if run.state.labels is not None:
        state["labels"] = host(run.state.labels)
    if memory.lists is not None:
        state |= {f"lists.{name}": host(x) for name, x in memory.lists._asdict().items()}
    if memory.health.labels is not None:
        state["health.labels"] = memory.health.labels
    for name, rows in (("losses", memory.losses), ("close", memory.close)):
        if rows:
            state[name] = np.concatenate(rows)
    weights = run.encoder.weights()
    arrays = {"state": state, "encoder": weights, "training": run.encoder.training_state()}
    exchanged = _torch_weights(run.encoder)
    if not set(exchanged) <= set(weights):
        arrays["torch"] = exchanged
    facts = {
        **of,
        "step": run.step,
        "phase": run.phase,
        "settings": json.loads(json.dumps(asdict(run.settings))),
        "encoder": type(run.encoder).__name__,
        "epoch": {
            "skipped": [memory.skipped, memory.in_a_row],
            "inertia": memory.inertia,
            "recall": memory.recall,
            "seconds": memory.seconds,
            "passed": time.perf_counter() - memory.began,
        },
        "warnings": sorted(memory.health.said),
        "written_by": {
            "la_core": __version__,
            "backend": run.backend.name,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    return Checkpoint(Place(len(run.history), memory.number), facts, arrays, list(run.history))


def fit(found: Checkpoint, data: Samples, settings: Settings, of: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, before anything of this one is changed; say what goes on otherwise.

    Parameters
    ----------
    found
        Every byte as it was written, which may not be by this run, nor by la-core.
    data, settings
        Of the run; the settings resolved.
    of
        The run's :func:`identity`.

    Raises
    ------
    CheckpointError
        Names what differs: what the checkpoint has, and what the run has.
    """
    facts, n = found.facts, len(data)
    for name, what in (("data", "the samples"), ("labels", "the labels brought along")):
        if facts.get(name) != of[name]:
            raise CheckpointError(
                f"{what} are not those of the checkpoint, or not in its order: it has {facts.get(name)}, "
                f"and the run has {of[name]}"
            )
    saved = facts.get("settings")
    mine = json.loads(json.dumps(asdict(settings)))
    if not isinstance(saved, dict) or set(saved) - set(mine):
        unknown = ", ".join(sorted(set(saved) - set(mine))) if isinstance(saved, dict) else "none"
        raise CheckpointError(f"the checkpoint has settings that this version does not know: {unknown}")
    saved = json.loads(json.dumps(asdict(Settings()))) | saved
    changed = {name: (saved[name], mine[name]) for name in mine if saved[name] != mine[name]}
    fixed = [f"{name} is {old!r} there and {new!r} here" for name, (old, new) in changed.items() if name in FIXED]
    if fixed:
        raise CheckpointError(f"the checkpoint is of a run with other settings: {'; '.join(fixed)}")
    _check_place(found, n, settings)
    bank = found.arrays["state"].get("bank")
    dtype = saved_as(settings)
    if bank is None or bank.ndim != 2 or bank.shape[0] != n or bank.dtype != dtype:
        got = "none" if bank is None else f"{bank.shape} {bank.dtype}"
        raise CheckpointError(f"the checkpoint must have a bank ({n}, D) {dtype}; it has {got}")
    if not np.isfinite(bank).all():
        raise CheckpointError("the bank of the checkpoint holds NaN or infinity")
    _check_state(found, n)
    for name, (old, new) in changed.items():
        warnings.warn(f"the run goes on with {name} {new!r}; the checkpoint has {old!r}", stacklevel=3)
    if facts.get("view") != of["view"]:
        warnings.warn(f"the run goes on with {of['view']}; the checkpoint has {facts.get('view')}", stacklevel=3)


def saved_as(settings: Settings) -> str:
    """The dtype of the bank in a checkpoint: bfloat16, which NumPy lacks, is saved as float32, which holds it."""
    return "float32" if settings.bank_dtype == "bfloat16" else settings.stored_dtype


def told(found: Checkpoint | None, team: Team) -> Checkpoint | None:
    """The checkpoint that the first process goes on from, for all of them; the bank stays with the first."""
    if team.alone:
        return found
    if not json.loads(team.told(json.dumps(found is not None).encode())):
        return None
    plain, packed = b"", b""
    if found is not None:
        plain = json.dumps([found.place, found.facts, found.history]).encode()
        arrays = {f"{group} {name}": x for group, held in found.arrays.items() for name, x in held.items()}
        arrays.pop("state bank", None)
        packed = b"".join(tensors.encode(arrays))
    place, facts, history = json.loads(team.told(plain))
    given: dict[str, dict[str, np.ndarray]] = {"state": {}}
    for name, x in tensors.decode(bytearray(team.told(packed))).items():
        group, _, name = name.partition(" ")
        given.setdefault(group, {})[name] = x
    return found or Checkpoint(Place(*place), facts, given, history)


def restore(found: Checkpoint, run: Run, memory: Memory) -> None:
    """Put a run, whose bank is the checkpoint's already, where one that :func:`fit` was made.

    Says what starts afresh, if anything does.

    Raises
    ------
    CheckpointError
        Weights of another network, or moments of another optimizer.
    """
    facts, state, asarray = found.facts, found.arrays["state"], run.backend.asarray
    _restore_encoder(run.encoder, found)
    labels = state.get("labels")
    run.state = run.state._replace(labels=None if labels is None else asarray(labels))
    run.history, run.step = list(found.history), facts["step"]
    run.epoch, run.phase = min(found.place.epoch, run.settings.epochs - 1), facts["phase"]
    so_far = facts["epoch"]
    memory.number = found.place.number
    memory.losses, memory.close = ([state[name]] if name in state else [] for name in ("losses", "close"))
    memory.skipped, memory.in_a_row = so_far.get("skipped", (0, 0))
    memory.inertia, memory.recall, memory.seconds = so_far["inertia"], so_far["recall"], so_far["seconds"]
    memory.began = time.perf_counter() - so_far["passed"]
    if "lists.rows" in state:
        memory.lists = Lists(asarray(state["lists.centroids"]), asarray(state["lists.rows"]))
    memory.health.labels, memory.health.said = state.get("health.labels"), set(facts["warnings"])


def _check_place(found: Checkpoint, n: int, settings: Settings) -> None:
    """Place, step and history say the same, and are of a run that has these samples."""
    place = found.place
    begun = place.epoch + (place.number > 0)
    if begun > settings.epochs:
        raise CheckpointError(
            f"the run has begun {begun} epochs already, more than the {settings.epochs} that are asked for: "
            f"ask for {begun} or more"
        )
    steps = [-(-n // settings.batch(epoch)) for epoch in range(place.epoch + 1)]
    fits = (
        len(found.history) == place.epoch
        and type(found.facts.get("step")) is int
        and place.number <= steps[-1]
        and found.facts.get("step") == sum(steps[:-1]) + place.number
    )
    if not fits:
        raise CheckpointError(
            f"the checkpoint of {place} is no place of this run of {settings.epochs} epochs: it has "
            f"{len(found.history)} lines of metrics and step {found.facts.get('step')}"
        )


def _check_state(found: Checkpoint, n: int) -> None:
    """The shapes and ranges that a run relies on, of what only a forged checkpoint has otherwise."""
    state, facts = found.arrays["state"], found.facts
    made = facts.get("labels") is None  # labels that were brought along may be any numbers
    for name in ("labels", "health.labels"):
        x = state.get(name)
        if x is None:
            continue
        if x.ndim != 2 or x.shape[1] != n or x.dtype.kind not in "iu" or not x.size or (made and x.max() >= n):
            raise CheckpointError(f"{name} of the checkpoint must be (H, {n}) integers below {n}; it has {x.shape}")
    centroids, rows = state.get("lists.centroids"), state.get("lists.rows")
    if (centroids is None) != (rows is None) or (
        centroids is not None
        and rows is not None
        and (
            (centroids.ndim, rows.ndim) != (3, 3)
            or centroids.shape[:2] != rows.shape[:2]
            or centroids.shape[2] != state["bank"].shape[1]
            or rows.dtype.kind != "i"
            or (rows.size and not -1 <= rows.min() <= rows.max() < n)
        )
    ):
        raise CheckpointError("the lists of the checkpoint do not fit its bank")
    epoch, warned = facts.get("epoch"), facts.get("warnings")
    if (
        not isinstance(epoch, dict)
        or {"skipped", *epoch} != {"skipped", "inertia", "recall", "seconds", "passed"}
        or not _counts(epoch.get("skipped", [0, 0]))
        or not _numbers(epoch["inertia"])
        or not _numbers(epoch["recall"])
        or not isinstance(epoch["seconds"], dict)
        or not _numbers([*epoch["seconds"].values(), epoch["passed"]])
        or not isinstance(warned, list)
        or not all(isinstance(word, str) for word in warned)
        or not isinstance(facts.get("phase"), str)
    ):
        raise CheckpointError("the checkpoint does not say how far its epoch came")


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(x) in (int, float) for x in values)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(type(n) is int and n >= 0 for n in values)


def _restore_encoder(encoder: Encoder, found: Checkpoint) -> None:
    mine, given = encoder.weights(), found.arrays.get("encoder", {})
    kind, made_by = type(encoder).__name__, found.facts.get("encoder")
    same = {name: x.shape for name, x in mine.items()} == {name: x.shape for name, x in given.items()}
    try:
        if same:
            encoder.load(given)
        elif hasattr(encoder, "load_torch_weights"):
            encoder.load_torch_weights(found.arrays.get("torch", given))
        else:
            shapes = [{name: x.shape for name, x in one.items()} for one in (mine, given)]
            odd = sorted(name for name in {*mine, *given} if shapes[0].get(name) != shapes[1].get(name))
            raise KindError(f"it has other weights than this {kind}: {odd[:3]}")
        if same and kind == made_by:
            encoder.load_training_state(found.arrays.get("training", {}))
            return
    except (KindError, ShapeError) as error:
        raise CheckpointError(f"the checkpoint of a {made_by} does not fit the encoder: {error}") from None
    warnings.warn(
        f"the checkpoint is of a {made_by}, and this is a {kind}: bank, clusterings and weights go on; the moments of "
        "the optimizer, and whatever the encoder draws, start afresh",
        stacklevel=4,
    )


def _torch_weights(encoder: Any) -> dict[str, np.ndarray]:
    """Weights by PyTorch's names, where an encoder knows them; none otherwise."""
    try:
        return dict(encoder.torch_weights()) if hasattr(encoder, "torch_weights") else {}
    except (KindError, ShapeError):
        return {}
