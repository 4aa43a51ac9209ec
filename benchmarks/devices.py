"""What a step on several devices of JAX takes and sends: ``python benchmarks/devices.py --devices 1 2 4 8``.

Times steps of Local Aggregation, and counts the bytes that a device gives to the collectives of search, loss and update
in the programs as they are traced, beside the model of ``docs/performance.md``. On a CPU the devices are made by XLA
and share its cores: more of them than cores can only show what sharing costs.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from typing import Any

import numpy as np

import la_core
from la_core import shards
from la_core.bank import State
from la_core.layout import LAYOUTS
from la_core.run import AGGREGATION

WIDTH = 32
"""Of a sample."""


def sent(jaxpr: Any) -> tuple[int, int]:
    """Bytes that a device gives to the collectives of a program, and how many these are."""
    from jax.extend.core import jaxprs_in_params

    total, calls = 0, 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("psum", "psum_invariant", "all_gather"):
            total += sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
            calls += 1
        for inner in jaxprs_in_params(equation.params):
            more = sent(inner)
            total, calls = total + more[0], calls + more[1]
    return total, calls


def step_sent(run: la_core.Run, n_background: int) -> tuple[int, int]:
    """The same, of search, loss and update with the state of a run: bytes, and collectives."""
    import jax

    backend, dim = run.backend, run.state.bank.shape[1]
    z = backend.asarray(la_core.random_rows(run.last_batch, dim, seed=0))
    indices = backend.asarray(np.arange(run.last_batch))

    def step(state: State, z: Any) -> Any:
        terms = partial(la_core.local_aggregation_and_cotangent, n_background=n_background, temperature=0.07)
        return terms(z, state, indices), la_core.update(state, indices, z).bank

    return sent(jax.make_jaxpr(step)(run.state, z).jaxpr)


class Clock(la_core.Callback):
    """Seconds of each step but the first ones of an epoch, which compile or wait."""

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch, self.at = per_epoch, 0.0
        self.seconds: list[float] = []

    def on_step(self, run: la_core.Run, loss: float) -> None:
        """One more."""
        passed, self.at = time.perf_counter() - self.at, time.perf_counter()
        if run.phase == AGGREGATION and run.step % self.per_epoch > 4:
            self.seconds.append(passed)


def main() -> None:
    """Run every number of devices in both layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    for name, value in (("rows", 20_000), ("dim", 128), ("batch", 256), ("k", 1024), ("epochs", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    flag = f"--xla_force_host_platform_device_count={max(o.devices)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    from flax import nnx

    from la_core.backends.jax import Perceptron, decayed, make_optimizer, nnx_encoder

    features = np.random.default_rng(0).standard_normal((o.rows, WIDTH)).astype(np.float32)
    settings = la_core.Settings(
        epochs=o.epochs, warmup_epochs=0, batch_size=o.batch, n_background=o.k, n_clusters=100, n_clusterings=1,
        n_iter=2, knn_every=0, health_every=0,
    )  # fmt: skip
    for size in o.devices:
        backend = la_core.backend("jax", devices=size)
        for layout in LAYOUTS[: 1 if size == 1 else None]:
            module = Perceptron((WIDTH, WIDTH, o.dim), rngs=nnx.Rngs(0))
            encoder = nnx_encoder(module, make_optimizer(settings, decayed(module)), device=backend.device)
            clock = Clock(-(-o.rows // o.batch))
            run = la_core.train(
                features, encoder, backend=backend, settings=settings, callbacks=[clock], progress=False,
                bank_layout=layout,
            )  # fmt: skip
            low, middle, high = 1000 * np.quantile(clock.seconds, (0.25, 0.5, 0.75))
            held = shards.held(run.state.bank)[0].addressable_shards[0].data.nbytes
            line = f"{size} device{'s' if size > 1 else ''}, {layout}: bank {held / 1e6:.2f} MB on each; "
            if layout == "sharded":
                given, calls = step_sent(run, o.k)
                spare = size * -(-o.rows // size) - o.rows
                said = 8 * run.last_batch * min(o.k + spare, -(-o.rows // size)) + 8 * run.last_batch * o.dim
                line += f"{calls} collectives, {given / 1e6:.3f} MB given, by the model {said / 1e6:.3f}; "
            print(f"{line}{middle:.1f} ms ({low:.1f} to {high:.1f})", flush=True)


if __name__ == "__main__":
    main()
