"""What Local Aggregation learns on four sets of real images, beside what people would pick instead.

    python benchmarks/learning.py              every method on every set, three seeds: the table
    python benchmarks/learning.py --ablation   one setting at a time, on the digits, at half the passes: the picture
    python benchmarks/learning.py --validation one seed on validation splits, which settings are chosen by; not kept
    python benchmarks/learning.py --quick      the table in little time: few passes, one seed, nothing kept

All methods have the same network, random views, optimizer and schedule, one of two learning rates, as many views in
a step, and as many passes of a training image through the encoder: a method with two views of a sample makes half as
many epochs, in batches of half as many samples. ``docs/learning.md`` says how settings and sets were chosen. Runs that
``learning.json`` holds already, with these very settings, are not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from pictures import SETS, Set
from rivals import fit, simclr, vicreg

import la_core
from la_core import Settings, evaluate
from la_core.backends.torch import SmallCNN, TorchEncoder, initialise, make_optimizer
from la_core.data import load
from la_core.presets import WHITEN, small

HERE = Path(__file__).parent
RESULTS, TABLE, PICTURE = HERE / "learning.json", HERE / "learning.txt", HERE.parent / "docs" / "ablation.png"
WIDTH, DIM = 16, 64
PASSES = 120
"""Of each training image through the encoder, in one run."""
SEEDS = 3
RATE = 2e-3
"""Of the optimizer, for all that learn less well on validation splits at the rate of ``small``."""
K, TEMPERATURE = 20, 0.07
"""Of the weighted kNN, on evaluation views of test images against those of training images."""


@dataclass(frozen=True)
class Method:
    """How an encoder is learnt. Without settings: not at all."""

    settings: Settings | None = None
    rival: Mapping[str, Any] | None = None
    """A loss of ``rivals.py`` with its settings, in place of ``la_core.train``."""
    head: Mapping[str, Any] = field(default_factory=lambda: {"dim": DIM})
    """Of the network, whose other parts are the same for all: one layer, or what the method is better with."""
    raw: bool = False
    """No encoder: the pixels themselves."""


def methods(n: int, passes: int = PASSES) -> dict[str, Method]:
    """By name, for ``n`` training images."""
    ours = small(n)
    plain = replace(Settings(), optimizer=ours.optimizer, learning_rate=RATE, schedule=ours.schedule)
    one = replace(plain, epochs=passes, warmup_epochs=passes, temperature=0.1)
    two = replace(plain, epochs=passes // 2, warmup_epochs=0, views=2, batch_size=ours.batch_size)
    faster = replace(two, learning_rate=ours.learning_rate)
    standard, whitened = ({"dim": DIM, "whiten": size} for size in (1, WHITEN))
    warm_up = passes // 2 * ours.warmup_epochs // ours.epochs
    aggregated = replace(ours, epochs=passes // 2, warmup_epochs=warm_up)
    return {
        "raw pixels": Method(raw=True),
        "untrained": Method(),
        "Instance Discrimination": Method(one),
        "the same, standardised": Method(one, head=standard),
        "the same, whitened": Method(one, head=whitened),
        "Local Aggregation as published": Method(replace(one, warmup_epochs=passes // 2)),
        "Local Aggregation, small": Method(aggregated, head=whitened),
        "the same, but standardised": Method(aggregated, head=standard),
        "SimCLR": Method(two, {"name": "simclr", "temperature": 0.1}),
        "SimCLR, standardised": Method(faster, {"name": "simclr", "temperature": 0.1}, standard),
        "SimCLR, whitened": Method(faster, {"name": "simclr", "temperature": 0.1}, whitened),
        "VICReg": Method(two, {"name": "vicreg"}, {"dim": 256, "projection": 256}),
    }


def ablations(n: int, passes: int = PASSES) -> dict[str, dict[str, Method]]:
    """The small preset with one setting changed: by setting, then by value."""
    method = methods(n, passes)["Local Aggregation, small"]
    base = method.settings
    assert base is not None
    every: dict[str, tuple[Any, ...]] = {
        "n_clusterings": (1, 3, base.n_clusterings),
        "n_clusters": (n // 100, base.n_clusters, n // 8),
        "n_background": (n // 20, base.n_background, n),
        "recluster_every": (1, 3, 15),
        "combine": ("union", "majority"),
        "instance_weight": (0.0, base.instance_weight, 0.75),
    }
    changed = {name: {str(v): replace(base, **{name: v}) for v in values} for name, values in every.items()}
    one = replace(
        base,
        views=1,
        batch_size=2 * base.batch_size,
        warmup="exact",
        instance_weight=0.0,
        epochs=passes,
        warmup_epochs=2 * base.warmup_epochs,
    )
    changed |= {"views": {"1": one, "2": base}, "warmup": {"exact": replace(base, warmup="exact"), "batch": base}}
    made = {name: {v: replace(method, settings=s) for v, s in values.items()} for name, values in changed.items()}
    return made | {"whiten": {str(size): replace(method, head={"dim": DIM, "whiten": size}) for size in (0, 1, WHITEN)}}


# One run -------------------------------------------------------------------------------------------------------------


@cache
def pictures(name: str, validation: bool, fold: int) -> Set:
    """A set, made once in a process."""
    return SETS[name][fold](validation)


def accuracy(images: Set, train: np.ndarray, test: np.ndarray) -> float:
    """Weighted kNN on held-out images."""
    flat = train.reshape(len(train), -1), images.train.classes, test.reshape(len(test), -1)
    predicted = evaluate.knn(*flat, k=K, temperature=TEMPERATURE)
    return float((predicted == images.test.classes).mean())


def run(name: str, method: Method, seed: int, *, fold: int = 0, validation: bool = False) -> dict[str, Any]:
    """Accuracy of the embedding and of the layer before it."""
    torch.set_num_threads(1)
    images = pictures(name, validation, fold)
    began = time.perf_counter()
    if method.raw:
        views = (load(part, range(len(part)), images.view) for part in (images.train, images.test))
        return {"embedding": accuracy(images, *views), "before": None, "seconds": 0.0}
    module = initialise(SmallCNN(images.channels, width=WIDTH, **method.head), seed)
    settings = method.settings and replace(method.settings, seed=seed, knn_every=0, health_every=0)
    encoder = TorchEncoder(module, settings and make_optimizer(module, settings))
    backend = la_core.backend("torch")
    if settings and method.rival:
        loss = {"simclr": simclr, "vicreg": vicreg}[method.rival["name"]]
        others = {name: value for name, value in method.rival.items() if name != "name"}
        fit(encoder, images.train, images.view, settings, loss(**others))
    elif settings:
        la_core.train(images.train, encoder, backend=backend, settings=settings, view=images.view, progress=False)
    seconds = time.perf_counter() - began
    train, test = (evaluate.embed(encoder, backend, part, images.view) for part in (images.train, images.test))
    scores = [accuracy(images, *pair) for pair in zip(train, test, strict=True)]
    return {"embedding": scores[0], "before": scores[1], "seconds": round(seconds, 1)}


# All runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run, and what it is known by."""

    set: str
    label: str
    method: Method
    seed: int
    fold: int = 0
    validation: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """All that its result depends on, save the code: of settings those that are not as they are by default."""
        facts = {"set": self.set, "seed": self.seed, **asdict(self.method)}
        if self.method.settings:
            usual = asdict(Settings())
            facts["settings"] = {k: v for k, v in facts["settings"].items() if v != usual[k]}
        facts |= {"validation": True} if self.validation else {}
        facts |= {"fold": self.fold} if self.fold else {}
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain

    def __call__(self) -> dict[str, Any]:
        """Its result."""
        return run(self.set, self.method, self.seed, fold=self.fold, validation=self.validation)


