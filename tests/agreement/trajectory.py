"""One small run, made to be the same everywhere: 60 steps of warm-up and Local Aggregation, float64, three clusterings.

``trajectory.npz`` is that run as NumPy made it once. It is written anew by this command alone:

    PYTHONPATH=tests python -m agreement.trajectory --write

Do so only when the algorithm was meant to change, and say in the commit what changed.
"""

import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

import la_core
from la_core import Callback, FeatureView, Settings
from la_core.mlp import MLP

GOLDEN = Path(__file__).with_name("trajectory.npz")
SIZES = (12, 24, 8)
SETTINGS = Settings(
    seed=5,
    dtype="float64",
    epochs=12,
    warmup_epochs=4,
    batch_size=24,
    learning_rate=0.1,
    schedule="cosine",
    temperature=0.2,
    n_background=30,
    n_clusters=16,
    n_clusterings=2,
    recluster_every=3,  # of the 8 epochs of Local Aggregation: one clustering and two re-clusterings
    knn_every=0,
)
VIEW = FeatureView(noise=0.2, drop=0.1)


def samples():
    """Five heaps of 24 samples."""
    rng = np.random.default_rng(2)
    return 1.5 * np.repeat(rng.standard_normal((5, SIZES[0])), 24, axis=0) + rng.standard_normal((120, SIZES[0]))


class Net:
    """The MLP of la_core as a torch module: the same weights under the same names, differentiated by autograd."""

    def __init__(self, backend, sizes, settings):
        import torch
        from torch import nn

        from la_core.backends.torch import TorchEncoder, make_optimizer

        layers = [nn.Flatten()]
        for rows, columns in pairwise(sizes):
            layers += [nn.Linear(rows, columns, dtype=torch.float64), nn.ReLU()]
        module = nn.Sequential(*layers[:-1])
        self._encoder = TorchEncoder(module, make_optimizer(module, settings))
        self.apply, self.pullback, self.step = self._encoder.apply, self._encoder.pullback, self._encoder.step
        self.training_state = self._encoder.training_state
        self.load_training_state = self._encoder.load_training_state
        self.load(MLP(la_core.backend("numpy"), sizes, settings).weights())

    def weights(self):
        return {theirs(name): turned(x) for name, x in self._encoder.weights().items()}

    def load(self, weights):
        self._encoder.load({ours(name): turned(x) for name, x in weights.items()})


def ours(name):
    layer, what = name.split(".")
    return f"{1 + 2 * int(layer)}.{what}"


def theirs(name):
    layer, what = name.split(".")
    return f"{(int(layer) - 1) // 2}.{what}"


def turned(x):
    return np.ascontiguousarray(x.T)


@dataclass
class Recorder(Callback):
    """The loss of every step, and the labels of every clustering."""

    losses: list = field(default_factory=list)
    labels: list = field(default_factory=list)

    def on_step(self, run, loss):
        self.losses.append(loss)
        if run.state.labels is not None:
            now = run.backend.to_host(run.state.labels)
            if not self.labels or not np.array_equal(now, self.labels[-1]):
                self.labels.append(np.array(now))


def train(guise, make_encoder=MLP, settings=SETTINGS, folder=None, callbacks=()):
    """The run in that guise, on the host: losses (60,), bank, labels (3, H, N), weights by name."""
    told = Recorder()
    with guise.mode():
        backend = guise.backend
        encoder = make_encoder(backend, SIZES, settings)
        run = la_core.train(
            samples(),
            encoder,
            backend=backend,
            settings=settings,
            view=VIEW,
            folder=folder,
            callbacks=[told, *callbacks],
            progress=False,
        )
        facts = {"losses": np.array(told.losses), "bank": np.array(backend.to_host(run.state.bank))}
        facts |= {"labels": np.stack(told.labels)} if told.labels else {}
        return facts | encoder.weights()


def main(arguments):
    from agreement.guises import named

    if arguments != ["--write"]:
        print(__doc__)
        return 2
    np.savez_compressed(GOLDEN, **train(named("numpy")))
    print(f"wrote {GOLDEN}, {GOLDEN.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
