"""How far a run grows: memory and time of each phase on one device and on many, with the arithmetic shown.

    print(la_core.plan(10**9, 128, settings=Settings(bank_dtype="float16", n_clusters=10**6), devices=(8, 64)))

The work is that of the dry run (:mod:`la_core.dryrun`). On P devices the bank is cut by rows, as ``docs/design.md`` has
it: each searches and clusters its share, and what they tell each other goes over their links. Time is work over a rate
that is measured here, or that you give for the machine that you have in mind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from la_core import check, kernels, tiles
from la_core.bank import random_rows
from la_core.clusters import lloyd
from la_core.comm import FINGERPRINT
from la_core.dryrun import Cost, Line, _bytes, _flop, bank_word
from la_core.dryrun import plan as dry_run
from la_core.protocol import Backend
from la_core.settings import Settings

PER_ROW = 72
"""Bytes that a clustering takes for each row at most, beside copies of the row: labels, squared distances and orders,
of this iteration and the last."""
COLLECTIVES = {"replicated": 4, "sharded": 7}
"""Of a step, by layout. Before each goes its fingerprint."""


@dataclass(frozen=True)
class Rates:
    """Floating-point operations a second of one device, by kind of work; and bytes a second of a link between two."""

    search: float
    """The background of a batch."""
    softmax: float
    """The exact warm-up."""
    assign: float
    """A clustering."""
    encoder: float | None = None
    """None: its time is not told."""
    link: float | None = None
    """None: as if the links took no time."""
    source: str = "as given"

    @classmethod
    def of(cls, rate: float, link: float | None = None) -> Rates:
        """One rate for all of the work."""
        return cls(rate, rate, rate, rate, link)


@dataclass(frozen=True)
class Share:
    """What each of so many devices holds, and how long each phase takes on them together."""

    devices: int
    memory: tuple[Line, ...]
    """Bytes of a device at once, at most."""
    seconds: tuple[Line, ...]
    """Of a step of the warm-up, a step of Local Aggregation, a round of clusterings, and an epoch of each phase."""

    @property
    def bytes(self) -> float:
        """All of the memory: a search and a clustering take turns."""
        turns = [line.amount for line in self.memory if line.name in ("clustering", "search")]
        return sum(line.amount for line in self.memory) - min(turns)


@dataclass(frozen=True)
class Outlook:
    """What :func:`plan` found; ``print`` shows it."""

    n: int
    dim: int
    settings: Settings
    """With every automatic value chosen."""
    rates: Rates
    shares: tuple[Share, ...]

    def __str__(self) -> str:
        s, r = self.settings, self.rates
        rates = f"search {_flop(r.search)}/s, softmax {_flop(r.softmax)}/s, clustering {_flop(r.assign)}/s"
        lines = [
            f"{self.n} rows of {self.dim} in {s.stored_dtype}; {s.n_clusterings} clusterings of "
            f"{s.n_clusters} clusters; background of {s.n_background}; batches of {s.batch_size}",
            f"rates, {r.source}: {rates}",
        ]
        for share in self.shares:
            lines += ["", f"{share.devices} device{'s' if share.devices > 1 else ''}"]
            lines.append(f"  {'memory of each':<24}{_bytes(share.bytes):>12}")
            lines += [f"    {line.name:<22}{_bytes(line.amount):>12}   {line.how}" for line in share.memory]
            lines += [f"  {line.name:<24}{_time(line.amount):>12}   {line.how}" for line in share.seconds]
        return "\n".join(lines)


def plan(
    n: int,
    dim: int,
    *,
    settings: Settings | None = None,
    cost: Cost | None = None,
    devices: Sequence[int] = (1, 2, 4, 8),
    rates: Rates | float | None = None,
    backend: Backend | None = None,
) -> Outlook:
    """Memory and time of a run on ``n`` samples, none of which need to be there.

    Parameters
    ----------
    n, dim
        Rows and columns of the bank.
    settings
        As for :func:`la_core.train`.
    cost
        Of the encoder (``la_core.backends.torch.cost``); by default it is left out.
    devices
        Numbers of them to show. The bank and its searches are divided among them, and so is a batch.
    rates
        Of one device; one number is taken for all work. By default measured here, in a second or two.
    backend
        That the rates are measured on; by default NumPy.

    Raises
    ------
    RangeError, KindError, SettingsError
        A count below 1; settings that do not fit ``n``.
    """
    check.count("n", n)
    check.count("dim", dim)
    for count in devices:
        check.count("devices", count, n, "the rows of the bank")
    if rates is not None and not isinstance(rates, Rates):
        rates = Rates.of(check.number("rates", rates, 0.0, open_low=True))
    dry = dry_run(settings or Settings(), n, cost or Cost(0, 0, 0, dim))
    rates = rates or measured(backend, dim, dry.settings.batch_size)
    shares = tuple(_share(dry.settings, n, dim, cost, count, rates) for count in devices)
    return Outlook(n, dim, dry.settings, rates, shares)


def traffic(
    layout: str, size: int, *, n: int, dim: int, batch: int, k: int, weights: int = 0, word: int = 4
) -> tuple[int, int]:
    """Bytes that each of ``size`` processes gives to collectives in a step of Local Aggregation: gathered, summed.

    Counted for a step of ``batch`` embeddings in one view, in float32, with an encoder of ``weights`` numbers and
    ``word`` bytes for each number of the bank (N, D). A device takes in ``size - 1`` times what it gives to be
    gathered, and by a ring ``2 (size - 1) / size`` times what it gives to be summed.
    """
    each = -(-batch // size)
    said = FINGERPRINT * COLLECTIVES[layout]
    gathered, summed = said + 8 + 4 * each * dim, 4 * weights  # fingerprints, facts, embeddings; gradients
    if layout == "replicated":
        return gathered + 4 * each * (dim + 2), summed  # loss, cotangent, number of close neighbours
    # Candidates with their rows; rows of the background, weighted; old rows of the batch.
    return gathered + 12 * batch * min(k, -(-n // size)), summed + (4 + word) * batch * dim


def _share(s: Settings, n: int, dim: int, cost: Cost | None, devices: int, rates: Rates) -> Share:
    dry = dry_run(s, n, cost or Cost(0, 0, 0, dim))
    assert s.n_background is not None  # resolved, as below
    assert s.n_clusters is not None
    own, word, k = -(-n // devices), bank_word(s), s.n_background
    sizes = s.n_clusters if isinstance(s.n_clusters, tuple) else (s.n_clusters,) * s.n_clusterings
    rows = f"{own}" if devices == 1 else f"{own} of {n}"
    batch = -(-n // dry.steps_per_epoch) * s.views
    wide = max(4, word)
    apart = s.bank_dtype != "same" or s.bank_store == "file"
    blocks = 8 * kernels.CACHE
    copies = 2 * min(own * dim * wide, kernels.BUDGET) if apart else own * dim * wide
    tiled = max((tiles.memory(own, m, wide) for m in sizes if tiles.pay(own, m)), default=0)
    memory = [
        Line(
            *("bank", 0 if s.bank_store == "file" else own * dim * word),
            f"{rows} rows x {dim} x {word} bytes" + (", in a file" if s.bank_store == "file" else ""),
        ),
        Line("labels", s.n_clusterings * n * 4, f"{s.n_clusterings} clusterings x {n} x 4 bytes, on every device"),
        Line(
            "clustering",
            own * PER_ROW + copies + 3 * max(sizes) * (dim + 2) * wide + tiled + blocks,
            f"{rows} x {PER_ROW} bytes + rows by cluster, {_bytes(copies)} + 3 x {max(sizes)} centroids x {dim + 2} x "
            f"{wide} bytes + tiles, {_bytes(tiled)} + blocks, {_bytes(blocks)}, at most; in turn with the search",
        ),
        Line("search", 1.5 * s.budget, "1.5 x budget, at most"),
    ]
    given = {line.name: line for line in dry.memory}
    if cost is not None:
        each = given["activations"]
        memory += [given["weights, gradients"], given["optimizer"]]
        memory.append(Line("activations", each.amount / devices, f"{each.how}, over {devices}"))
    numbers = 0 if cost is None else cost.parameters
    gathered, summed = traffic("sharded", devices, n=n, dim=dim, batch=batch, k=k, weights=numbers, word=word)
    linked = {  # what a device takes in
        "step": (devices - 1) * (gathered + 2 * summed / devices),
        "clustering": 2 * (devices - 1) / devices * sum(sizes) * (dim + 1) * 4 * (s.n_iter + 1),
    }

    def over_links(which: str) -> tuple[float, str]:
        if devices == 1:
            return 0.0, ""
        if rates.link is None:
            return 0.0, f" ({_bytes(linked[which])} over each link, not counted)"
        return linked[which] / rates.link, f" + {_bytes(linked[which])} / {_bytes(rates.link)}/s"

    def seconds(name: str, parts: Sequence[tuple[Line, float | None]], which: str) -> Line:
        told = [(line.amount / devices, rate) for line, rate in parts if rate is not None and line.amount]
        links, said = over_links(which)
        work = " + ".join(f"{_flop(work)} / {_flop(rate)}/s" for work, rate in told)
        return Line(name, sum(work / rate for work, rate in told) + links, work + said)

    encoder, loss = dry.warmup_step
    warm = seconds("step of the warm-up", ((encoder, rates.encoder), (loss, rates.softmax)), "step")
    encoder, search, loss = dry.step
    step = seconds(
        "step of aggregation", ((encoder, rates.encoder), (search, rates.search), (loss, rates.search)), "step"
    )
    clustering = seconds("clustering, at most", ((dry.clustering, rates.assign),), "clustering")
    a_round = clustering.amount / s.recluster_every
    if s.recluster_unit == "steps":
        a_round *= dry.steps_per_epoch
    times = (
        warm,
        step,
        clustering,
        Line(
            "epoch of the warm-up",
            dry.warmup_steps_per_epoch * warm.amount,
            f"{dry.warmup_steps_per_epoch} steps x {_time(warm.amount)}",
        ),
        Line(
            "epoch of aggregation",
            dry.steps_per_epoch * step.amount + a_round,
            f"{dry.steps_per_epoch} steps x {_time(step.amount)} + clustering {_time(a_round)}",
        ),
    )
    return Share(devices, tuple(memory), times)


def measured(backend: Backend | None = None, dim: int = 128, batch: int = 128, n: int = 32_768) -> Rates:
    """The rates of this machine: of an exact search, an exact softmax and k-means, on a bank of ``n`` rows."""
    from la_core.protocol import backend as by_name

    at = backend or by_name("numpy")
    bank = at.asarray(random_rows(n, dim, seed=0))
    z = at.asarray(random_rows(batch, dim, seed=1))
    centroids = bank[: n // 32, :]
    work = 2.0 * n * dim
    return Rates(
        search=work * batch / _least(lambda: at.to_host(kernels.nearest(z, bank, n // 64)[0])),
        softmax=2 * work * batch / _least(lambda: at.to_host(kernels.softmax_mean(z, bank, 0.07)[0])),
        assign=2 * work * (n // 32) / _least(lambda: at.to_host(lloyd(bank, centroids, 1, 0.0)[0])),
        source=f"measured here on {at.name}",
    )


def _least(call: Callable[[], np.ndarray], times: int = 3) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    call()
    passed = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        passed.append(time.perf_counter() - began)
    return min(passed)


def _time(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length or (unit == "s" and seconds >= 1):
            return f"{seconds / length:.3g} {unit}"
    power = 0 if seconds <= 0 else min(2, math.ceil(-math.log10(seconds) / 3))
    return f"{seconds * 1000**power:.3g} {('s', 'ms', 'us')[power]}"