def carry_out(
    jobs: Iterable[Job], processes: int, kept: list[dict[str, Any]], path: Path | None
) -> list[dict[str, Any]]:
    """The results of all jobs, in their order, each with its set and label; written to ``path`` as they come."""
    jobs = list(jobs)
    known = {json.dumps(record["job"]): record for record in kept}
    todo = {json.dumps(job.key): job for job in jobs if json.dumps(job.key) not in known}
    print(f"{len(jobs)} runs, {len(todo)} of them to be made", flush=True)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed(futures := {pool.submit(job): job for job in todo.values()}):
            job, result = futures[future], future.result()
            known[json.dumps(job.key)] = {"job": job.key, "label": job.label, **result}
            before = "" if result["before"] is None else f" ({result['before']:.1%})"
            where = f"{job.set}{f' {job.fold}' if job.fold else ''}"
            print(f"{where}, {job.label}, seed {job.seed}: {result['embedding']:.1%}{before}", flush=True)
            if path:
                path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    about = ({"set": job.set, "label": job.label, "seed": job.seed, "fold": job.fold} for job in jobs)
    return [known[json.dumps(job.key)] | facts for job, facts in zip(jobs, about, strict=True)]


def table(results: list[dict[str, Any]]) -> str:
    """Mean and range in points over the seeds, each a mean over the folds; of the embedding and the layer before it."""
    sets = list(dict.fromkeys(r["set"] for r in results))
    labels = list(dict.fromkeys(r["label"] for r in results))

    def cell(name: str, label: str, which: str) -> str:
        seeds: dict[int, list[float]] = {}
        for r in results:
            if r["set"] == name and r["label"] == label and r[which] is not None:
                seeds.setdefault(r["seed"], []).append(100 * r[which])
        found = [mean(values) for values in seeds.values()]
        if not found:
            return "-"
        return f"{mean(found):.1f}" + (f" ({min(found):.1f}-{max(found):.1f})" if len(set(found)) > 1 else "")

    lines = [f"{'':<32}" + "".join(f"{name:^40}" for name in sets)]
    lines.append(f"{'':<32}" + f"{'embedding':>20}{'layer before':>20}" * len(sets))
    for label in labels:
        cells = (cell(name, label, which) for name in sets for which in ("embedding", "before"))
        lines.append(f"{label:<32}" + "".join(f"{c:>20}" for c in cells))
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], names: Iterable[str], base: float, path: Path) -> None:
    """A panel for each setting: accuracy by value, embedding and layer before."""
    from matplotlib.figure import Figure

    names = list(names)
    columns = -(-len(names) // 2)
    figure = Figure(figsize=(3 * columns, 5.6), layout="constrained")
    axes = figure.subplots(2, columns, sharey=True).flat
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        found = [r for r in results if r["label"].startswith(f"{name} = ")]
        values = list(dict.fromkeys(r["label"].rpartition(" ")[2] for r in found))
        for which, colour in (("embedding", "#2b6cb0"), ("before", "#2a9d5c")):
            scores = [[100 * r[which] for r in found if r["label"] == f"{name} = {v}"] for v in values]
            axis.plot(
                values,
                [mean(s) for s in scores],
                "o-",
                color=colour,
                label={"before": "layer before"}.get(which, which),
            )
            for x, s in enumerate(scores):
                axis.plot([x] * len(s), s, ".", color=colour, alpha=0.5)
        axis.set_xlabel(name)
        axis.margins(x=0.15)  # room for labels that are words
        axis.axhline(100 * base, color="#777777", linewidth=0.8, linestyle=":", label="Instance Discrimination")
    figure.axes[0].set_ylabel("weighted kNN accuracy, %")
    figure.axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the passes, one seed")
    parser.add_argument("--ablation", action="store_true", help="one setting at a time, on the digits")
    parser.add_argument("--validation", action="store_true", help="one seed on validation splits")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each on one core")
    parser.add_argument("--out", type=Path, help="a folder for the results, instead of benchmarks/ and docs/")
    options = parser.parse_args()
    passes = PASSES // 10 if options.quick else PASSES // 2 if options.ablation else PASSES
    seeds = 1 if options.quick or options.validation else options.seeds
    keep = options.out or not (options.quick or options.validation)
    results, text, picture = (options.out / p.name if options.out else p for p in (RESULTS, TABLE, PICTURE))
    results.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(results.read_text()) if keep and results.is_file() else []

    began = time.perf_counter()
    sets = ["digits"] if options.ablation else options.sets
    size = {name: len(pictures(name, options.validation, 0).train) for name in sets}
    if options.ablation:
        n, name = size["digits"], "Instance Discrimination"
        jobs = [Job("digits", f"{setting} = {value}", method, seed) for seed in range(seeds)
                for setting, values in ablations(n, passes).items() for value, method in values.items()]  # fmt: skip
        jobs += [Job("digits", name, methods(n, passes)[name], seed) for seed in range(seeds)]
    else:
        folds = {name: 1 if options.quick or options.validation else len(SETS[name]) for name in sets}
        jobs = [Job(name, label, method, seed, fold, options.validation) for seed in range(seeds) for name in sets
                for fold in range(folds[name]) for label, method in methods(size[name], passes).items()
                if seed == 0 or label != "raw pixels"]  # fmt: skip
    found = carry_out(jobs, options.jobs, kept, results if keep else None)
    print(f"{sum(r['seconds'] for r in found) / 60:.0f} minutes of one core in all; "
          f"this command took {(time.perf_counter() - began) / 60:.0f} minutes\n")  # fmt: skip
    if options.ablation:
        base = mean(r["embedding"] for r in found if r["label"] == "Instance Discrimination")
        if keep:
            draw(found, ablations(n, passes), base, picture)
            print(f"drawn: {picture}")
        return
    about = (
        f"weighted kNN accuracy in %, k = {K}, temperature {TEMPERATURE}, on held-out images; "
        f"mean of {seeds} seed{'s'[: seeds > 1]} (least-most)\n"
        f"{passes} passes of each training image through one small CNN\n"
    )
    made = f"{about}\n{table(found)}"
    if several := [r | {"set": f"{r['set']}, fold {r['fold']}"} for r in found if folds[r["set"]] > 1]:
        made += f"\n\nthe same, each fold by itself\n\n{table(several)}"
    print(made)
    if keep:
        text.write_text(made + "\n")


if __name__ == "__main__":
    main()
