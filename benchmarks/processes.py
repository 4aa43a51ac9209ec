"""What a step of several processes sends: ``torchrun --standalone --nproc-per-node 4 benchmarks/processes.py``.

Counts collectives and the bytes that a process gives to them in steps of Local Aggregation, beside the model of
``docs/performance.md``, and the bytes of the bank that it holds. No times: several processes on one machine share it.
"""

import argparse

import numpy as np

import la_core
from la_core import shards
from la_core.comm import share
from la_core.layout import LAYOUTS
from la_core.mlp import MLP
from la_core.run import AGGREGATION


class Count(la_core.Callback):
    """Collectives and bytes of each step but the first and the last of an epoch, which others mix with."""

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch, self.before = per_epoch, (0, 0)
        self.steps: list[tuple[int, int]] = []

    def on_step(self, run: la_core.Run, loss: float) -> None:
        """One more."""
        comm = run.team.comm
        now = (comm.calls, comm.payload)
        if run.phase == AGGREGATION and run.step % self.per_epoch > 1:
            self.steps.append((now[0] - self.before[0], now[1] - self.before[1]))
        self.before = now


def model(layout: str, batch: int, dim: int, k: int, n: int, weights: int, comm: la_core.comm.Comm) -> int:
    """Bytes that a process gives in a step of one view, in float32."""
    each = share(batch, comm)
    given = 8 + 4 * each * dim + 4 * weights  # facts, embeddings, gradients
    if layout == "replicated":
        return given + 4 * each * (dim + 2)  # loss, cotangent, number of close neighbours
    # Candidates with their rows; rows of the background, weighted; old rows of the batch.
    return given + 12 * batch * min(k, share(n, comm)) + 8 * batch * dim


def main() -> None:
    """Run both layouts and print what the first process sees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("n", 20_000), ("dim", 128), ("batch", 256), ("k", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    features = np.random.default_rng(0).standard_normal((o.n, 32)).astype(np.float32)
    backend = la_core.backend("torch")
    settings = la_core.Settings(
        epochs=1, warmup_epochs=0, batch_size=o.batch, n_background=o.k, n_clusters=100, n_clusterings=1, n_iter=2,
        knn_every=0, health_every=0,
    )  # fmt: skip
    for layout in LAYOUTS:
        count, encoder = Count(-(-o.n // o.batch)), MLP(backend, (32, o.dim), settings)
        run = la_core.train(
            features, encoder, backend=backend, settings=settings, callbacks=[count], progress=False, bank_layout=layout
        )
        if run.team.first:
            weights = sum(x.size for x in encoder.weights().values())
            said = model(layout, run.last_batch, o.dim, o.k, o.n, weights, run.team.comm)
            held = shards.held(run.state.bank)[0]
            print(
                f"{run.team.comm.size} processes, {layout}: bank {held.nbytes / 1e6:.2f} MB; a step "
                f"{np.median([calls for calls, _ in count.steps]):.0f} collectives, "
                f"{np.median([given for _, given in count.steps]) / 1e6:.3f} MB given, by the model {said / 1e6:.3f}"
            )


if __name__ == "__main__":
    main()
