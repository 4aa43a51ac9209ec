"""What a step of several processes sends: ``torchrun --standalone --nproc-per-node 4 benchmarks/processes.py``.

Counts collectives and the bytes that a process gives to them in steps of Local Aggregation, beside the model of
``docs/performance.md``, and the bytes of the bank that it holds; and times a step. Processes on one machine share its
cores and its memory: give each a core (``OMP_NUM_THREADS=1``) and start no more than there are.
"""

import argparse
import time

import numpy as np

import la_core
from la_core import shards
from la_core.layout import LAYOUTS
from la_core.mlp import MLP
from la_core.planner import traffic
from la_core.run import AGGREGATION


class Count(la_core.Callback):
    """Collectives and bytes of each step but the first and the last of an epoch, which others mix with."""

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch, self.before = per_epoch, (0, 0)
        self.steps: list[tuple[int, int]] = []
        self.seconds: list[float] = []
        self.at = 0.0

    def on_step(self, run: la_core.Run, loss: float) -> None:
        """One more."""
        comm = run.team.comm
        now = (getattr(comm, "calls", 0), getattr(comm, "payload", 0))
        passed, self.at = time.perf_counter() - self.at, time.perf_counter()
        if run.phase == AGGREGATION and run.step % self.per_epoch > 1:
            self.steps.append((now[0] - self.before[0], now[1] - self.before[1]))
            self.seconds.append(passed)
        self.before = now


def main() -> None:
    """Run both layouts and print what the first process sees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 20_000), ("dim", 128), ("batch", 256), ("k", 1024), ("epochs", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    features = np.random.default_rng(0).standard_normal((o.rows, 32)).astype(np.float32)
    backend = la_core.backend("torch")
    settings = la_core.Settings(
        epochs=o.epochs, warmup_epochs=0, batch_size=o.batch, n_background=o.k, n_clusters=100, n_clusterings=1,
        n_iter=2, knn_every=0, health_every=0,
    )  # fmt: skip
    for layout in LAYOUTS:
        count, encoder = Count(-(-o.rows // o.batch)), MLP(backend, (32, o.dim), settings)
        run = la_core.train(
            features, encoder, backend=backend, settings=settings, callbacks=[count], progress=False, bank_layout=layout
        )
        if run.team.first:
            weights = sum(x.size for x in encoder.weights().values())
            size = run.team.comm.size
            said = sum(traffic(layout, size, n=o.rows, dim=o.dim, batch=run.last_batch, k=o.k, weights=weights))
            quartiles = 1000 * np.quantile(count.seconds, (0.25, 0.5, 0.75))
            held = shards.held(run.state.bank)[0]
            print(
                f"{size} processes, {layout}: bank {held.nbytes / 1e6:.2f} MB; a step "
                f"{np.median([calls for calls, _ in count.steps]):.0f} collectives, "
                f"{np.median([given for _, given in count.steps]) / 1e6:.3f} MB given, by the model "
                f"{said / 1e6:.3f}; {quartiles[1]:.1f} ms ({quartiles[0]:.1f} to {quartiles[2]:.1f})"
            )


if __name__ == "__main__":
    main()
