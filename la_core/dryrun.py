"""What a run will take, worked out before anything starts: memory, arithmetic, and what happens when.

    from la_core.backends.torch import cost, network
    recipe = preset("paper-resnet18", n=1_281_167)
    print(plan(recipe.settings, 1_281_167, cost(lambda: network(recipe.network, **recipe.options), (3, 224, 224))))

Nothing is allocated: the encoder is traced by its shapes, and the rest is arithmetic, which is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from la_core.errors import RangeError
from la_core.settings import Settings


@dataclass(frozen=True)
class Cost:
    """Of an encoder for one sample, as ``la_core.backends.torch.cost`` and ``...jax.cost`` find it."""

    macs: int
    """Multiplications of the convolutions and matrix products of a forward pass."""
    parameters: int
    """Learnt numbers."""
    activations: int
    """Bytes that a forward pass in training keeps for the backward pass, before any compiler saves some."""
    dim: int
    """D, of the embedding."""


@dataclass(frozen=True)
class Line:
    """An amount and where it comes from."""

    name: str
    amount: float
    how: str


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` found; ``print`` shows it."""

    settings: Settings
    """With every automatic value chosen."""
    n: int
    memory: tuple[Line, ...]
    """Bytes on the device at once."""
    warmup_step: tuple[Line, ...]
    """Floating-point operations of a step of the warm-up."""
    step: tuple[Line, ...]
    """The same of Local Aggregation."""
    clustering: Line
    """Operations of a round of clusterings, at most."""
    warmup_steps_per_epoch: int
    steps_per_epoch: int
    phases: tuple[str, ...]

    @property
    def rounds(self) -> int:
        """Times that the bank is clustered."""
        s = self.settings
        epochs = s.epochs - s.warmup_epochs
        total = epochs if s.recluster_unit == "epochs" else epochs * self.steps_per_epoch
        return -(-total // s.recluster_every)

    @property
    def run(self) -> tuple[Line, ...]:
        """Operations of the whole run, its measures aside."""
        s = self.settings
        warm = self.warmup_steps_per_epoch * sum(line.amount for line in self.warmup_step)
        step = self.steps_per_epoch * sum(line.amount for line in self.step)
        after, each = s.epochs - s.warmup_epochs, self.clustering.amount
        return (
            Line("warm-up", s.warmup_epochs * warm, f"{s.warmup_epochs} epochs of {_flop(warm)}"),
            Line("local aggregation", after * step, f"{after} epochs of {_flop(step)}"),
            Line("clustering", self.rounds * each, f"{self.rounds} times {_flop(each)}"),
        )

    def __str__(self) -> str:
        parts = [
            f"{self.n} samples, {self.steps_per_epoch} steps an epoch",
            "",
            *_table("memory on the device", self.memory, _bytes),
            "",
            *_table("step of the warm-up", self.warmup_step, _flop),
            *_table("step of aggregation", self.step, _flop),
            *_table("clustering, at most", (self.clustering,), _flop),
            *_table("whole run", self.run, _flop),
            "",
            *self.phases,
        ]
        return "\n".join(parts)


def plan(settings: Settings, n: int, cost: Cost) -> Plan:
    """What a run of these settings on ``n`` samples takes.

    Parameters
    ----------
    settings
        As for :func:`la_core.train`.
    n
        Number of samples. They need not be there.
    cost
        Of the encoder for a view of the shape that the run will use.

    Raises
    ------
    RangeError, SettingsError
        A count below 1; settings that do not fit ``n``.
    """
    if n < 1:
        raise RangeError(f"n must be at least 1 sample; got {n}")
    s = settings.resolved(n)
    assert s.n_background is not None  # resolved
    assert s.n_clusters is not None
    warm_steps, steps = -(-n // s.batch(0)), -(-n // s.batch_size)
    batch, views, dim = -(-n // steps), s.views, cost.dim
    rows, word = batch * views, bank_word(s)
    warm_batch = -(-n // warm_steps)
    warm_rows = warm_batch * views
    most = max(batch, warm_batch) if s.warmup_epochs else batch
    clusters = s.n_clusters if isinstance(s.n_clusters, tuple) else (s.n_clusters,) * s.n_clusterings
    moments = 1 if s.optimizer == "sgd" else 2

    memory = (
        Line("bank", n * dim * word, f"{n} x {dim} x {word} bytes"),
        Line("labels", s.n_clusterings * n * 4, f"{s.n_clusterings} clusterings x {n} x 4 bytes"),
        Line("weights, gradients", 2 * 4 * cost.parameters, f"2 x {cost.parameters} parameters x 4 bytes"),
        Line("optimizer", moments * 4 * cost.parameters, f"{moments} x {cost.parameters} x 4 bytes ({s.optimizer})"),
        Line(
            "activations",
            most * views * cost.activations,
            f"{_samples(most, views)} x {cost.activations} bytes, an estimate",
        ),
        Line("search", s.budget, "budget, at most"),
    )

    def encoder(batch: int) -> Line:
        how = f"3 (forward; backward twice that) x 2 x {_samples(batch, views)} x {cost.macs}"
        return Line("encoder", 6 * batch * views * cost.macs, how)

    product = f"2 x {_samples(batch, views)} x {n} x {dim}"
    search = Line("background", 2 * rows * n * dim, f"{product}, the exact search")
    loss = Line(
        "loss",
        2 * rows * s.n_background * dim,
        f"2 x {_samples(batch, views)} x {s.n_background} x {dim}, the mean rows",
    )
    # Each sample has noise of its own, which both of its views read.
    against = {"exact": n, "batch": warm_batch, "nce": s.n_noise + 1}[s.warmup]
    warm = Line(
        "loss",
        4 * warm_rows * against * dim,
        f"2 (scores, mean row) x 2 x {_samples(warm_batch, views)} x {against} x {dim}"
        + (", of noise and sample" if s.warmup == "nce" else ""),
    )
    each = sorted(set(clusters))
    clustering = Line(
        "clustering",
        2.0 * n * sum(clusters) * dim * (s.n_iter + 1),
        f"2 x {n} x {'(' + ' + '.join(map(str, clusters)) + ')' if len(each) > 1 else each[0]} x {dim} x "
        f"({s.n_iter} iterations + 1)"
        + (f" x {len(clusters)} clusterings" if len(each) == 1 else "")
        + (", at most" if s.tolerance else ""),
    )
    return Plan(
        settings=s,
        n=n,
        memory=memory,
        warmup_step=(encoder(warm_batch), warm),
        step=(encoder(batch), search, loss),
        clustering=clustering,
        warmup_steps_per_epoch=warm_steps,
        steps_per_epoch=steps,
        phases=_phases(s, warm_steps, steps),
    )


def bank_word(s: Settings) -> int:
    """Bytes of a number of the bank."""
    return 2 if s.bank_dtype != "same" else 4 if s.dtype == "float32" else 8


def _phases(s: Settings, warm_steps: int, steps: int) -> tuple[str, ...]:
    def step(epoch: float) -> int:
        warm = min(epoch, s.warmup_epochs)
        return math.ceil(warm * warm_steps + (epoch - warm) * steps)

    said = []
    if s.warmup_epochs:
        how = {
            "exact": "exact softmax over the bank",
            "nce": f"NCE with {s.n_noise} noise samples",
            "batch": "softmax over the other views of the batch",
        }
        said.append(f"epochs 1 to {s.warmup_epochs}: warm-up by Instance Discrimination, {how[s.warmup]}")
    if s.epochs > s.warmup_epochs:
        first = s.warmup_epochs + 1
        said.append(f"epochs {first} to {s.epochs}: Local Aggregation, background of {s.n_background}")
        unit = s.recluster_unit if s.recluster_every > 1 else s.recluster_unit.removesuffix("s")
        every = f"every {s.recluster_every} {unit}" if s.recluster_every > 1 else f"every {unit}"
        said.append(f"clustering before the first step of epoch {first}, then {every}")
    if s.schedule == "step":
        said.append(f"learning rate {s.learning_rate:g}")
        drops = sorted(drop for drop in s.drops if drop < s.epochs)
        said += [
            f"learning rate {s.learning_rate * 0.1 ** (i + 1):g} from epoch {drop:g}, step {step(drop)}"
            for i, drop in enumerate(drops)
        ]
    else:
        shape = "falls to 0 by half a cosine wave" if s.schedule == "cosine" else "stays"
        said.append(f"learning rate {s.learning_rate:g}, which {shape}")
    return tuple(said)


def _samples(batch: int, views: int) -> str:
    return f"{batch}" if views == 1 else f"({batch} x {views} views)"


def _table(title: str, lines: tuple[Line, ...], shown: Callable[[float], str]) -> list[str]:
    total = Line(title, sum(line.amount for line in lines), "")
    return [
        f"{indent}{line.name:<{24 - len(indent)}}{shown(line.amount):>12}   {line.how}".rstrip()
        for indent, line in (("", total), *(("  ", line) for line in lines))
    ]


def _bytes(x: float) -> str:
    return _scaled(x, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _flop(x: float) -> str:
    return _scaled(x, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(x: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while x >= base and power < len(units) - 1:
        x, power = x / base, power + 1
    return f"{x:.0f} {units[power]}" if x >= 999.5 else f"{x:.3g} {units[power]}"
