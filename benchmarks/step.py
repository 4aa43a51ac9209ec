"""Where the time of a step goes, library by library: the demo's network and settings, each part waited for.

    python benchmarks/step.py

A run does not wait: JAX computes one part while the host goes on to the next, so a run takes less than the sum.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import la_core
from la_core import State, digits, update
from la_core.data import batches, load
from la_core.objectives import fresh_rows, local_aggregation_terms, with_instances

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

STEPS, WARM = 60, 20


def measure(name: str) -> dict[str, float]:
    """Median milliseconds of each part."""
    example = __import__(f"train_{name}")
    backend = la_core.backend(name)
    data, _ = digits.placed_digits()
    settings = digits.SETTINGS.resolved(len(data))
    encoder = example.cnn(backend, settings, (1, digits.CANVAS, digits.CANVAS))
    state = State(backend.asarray(la_core.random_rows(len(data), example.DIM, seed=0)))
    labels = la_core.cluster(
        state.bank, n_clusters=settings.n_clusters, n_clusterings=settings.n_clusterings, seed=0
    ).labels
    aggregated = partial(
        local_aggregation_terms,
        n_background=settings.n_background,
        temperature=settings.temperature,
        combine=settings.combine,
    )
    objective = with_instances(aggregated, settings.instance_weight, settings.warmup_temperature)
    terms_of = backend.compile(lambda z, state, rows: fresh_rows(objective, z, state, rows), (1,))
    moved = backend.compile(lambda state, rows, z: update(state, rows, z), (0,))
    state = State(state.bank, labels)
    seconds: dict[str, list[float]] = {}

    def timed(part: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = waited(call())
        seconds.setdefault(part, []).append(time.perf_counter() - began)
        return result

    for step in range(STEPS):
        indices = batches(len(data), settings.batch_size, seed=0, epoch=step)[0]
        host = timed("load (host)", lambda i=indices, s=step: load(data, i, digits.VIEW, (0, s), (1, s)))
        batch, rows = backend.asarray(host), backend.asarray(indices)
        z, back = timed("encoder, forward", lambda b=batch: encoder.pullback(b))
        terms, state = timed("objective", lambda z=z, s=state, r=rows: terms_of(z, s, r))
        timed("encoder, backward and step", lambda b=back, t=terms: (b(t.cotangent), encoder.step(1e-3), encoder)[2])
        both = backend.asarray(np.concatenate([indices, indices]))
        state = timed("bank update", lambda s=state, r=both, z=z: moved(s, r, z))
    return {part: 1000 * median(s[WARM:]) for part, s in seconds.items()}


def waited(result: Any) -> Any:
    """The same, when it is there."""
    if "jax" in sys.modules:
        import jax

        jax.block_until_ready(getattr(result, "parameters", result))
    return result


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = {name: measure(name) for name in ("torch", "jax")}
    parts = list(next(iter(found.values())))
    print(f"{'ms a step, median':<28}" + "".join(f"{name:>10}" for name in found))
    for part in parts:
        print(f"{part:<28}" + "".join(f"{found[name][part]:>10.2f}" for name in found))
    print(f"{'all':<28}" + "".join(f"{sum(found[name].values()):>10.2f}" for name in found))


if __name__ == "__main__":
    main()
