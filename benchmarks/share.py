"""How much of a run of the demo is spent outside the encoder, and on what.

    python benchmarks/share.py [--epochs 8] [--encoder cnn]

The share is the wall time during which no call of the encoder is under way, over the wall time of ``la_core.train``
with all that the demo has it do: measures, health, pictures for the report. What a thread does while the encoder is
at work, such as making the next views, takes none of it, though it may slow the encoder down: so the CPU time of all
threads stands beside. Where other programs want the CPU, the CPU time of the thread that trains is steadier; with
``OMP_NUM_THREADS=1`` its share is what the wall time's would be alone, without waits for the next batch. JAX is not
measured, for its calls return before their work is done.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from la_core import job
from la_core.backends.torch import TorchEncoder
from la_core.job import Recipe
from la_core.protocol import Backend
from la_core.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

PARTS = ("apply", "pullback", "step")


class Timed:
    """An encoder that counts the wall time during which it is at work."""

    def __init__(self, encoder: TorchEncoder) -> None:
        self._encoder = encoder
        self.seconds: dict[str, float] = {}
        self.cpu = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._encoder, name)
        return self._clocked(name, found) if name in PARTS else found

    def _clocked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any) -> Any:
            began, before = time.perf_counter(), time.thread_time()
            result = call(*arguments)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.cpu += time.thread_time() - before
            if name == "pullback":
                return result[0], self._clocked("back", result[1])
            return result

        return clocked


def main() -> None:
    """Run the demo and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--encoder", default="cnn")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()

    import train_torch

    made: list[Timed] = []
    runs: list[Any] = []
    spent: list[float] = []
    clocks = (time.perf_counter, time.process_time, time.thread_time)

    def make(backend: Backend, settings: Settings, shape: tuple[int, ...]) -> Any:
        made.append(Timed(getattr(train_torch, options.encoder)(backend, settings, shape)))
        return made[0]

    def train(*arguments: Any, **more: Any) -> Any:
        before = [clock() for clock in clocks]
        runs.append(whole(*arguments, **more))
        spent.extend(clock() - at for clock, at in zip(clocks, before, strict=True))
        return runs[0]

    whole, job.train = job.train, train  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as out:
        given = ["--epochs", str(options.epochs), "--workers", str(options.workers), "--out", str(Path(out) / "run")]
        job.main("torch", {options.encoder: Recipe(make)}, given)
    inside = made[0].seconds
    parts: dict[str, float] = {}
    for record in runs[0].history:
        for name, seconds in record["seconds"].items():
            parts[name] = parts.get(name, 0.0) + seconds
    print(f"\n{options.epochs} epochs, {os.cpu_count()} CPUs; seconds of wall time")
    for name, seconds in inside.items():
        print(f"  encoder.{name:<12}{seconds:8.2f}")
    for name, seconds in parts.items():
        print(f"  {'of the run: ' + name:<20}{seconds:8.2f}")
    print(f"  whole {spent[0]:.2f}; CPU of all threads {spent[1]:.2f}, of the one that trains {spent[2]:.2f}")
    print(f"  outside the encoder {1 - sum(inside.values()) / spent[0]:.1%} of the wall time")
    print(f"  and {1 - made[0].cpu / spent[2]:.1%} of the CPU time of the thread that trains")


if __name__ == "__main__":
    main()
